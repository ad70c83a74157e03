# SPDX-License-Identifier: Apache-2.0
"""Challenges: who asked whom, and when; and the binding of the answer."""

from __future__ import annotations

import dataclasses
import hashlib

import evidence_examples as example
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import challenge, encoding, keys
from nova_vmi_attest.evidence.challenge import Challenge, ChallengeError
from nova_vmi_attest.evidence.encoding import EncodingError

from .hostile import bounded, json_values, mutated

KEY = example.key("verifier")
TRUSTED = [KEY.public_key()]
NOW = example.NOW
GOOD = Challenge(example.HOST, example.VERIFIER_NONCE, 5, NOW, NOW + 60)
CLAIMS = {
    "aud": GOOD.host,
    "exp": GOOD.expires,
    "iat": GOOD.issued,
    "nonce": encoding.base64url(GOOD.nonce),
    "since": GOOD.since,
}
TOKEN = challenge.sign_challenge(GOOD, KEY)


def test_challenge_comes_back_with_its_verifier() -> None:
    found, thumbprint = challenge.verify_challenge(TOKEN, TRUSTED, example.HOST, NOW)
    assert found == GOOD
    assert thumbprint == keys.thumbprint(KEY.public_key())


@pytest.mark.parametrize(
    ("host", "now", "message"),
    [
        ("compute-2", NOW, "is for compute-1.example.org, not for compute-2"),
        (example.HOST, NOW + 60, "expired 0 s ago"),
        (example.HOST, NOW + 3600, "expired 3540 s ago"),
        (example.HOST, NOW - 61, "61 s in the future"),
    ],
)
def test_refused_for_host_and_time(host: str, now: float, message: str) -> None:
    with pytest.raises(ChallengeError, match=message):
        challenge.verify_challenge(TOKEN, TRUSTED, host, now)


@pytest.mark.parametrize("now", [NOW - challenge.CLOCK_SKEW, NOW + 59.9])
def test_accepted_until_the_last_moment(now: float) -> None:
    assert challenge.verify_challenge(TOKEN, TRUSTED, example.HOST, now)[0] == GOOD


def test_refused_from_a_stranger() -> None:
    with pytest.raises(ChallengeError, match="unknown key"):
        challenge.verify_challenge(TOKEN, [example.key("stranger").public_key()], example.HOST, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"host": ""},
        {"host": "h" * 254},
        {"host": "\u00e9" * 200},
        {"host": "a\nb"},
        {"host": "\ud800"},
        {"nonce": bytes(31)},
        {"nonce": bytes(33)},
        {"since": -1},
        {"since": 2**53},
        {"expires": NOW},
        {"expires": NOW + 3601},
        {"issued": 1.5},
    ],
)
def test_challenges_that_nobody_would_accept_are_not_signed(change: dict[str, object]) -> None:
    with pytest.raises(ChallengeError):
        challenge.sign_challenge(dataclasses.replace(GOOD, **change), KEY)


@bounded
@given(mutated(CLAIMS) | json_values)
def test_any_signed_claims_are_read_or_refused(claims: object) -> None:
    try:
        token = example.token(claims if isinstance(claims, dict) else {"x": claims}, KEY, challenge.KIND)
    except EncodingError:
        return
    try:
        found, _ = challenge.verify_challenge(token, TRUSTED, example.HOST, NOW)
    except ChallengeError:
        return
    assert found.host == example.HOST
    assert len(found.nonce) == 32
    assert found.issued < found.expires


def test_binding_is_the_hash_that_is_documented() -> None:
    nonces = [b"\2" * 32, b"\1" * 32]
    data = b"nova-vmi-attest quote v1\0" + b"\0\x05h\xc3\xb4te" + b"\7" * 32 + b"\0\2" + nonces[1] + nonces[0]
    assert challenge.binding("h\u00f4te", b"\7" * 32, nonces) == hashlib.sha256(data).digest()
    assert challenge.binding("h\u00f4te", b"\7" * 32, nonces[::-1]) == hashlib.sha256(data).digest()


@bounded
@given(st.text(max_size=300), st.binary(max_size=40), st.lists(st.binary(max_size=33), max_size=4))
def test_binding_refuses_all_else(host: str, thumbprint: bytes, nonces: list[bytes]) -> None:
    try:
        made = challenge.binding(host, thumbprint, nonces)
    except ChallengeError:
        return
    assert len(made) == 32
    assert len(thumbprint) == 32
    assert {len(nonce) for nonce in nonces} == {32}


@pytest.mark.parametrize("nonces", [[], [bytes(32)] * 2, [n.to_bytes(32, "big") for n in range(257)]])
def test_binding_needs_different_nonces(nonces: list[bytes]) -> None:
    with pytest.raises(ChallengeError, match="different nonces"):
        challenge.binding("h", bytes(32), nonces)


def test_each_part_changes_the_binding() -> None:
    base = ("host", b"\1" * 32, [b"\2" * 32])
    others = [
        ("hos", *base[1:]),
        ("host", b"\3" * 32, base[2]),
        ("host", b"\1" * 32, [b"\2" * 32, b"\4" * 32]),
    ]
    assert len({challenge.binding(*base), *(challenge.binding(*other) for other in others)}) == 4
