# SPDX-License-Identifier: Apache-2.0
"""Quote verification: what it takes, and each step that refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import evidence_examples as example
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.tpm.quote import QuoteError, VerifiedQuote, verify_quote

from ..evidence.hostile import damaged

bounded = settings(max_examples=80, deadline=None)

DATA = example.octets("qualifying data")
PCRS = {index: example.octets(f"PCR {index}") for index in (0, 1, 7, 13)}
P256, P384 = example.key("ak"), example.key("ak", ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
STATEMENT = example.attest(DATA, PCRS)
SIGNATURE = example.tpm_signature(P256, STATEMENT)


def verify(**other: Any) -> VerifiedQuote:
    arguments: dict[str, Any] = {
        "public_key": P256.public_key(),
        "attest": STATEMENT,
        "signature": SIGNATURE,
        "qualifying_data": DATA,
        "pcrs": PCRS,
    }
    return verify_quote(**(arguments | other))


def signed(**change: Any) -> dict[str, Any]:
    """A quote that differs in its statement only: the signature is good."""
    statement = example.attest(**({"extra_data": DATA, "pcrs": PCRS} | change))
    return {"attest": statement, "signature": example.tpm_signature(P256, statement)}


def test_what_a_quote_proves() -> None:
    quote = verify()
    assert quote.pcrs == PCRS
    assert quote.epoch == (example.RESET_COUNT, example.RESTART_COUNT)
    assert (quote.clock, quote.safe) == (123_456_789, True)
    with pytest.raises(TypeError):
        quote.pcrs[0] = bytes(32)  # type: ignore[index]


@pytest.mark.parametrize(("key", "hash_name"), [(P256, "sha256"), (P384, "sha384"), (RSA, "sha256")])
def test_key_types(key: Any, hash_name: str) -> None:
    statement = example.attest(DATA, PCRS, hash_name=hash_name)
    signature = example.tpm_signature(key, statement)
    quote = verify(public_key=key.public_key(), attest=statement, signature=signature)
    assert quote.pcrs == PCRS


STEPS = {
    "step 1, signature": [
        {"public_key": example.key("stranger").public_key()},
        {"public_key": P384.public_key()},
        {"public_key": RSA.public_key()},
        {"public_key": example.key("ak", ec.SECP256K1()).public_key()},
        {"public_key": ed25519.Ed25519PrivateKey.generate().public_key()},
        {"public_key": None},
        {"public_key": RSA.public_key(), "signature": example.tpm_signature(RSA, STATEMENT + b"\0")},
        {"attest": STATEMENT + b"\0"},
        {"signature": SIGNATURE[:-1]},
        {"signature": b""},
        {"signature": SIGNATURE[:4] + example.sized(b"") + example.sized(b"")},
    ],
    "step 2, structure": [
        signed(magic=0),
        signed(kind=0x8014),
        {"attest": STATEMENT[:-1], "signature": example.tpm_signature(P256, STATEMENT[:-1])},
        {"attest": b"", "signature": example.tpm_signature(P256, b"")},
    ],
    "step 3, extraData": [
        signed(extra_data=bytes(32)),
        signed(extra_data=b""),
        signed(extra_data=DATA + b"\0"),
        {"qualifying_data": b""},
    ],
    "step 4, selection": [
        {"pcrs": {}},
        {"pcrs": {index: PCRS[index] for index in (0, 1, 7)}},
        {"pcrs": PCRS | {8: bytes(32)}},
        {"pcrs": PCRS | {24: bytes(32)}},
        {"pcrs": PCRS | {-1: bytes(32)}},
        {"pcrs": PCRS | {13: bytes(31)}},
        signed(selections=()),
        signed(selections=(example.selection(tuple(PCRS), 0x0004),)),
        signed(selections=(example.selection(tuple(PCRS)), example.selection((2,)))),
        signed(selections=(example.selection((0, 1)), example.selection((7, 13)))),
        signed(selections=(example.selection((*PCRS, 24), size=4),)),
    ],
    "step 5, digest": [
        {"pcrs": PCRS | {13: bytes(32)}},
        {"pcrs": PCRS | {0: PCRS[1], 1: PCRS[0]}},
        signed(pcrs=PCRS | {7: bytes(32)}),
        signed(hash_name="sha384"),
    ],
}


@pytest.mark.parametrize(
    ("step", "change"), [(step, change) for step, all_ in STEPS.items() for change in all_]
)
def test_each_step_refuses(step: str, change: dict[str, Any]) -> None:
    with pytest.raises(QuoteError, match=f"^{step}: "):
        verify(**change)


def test_short_rsa_keys_are_refused() -> None:
    key = rsa.generate_private_key(65537, 1024)
    with pytest.raises(QuoteError, match="1024 bits is too short"):
        verify(public_key=key.public_key(), signature=example.tpm_signature(key, STATEMENT))


def test_nothing_else_makes_a_verified_quote() -> None:
    with pytest.raises(QuoteError, match="verify_quote only"):
        VerifiedQuote(b"", 0, 0, 0, True, 0, {}, object())
    with pytest.raises(QuoteError, match="verify_quote only"):
        dataclasses.replace(verify(), pcrs={}, seal=None)


@bounded
@given(damaged(STATEMENT) | st.binary(max_size=200))
def test_no_signed_statement_breaks_the_checks(statement: bytes) -> None:
    """Even what the key did sign is read with care."""
    try:
        quote = verify(attest=statement, signature=example.tpm_signature(P256, statement))
    except QuoteError:
        return
    assert quote.pcrs == PCRS


@bounded
@given(damaged(SIGNATURE) | st.binary(max_size=200))
def test_damaged_signatures_are_refused(signature: bytes) -> None:
    if signature != SIGNATURE:
        with pytest.raises(QuoteError, match=r"^step 1, signature: "):
            verify(signature=signature)
    else:
        assert verify(signature=signature).pcrs == PCRS
