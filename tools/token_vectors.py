# SPDX-License-Identifier: Apache-2.0
"""Test vectors of the signed tokens: challenges and results, each with forgeries that must be refused."""

from __future__ import annotations

from typing import Any

import evidence_examples as example

from nova_vmi_attest.evidence import challenge, encoding, jws, keys, result
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
)


def challenge_vectors() -> dict[str, Any]:
    """Bindings, a good challenge, and tokens that must be refused."""
    good = challenge.Challenge(example.HOST, example.VERIFIER_NONCE, 0, example.NOW - 10, example.NOW + 50)
    claims = {
        "aud": good.host,
        "exp": good.expires,
        "iat": good.issued,
        "nonce": encoding.base64url(good.nonce),
        "since": good.since,
    }
    verifier, stranger = example.key("verifier"), example.key("stranger")
    token = example.token(claims, verifier, challenge.KIND)
    head, body, signature = token.split(".")
    unsigned = encoding.base64url(b'{"alg":"none","kid":"","typ":"' + challenge.KIND.encode() + b'"}')
    late, early = claims | {"exp": example.NOW}, claims | {"iat": example.NOW + 61, "exp": example.NOW + 99}
    refused = {
        "signed by a stranger": example.token(claims, stranger, challenge.KIND),
        "the signature of another token": f"{head}.{body}."
        + example.token(late, verifier, challenge.KIND)[-86:],
        "no algorithm": f"{unsigned}.{body}.",
        "a stranger under the verifier's kid": example.token(
            claims, stranger, challenge.KIND, kid=keys.key_id(verifier.public_key())
        ),
        "another type": example.token(claims, verifier, result.KIND),
        "a header member more": example.token(claims, verifier, challenge.KIND, cty="JWT"),
        "for another host": example.token(claims | {"aud": "compute-2"}, verifier, challenge.KIND),
        "expired": example.token(late, verifier, challenge.KIND),
        "from the future": example.token(early, verifier, challenge.KIND),
        "a life of more than an hour": example.token(
            claims | {"exp": example.NOW + 3600}, verifier, challenge.KIND
        ),
        "a short nonce": example.token(claims | {"nonce": "AAAA"}, verifier, challenge.KIND),
        "a claim more": example.token(claims | {"jti": "1"}, verifier, challenge.KIND),
        "cut": token[:-1],
        "padded": f"{head}.{body}.{signature}==",
    }
    cases = [
        (example.HOST, example.NONCES),
        ("h", (bytes(32),)),
        ("h\u00f4te", tuple(bytes([n]) * 32 for n in (3, 1, 2))),
    ]
    thumbprint = example.verifier_thumbprint()
    return {
        "bindings": [
            {
                "host": host,
                "verifier": thumbprint.hex(),
                "nonces": [nonce.hex() for nonce in nonces],
                "binding": challenge.binding(host, thumbprint, nonces).hex(),
            }
            for host, nonces in cases
        ],
        "challenge": {
            "token": token,
            "public": example.public_pem(verifier.public_key()),
            "host": good.host,
            "now": example.NOW,
            "nonce": good.nonce.hex(),
            "since": good.since,
            "issued": good.issued,
            "expires": good.expires,
        },
        "refused": [{"token": bad, "why": why} for why, bad in refused.items()],
    }


def example_result() -> AttestationResult:
    """One host with a trusted, an untrusted and an unknown guest."""
    kernel = {"release": "6.1.0-56-cloud-amd64", "reference": example.octets("manifest").hex()}
    reason = Reason("text", "__x64_sys_getdents64", 5, 12, "differs from the replayed text")
    return AttestationResult(
        host=HostResult(example.HOST, Verdict.TRUSTED),
        guests=(
            GuestResult(example.HEALTHY, Verdict.TRUSTED, (), **kernel, code_bytes=14_741_504, modules=2,
                        processes=3, reader="ram_file", microseconds=21_500),
            GuestResult(example.ALTERED, Verdict.UNTRUSTED, (reason,), **kernel, code_bytes=14_741_504,
                        unexplained_bytes=12, reader="process", microseconds=23_750),
            GuestResult(example.BOOTING, Verdict.UNKNOWN, (Reason("booting"),), reader="libvmi"),
        ),
        issued=example.NOW - 5,
        expires=example.NOW + 295,
        sequence=42,
    )  # fmt: skip


def result_vectors() -> dict[str, Any]:
    """A signed result, its claims, and tokens that must be refused."""
    verifier = example.key("verifier")
    audience = example.AUDIENCE
    made = result.sign_result(example_result(), verifier, audience)
    claims, _ = jws.verify(made, [verifier.public_key()], result.KIND, result.MAX_RESULT_BYTES)
    submods = claims["submods"]
    promoted = {**submods, str(example.ALTERED): {**submods[str(example.ALTERED)], "ear.status": "affirming"}}
    private = submods["host"][result.PRIVATE]
    stale = {**submods["host"], result.PRIVATE: {**private, "verdict": "stale"}}
    variants = {
        "for another audience": claims | {"aud": "others"},
        "expired": claims | {"exp": example.NOW},
        "from the future": claims | {"iat": example.NOW + 61},
        "a life of more than a day": claims | {"exp": example.NOW + 86400},
        "another profile": claims | {"eat_profile": "tag:example.org,2026:other"},
        "a status that contradicts the verdict": claims | {"submods": promoted},
        "a verdict that never travels": claims | {"submods": {**submods, "host": stale}},
        "no host": claims | {"submods": {k: v for k, v in submods.items() if k != "host"}},
        "a claim more": claims | {"sub": "x"},
    }
    refused = {why: example.token(bad, verifier, result.KIND) for why, bad in variants.items()}
    refused["signed by a stranger"] = example.token(claims, example.key("stranger"), result.KIND)
    refused["another type"] = example.token(claims, verifier, challenge.KIND)
    return {
        "token": example.token(claims, verifier, result.KIND),
        "claims": encoding.canonical(claims).decode(),
        "public": example.public_pem(verifier.public_key()),
        "audience": audience,
        "now": example.NOW,
        "refused": [{"token": bad, "why": why} for why, bad in refused.items()],
    }
