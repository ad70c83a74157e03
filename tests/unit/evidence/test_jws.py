# SPDX-License-Identifier: Apache-2.0
"""Signed objects: one algorithm, one type, one key."""

from __future__ import annotations

import json

import evidence_examples as example
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import encoding, jws, keys
from nova_vmi_attest.evidence.encoding import EncodingError
from nova_vmi_attest.evidence.jws import SignatureError

from .hostile import bounded, damaged

KEY, STRANGER = example.key("verifier"), example.key("stranger")
TRUSTED = [STRANGER.public_key(), KEY.public_key()]
CLAIMS = {"a": 1, "b": ["c"]}
KIND = "example+jwt"
TOKEN = jws.sign(CLAIMS, KEY, KIND)


def part(value: object) -> str:
    return encoding.base64url(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def test_signed_claims_come_back_with_their_key() -> None:
    claims, key = jws.verify(TOKEN, TRUSTED, KIND, 100)
    assert (claims, key) == (CLAIMS, KEY.public_key())


def test_is_a_jwt_to_others() -> None:
    assert jwt.decode(TOKEN, KEY.public_key(), algorithms=["ES256"]) == CLAIMS
    assert jwt.get_unverified_header(TOKEN) == {
        "alg": "ES256",
        "kid": keys.key_id(KEY.public_key()),
        "typ": KIND,
    }


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": "es256"},
        {"typ": "JWT"},
        {"typ": "other+jwt"},
        {"crit": ["b64"], "b64": False},
        {"jku": "https://example.org/keys"},
        {"jwk": {"kty": "EC"}},
        {"cty": "JWT"},
    ],
)
def test_headers_that_are_not_ours(header: dict[str, object]) -> None:
    members = {"alg": "ES256", "kid": keys.key_id(KEY.public_key()), "typ": KIND} | header
    _, body, signature = TOKEN.split(".")
    with pytest.raises(SignatureError, match="header"):
        jws.verify(f"{part(members)}.{body}.{signature}", TRUSTED, KIND, 100)


def test_a_public_key_is_no_shared_secret() -> None:
    header = part({"alg": "HS256", "kid": keys.key_id(KEY.public_key()), "typ": KIND})
    secret = example.public_pem(KEY.public_key()).encode()
    body = TOKEN.split(".")[1]
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    forged = algorithm.sign(f"{header}.{body}".encode(), secret)
    with pytest.raises(SignatureError, match="header"):
        jws.verify(f"{header}.{body}.{encoding.base64url(forged.ljust(64, b'0'))}", TRUSTED, KIND, 100)


def test_unknown_keys_and_wrong_names() -> None:
    with pytest.raises(SignatureError, match="unknown key"):
        jws.verify(TOKEN, [STRANGER.public_key()], KIND, 100)
    with pytest.raises(SignatureError, match="unknown key"):
        jws.verify(TOKEN, [], KIND, 100)
    renamed = example.token(CLAIMS, KEY, KIND, kid=keys.key_id(STRANGER.public_key()))
    with pytest.raises(SignatureError, match="signature"):
        jws.verify(renamed, TRUSTED, KIND, 100)


def test_header_need_not_name_a_key_as_text() -> None:
    _, body, signature = TOKEN.split(".")
    for kid in (None, 7, ["x"], {}):
        header = part({"alg": "ES256", "kid": kid, "typ": KIND})
        with pytest.raises(SignatureError, match="unknown key"):
            jws.verify(f"{header}.{body}.{signature}", TRUSTED, KIND, 100)


def test_size_of_claims_is_bounded() -> None:
    size = len(encoding.canonical(CLAIMS))
    assert jws.verify(TOKEN, TRUSTED, KIND, size)[0] == CLAIMS
    with pytest.raises(SignatureError, match="more than"):
        jws.verify(TOKEN, TRUSTED, KIND, size - 1)
    with pytest.raises(SignatureError, match="at most"):
        jws.verify(TOKEN + "A" * 5000, TRUSTED, KIND, size)


def test_claims_that_are_not_canonical() -> None:
    header = TOKEN.split(".")[0]
    body = encoding.base64url(b'{"a": 1}')
    algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
    signature = encoding.base64url(algorithm.sign(f"{header}.{body}".encode(), KEY))
    with pytest.raises(SignatureError, match="canonical"):
        jws.verify(f"{header}.{body}.{signature}", TRUSTED, KIND, 100)


def test_claims_without_canonical_form_are_not_signed() -> None:
    with pytest.raises(EncodingError):
        jws.sign({"a": 1.5}, KEY, KIND)


@bounded
@given(st.text(max_size=100) | damaged(TOKEN.encode()).map(lambda data: data.decode("latin-1")))
def test_any_other_text_is_refused(token: str) -> None:
    if token != TOKEN:
        with pytest.raises(SignatureError):
            jws.verify(token, TRUSTED, KIND, 100)
    else:
        assert jws.verify(token, TRUSTED, KIND, 100)[0] == CLAIMS
