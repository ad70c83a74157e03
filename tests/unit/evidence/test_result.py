# SPDX-License-Identifier: Apache-2.0
"""Signed results: what survives, what is refused, and what other EAR readers see."""

from __future__ import annotations

import dataclasses
from typing import Any

import evidence_examples as example
import jwt
import pytest
import token_vectors
from hypothesis import given

from nova_vmi_attest.evidence import result as module
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    Reason,
    ResultError,
    Verdict,
    sign_result,
    verify_result,
)

from .hostile import bounded, json_values, mutated

KEY = example.key("verifier")
NOW = example.NOW
RESULT = token_vectors.example_result()
TOKEN = sign_result(RESULT, KEY, example.AUDIENCE)
CLAIMS = jwt.decode(
    TOKEN,
    KEY.public_key(),
    algorithms=["ES256"],
    audience=example.AUDIENCE,
    options={"verify_exp": False, "verify_iat": False},
)


def verify(token: str, now: float = NOW) -> AttestationResult:
    return verify_result(token, [KEY.public_key()], example.AUDIENCE, now)


def test_results_survive() -> None:
    assert verify(TOKEN) == RESULT
    empty = dataclasses.replace(RESULT, guests=())
    assert verify(sign_result(empty, KEY, example.AUDIENCE)) == empty


def test_is_an_ear() -> None:
    assert CLAIMS["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert set(CLAIMS["ear.verifier-id"]) == {"build", "developer"}
    status = {name: submod["ear.status"] for name, submod in CLAIMS["submods"].items()}
    assert status == {
        "host": "affirming",
        str(example.HEALTHY): "affirming",
        str(example.ALTERED): "contraindicated",
        str(example.BOOTING): "none",
    }
    vectors = [submod["ear.trustworthiness-vector"] for submod in CLAIMS["submods"].values()]
    assert {"instance-identity": 2} in vectors
    assert {"executables": 96} in vectors
    assert jwt.get_unverified_header(TOKEN)["typ"] == "eat+jwt"


@pytest.mark.parametrize(
    ("now", "message"),
    [(NOW + 295, "expired 0 s ago"), (NOW + 9999, "expired"), (NOW - 66, "in the future")],
)
def test_times(now: float, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        verify(TOKEN, now)


def test_audience_and_key() -> None:
    with pytest.raises(ResultError, match="another audience"):
        verify_result(TOKEN, [KEY.public_key()], "others", NOW)
    with pytest.raises(ResultError, match="unknown key"):
        verify_result(TOKEN, [example.key("stranger").public_key()], example.AUDIENCE, NOW)


GUEST = RESULT.guests[0]


@pytest.mark.parametrize(
    "change",
    [
        {"guests": RESULT.guests[::-1]},
        {"guests": (GUEST, GUEST)},
        {"guests": (dataclasses.replace(GUEST, verdict=Verdict.STALE),)},
        {"host": dataclasses.replace(RESULT.host, verdict=Verdict.STALE)},
        {"host": dataclasses.replace(RESULT.host, host="")},
        {"host": dataclasses.replace(RESULT.host, host="a\nb")},
        {"guests": (dataclasses.replace(GUEST, reasons=(Reason("x"),) * 65),)},
        {"guests": (dataclasses.replace(GUEST, reasons=(Reason("x" * 65),)),)},
        {"guests": (dataclasses.replace(GUEST, reference="zz"),)},
        {"guests": (dataclasses.replace(GUEST, code_bytes=-1),)},
        {"guests": (dataclasses.replace(GUEST, code_bytes=2**53),)},
        {"guests": (dataclasses.replace(GUEST, release="\x1b[2J"),)},
        {"expires": RESULT.issued},
        {"expires": RESULT.issued + 86401},
        {"sequence": -1},
    ],
)
def test_results_that_nobody_would_accept_are_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(ResultError):
        sign_result(dataclasses.replace(RESULT, **change), KEY, example.AUDIENCE)


def test_audience_is_bounded() -> None:
    with pytest.raises(ResultError, match="aud"):
        sign_result(RESULT, KEY, "a" * 257)


def test_no_verdict_is_promoted_by_its_status() -> None:
    submods = dict(CLAIMS["submods"])
    name = str(example.ALTERED)
    for change in (
        {"ear.status": "affirming"},
        {"ear.trustworthiness-vector": {"executables": 2}},
        {module.PRIVATE: submods[name][module.PRIVATE] | {"verdict": "trusted"}},
    ):
        token = example.token(
            CLAIMS | {"submods": submods | {name: submods[name] | change}}, KEY, module.KIND
        )
        with pytest.raises(ResultError, match="contradict"):
            verify(token)


def test_too_many_guests() -> None:
    submods = {f"{n:08x}-0000-4000-8000-000000000000": {} for n in range(4097)} | {"host": {}}
    with pytest.raises(ResultError, match="at most 4096"):
        verify(example.token(CLAIMS | {"submods": submods}, KEY, module.KIND))


@bounded
@given(mutated(CLAIMS) | json_values)
def test_any_signed_claims_are_read_or_refused(claims: Any) -> None:
    try:
        token = example.token(claims if isinstance(claims, dict) else {"x": claims}, KEY, module.KIND)
    except EncodingError:
        return
    try:
        found = verify(token)
    except ResultError:
        return
    assert verify(sign_result(found, KEY, example.AUDIENCE)) == found
