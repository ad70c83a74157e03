#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the test vectors of the wire formats: ``tools/make_vectors.py [directory]``.

The default directory is ``tests/data/vectors``. The output depends on nothing but the code. Vectors that
change mean that the wire format changed: other implementations then disagree with this one.

Octets are lowercase hex in every member, except where a member is a wire object itself (``encoded``,
``token``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence_examples as example
import token_vectors
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.evidence import encoding, keys, merkle
from nova_vmi_attest.evidence.leaf import guest_leaf
from nova_vmi_attest.evidence.log import extend, replay
from nova_vmi_attest.evidence.measurement import Measurement
from nova_vmi_attest.evidence.measurement_codec import (
    encode_measurement,
    measurement_digest,
    section_digests,
)
from nova_vmi_attest.evidence.proof import GuestProof, make_proof

DIRECTORY = Path(__file__).resolve().parent.parent / "tests" / "data" / "vectors"


def encoding_vectors() -> dict[str, Any]:
    """Canonical JSON and its digest; inputs that must be refused."""
    values: list[Any] = [
        {},
        {"b": [], "a": {}, "A": None, "_": True, "0": False},
        {"largest": encoding.MAX_INTEGER, "smallest": -encoding.MAX_INTEGER, "zero": 0},
        {"text": '\u20ac$\u000f\nA\'B"\\\\"/\u007f\u2028\U0001f980'},
        {"nested": [[[{"deep": [1, 2, 3]}]]]},
    ]
    refused = {
        "white space": b'{"a": 1}',
        "keys out of order": b'{"b":1,"a":2}',
        "a key twice": b'{"a":1,"a":1}',
        "a fraction": b'{"a":1.5}',
        "an exponent": b'{"a":1e2}',
        "minus zero": b'{"a":-0}',
        "an integer beyond 2^53": b'{"a":9007199254740992}',
        "not a number": b'{"a":NaN}',
        "an escape that is not needed": b'{"a":"\\u0041"}',
        "a lone surrogate": b'{"a":"\\ud800"}',
        "not UTF-8": b'{"a":"\xff"}',
        "a key that is not ASCII": '{"\u00e9":1}'.encode(),
        "no object": b"[1]",
        "33 levels": b'{"a":' * 33 + b"1" + b"}" * 33,
        "cut": b'{"a":1',
        "octets behind it": b'{"a":1}\n',
        "nothing": b"",
    }
    return {
        "cases": [
            {"canonical": encoding.canonical(value).hex(), "sha256": encoding.digest(value).hex()}
            for value in values
        ],
        "refused": [{"input": data.hex(), "why": why} for why, data in refused.items()],
    }


def merkle_vectors() -> dict[str, Any]:
    """RFC 9162 trees of up to nine leaves with every inclusion path."""
    hashes = [merkle.leaf_hash(bytes([n])) for n in range(9)]
    return {
        "leaf_hashes": [leaf.hex() for leaf in hashes],
        "trees": [
            {
                "size": size,
                "root": merkle.tree_root(hashes[:size]).hex(),
                "paths": [
                    [node.hex() for node in merkle.inclusion_path(hashes[:size], i)] for i in range(size)
                ],
            }
            for size in range(10)
        ],
    }


def key_vectors() -> dict[str, Any]:
    """Every key that the other vectors use, and the RFC 7638 thumbprint of the P-256 ones."""
    labels = ("attestation key", "authority", "verifier", "stranger")
    private = {label: example.key(label) for label in labels}
    return {
        "keys": [
            {
                "label": label,
                "private": example.pem(one),
                "public": example.public_pem(one.public_key()),
                "thumbprint": keys.thumbprint(one.public_key()).hex(),
            }
            for label, one in private.items()
        ],
        "jwks": keys.encode_jwks([one.public_key() for one in private.values()]).decode(),
    }


def measurement_vectors() -> dict[str, Any]:
    """Measurements with the digests of their sections, their own, and a leaf of each."""
    return {
        "measurements": [
            _measurement(item) for item in (example.healthy(), example.altered(), example.booting())
        ]
    }


def _measurement(measurement: Measurement) -> dict[str, Any]:
    salt, binding = example.octets(f"salt of {measurement.guest}"), example.octets("binding")
    digest = measurement_digest(measurement)
    return {
        "encoded": encoding.canonical(encode_measurement(measurement)).decode(),
        "sections": {name: value.hex() for name, value in section_digests(measurement).items()},
        "digest": digest.hex(),
        "salt": salt.hex(),
        "binding": binding.hex(),
        "leaf": guest_leaf(salt, measurement.guest, digest, binding).hex(),
    }


def log_vectors() -> dict[str, Any]:
    """A log from a PCR of zeros: each record, its digest, and the PCR after it."""
    records = []
    value = bytes(32)
    for entry in example.batch().entries:
        value = extend(value, entry.digest)
        records.append({"encoded": entry.encode().decode(), "digest": entry.digest.hex(), "pcr": value.hex()})
    return {"initial": bytes(32).hex(), "records": records}


def quote_vectors() -> dict[str, Any]:
    """Quotes by P-256 and P-384 keys, and what must be refused with the step that does so."""
    pcrs = {index: example.octets(f"PCR {index}") for index in (0, 7, 13)}
    data = example.octets("qualifying data")
    p256, p384 = example.key("attestation key"), example.key("attestation key", ec.SECP384R1())
    good = example.attest(data, pcrs)
    wide = example.attest(data, pcrs, hash_name="sha384")
    other_bank = example.attest(data, pcrs, selections=(example.selection((0, 7, 13), 0x000C),))
    two_banks = example.attest(
        data, pcrs, selections=(example.selection((0, 7, 13)), example.selection((), 0x0004))
    )
    refused = [
        ("signed by a stranger", 1, good, example.tpm_signature(example.key("stranger"), good), pcrs),
        ("a bit of the statement flipped", 1, good[:-1] + b"\0", example.tpm_signature(p256, good), pcrs),
        ("the signature is cut", 1, good, example.tpm_signature(p256, good)[:-1], pcrs),
        *(
            (why, step, bad, example.tpm_signature(p256, bad), values)
            for why, step, bad, values in (
                ("not made by a TPM", 2, example.attest(data, pcrs, magic=0xFF544348), pcrs),
                ("a certification, not a quote", 2, example.attest(data, pcrs, kind=0x8017), pcrs),
                ("octets behind it", 2, good + b"\0", pcrs),
                ("cut", 2, good[:-1], pcrs),
                ("another question", 3, example.attest(example.octets("other"), pcrs), pcrs),
                ("one PCR more quoted", 4, good, {0: pcrs[0], 7: pcrs[7]}),
                ("one PCR more supplied", 4, good, pcrs | {8: bytes(32)}),
                ("another bank", 4, other_bank, pcrs),
                ("two banks", 4, two_banks, pcrs),
                ("another value", 5, good, pcrs | {7: bytes(32)}),
            )
        ),
    ]
    return {
        "quotes": [
            _quote("P-256", p256, data, good, example.tpm_signature(p256, good), pcrs),
            _quote("P-384", p384, data, wide, example.tpm_signature(p384, wide), pcrs),
        ],
        "refused": [
            {"step": step, **_quote(why, p256, data, bad, made, values)}
            for why, step, bad, made, values in refused
        ],
    }


def _quote(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    data: bytes,
    statement: bytes,
    signature: bytes,
    pcrs: dict[int, bytes],
) -> dict[str, Any]:
    return {
        "name": name,
        "public": example.public_pem(key.public_key()),
        "qualifying_data": data.hex(),
        "attest": statement.hex(),
        "signature": signature.hex(),
        "pcrs": {str(index): value.hex() for index, value in pcrs.items()},
    }


def batch_vectors() -> dict[str, Any]:
    """A whole batch, and everything that can be recomputed from it."""
    batch = example.batch()
    return {
        "encoded": batch.encode().decode(),
        "binding": batch.binding.hex(),
        "leaves": [leaf.hex() for leaf in batch.leaves],
        "root": batch.entry.root.hex(),
        "log_pcr": batch.quote.pcrs[example.LOG_PCR].hex(),
    }


def proof_vectors() -> dict[str, Any]:
    """One guest's proof out of that batch, and proofs that must fail at a step."""
    batch = example.batch()
    proof = make_proof(batch, example.ALTERED, replay(bytes(32), batch.entries[:2]))
    path = (proof.path[1], proof.path[0])
    boot = dataclasses.replace(proof, entry=batch.entries[0])
    refused = [
        ("another host", 1, dataclasses.replace(proof, host="compute-2")),
        ("a certificate of another authority", 1, _certified(proof, authority="stranger")),
        ("a certificate for another use", 1, _certified(proof, usage="1.3.6.1.5.5.7.3.2")),
        ("a certificate that expired", 1, _certified(proof, begins=-7200, ends=-3600)),
        ("the nonce taken out", 2, dataclasses.replace(proof, nonces=(example.VERIFIER_NONCE,))),
        ("another verifier", 3, dataclasses.replace(proof, verifier=bytes(32))),
        ("the PCR before it changed", 4, dataclasses.replace(proof, pcr_before=bytes(32))),
        ("another record", 4, boot),
        ("another salt", 5, dataclasses.replace(proof, salt=bytes(32))),
        ("another guest's measurement", 5, dataclasses.replace(proof, measurement=example.healthy())),
        ("the path in another order", 5, dataclasses.replace(proof, path=path)),
        ("another index", 5, dataclasses.replace(proof, index=0)),
    ]
    return {
        "encoded": proof.encode().decode(),
        "ca": example.ca_certificate().public_bytes(serialization.Encoding.PEM).decode(),
        "nonce": example.TENANT_NONCE.hex(),
        "now": example.NOW,
        "measurement_digest": measurement_digest(proof.measurement).hex(),
        "refused": [
            {"encoded": bad.encode().decode(), "step": step, "why": why} for why, step, bad in refused
        ],
    }


def _certified(proof: GuestProof, **profile: Any) -> GuestProof:
    return dataclasses.replace(proof, ak_certificate=example.ak_certificate(**profile))


VECTORS: dict[str, Callable[[], dict[str, Any]]] = {
    "encoding": encoding_vectors,
    "merkle": merkle_vectors,
    "keys": key_vectors,
    "challenge": token_vectors.challenge_vectors,
    "measurement": measurement_vectors,
    "log": log_vectors,
    "quote": quote_vectors,
    "batch": batch_vectors,
    "proof": proof_vectors,
    "result": token_vectors.result_vectors,
}


def render(name: str) -> str:
    """The text of one vector file."""
    make = VECTORS[name]
    value = {"description": (make.__doc__ or "").strip(), **make()}
    return json.dumps(value, indent=1, ensure_ascii=True) + "\n"


def main(arguments: list[str]) -> int:
    """Write all files into the directory named, or into the repository's."""
    directory = Path(arguments[0]) if arguments else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name in VECTORS:
        data = render(name)
        (directory / f"{name}.json").write_text(data, encoding="utf-8")
        print(f"{hashlib.sha256(data.encode()).hexdigest()[:16]}  {directory / name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
