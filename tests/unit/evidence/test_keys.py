# SPDX-License-Identifier: Apache-2.0
"""Key files, thumbprints and key sets."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import evidence_examples as example
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import encoding, keys
from nova_vmi_attest.evidence.keys import KeyFileError

from .hostile import bounded, damaged, json_values, mutated

KEY = example.key("verifier")
PUBLIC = KEY.public_key()
OTHER_CURVE = example.key("verifier", ec.SECP384R1())
JWKS = keys.encode_jwks([PUBLIC, example.key("stranger").public_key()])


def test_thumbprint_is_that_of_rfc7638() -> None:
    jwk = jwt.algorithms.ECAlgorithm.to_jwk(PUBLIC, as_dict=True)
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    data = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    assert keys.thumbprint(PUBLIC) == hashlib.sha256(data).digest()
    assert encoding.from_base64url(keys.key_id(PUBLIC), 32) == keys.thumbprint(PUBLIC)


def test_private_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = keys.generate()
    keys.save_private_key(path, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_private_key(path).private_numbers() == key.private_numbers()
    with pytest.raises(KeyFileError, match="not replaced"):
        keys.save_private_key(path, key)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.load_private_key(path)


def test_public_key_files(tmp_path: Path) -> None:
    pem, jwks = tmp_path / "key.pem", tmp_path / "keys.jwks"
    keys.save_public_key(pem, PUBLIC)
    jwks.write_bytes(JWKS)
    assert keys.load_public_key(pem) == PUBLIC
    assert keys.load_public_keys([pem, jwks]) == (PUBLIC, PUBLIC, example.key("stranger").public_key())


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n", b"x" * 70_000])
def test_files_that_hold_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    for load in (keys.load_private_key, keys.load_public_key):
        with pytest.raises(KeyFileError, match="key"):
            load(path)


def test_keys_of_another_type(tmp_path: Path) -> None:
    for name, key in (("ed", ed25519.Ed25519PrivateKey.generate()), ("p384", OTHER_CURVE)):
        private, public = tmp_path / name, tmp_path / f"{name}.pub"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        private.chmod(0o600)
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        with pytest.raises(KeyFileError, match="P-256"):
            keys.load_private_key(private)
        with pytest.raises(KeyFileError, match="P-256"):
            keys.load_public_key(public)
    with pytest.raises(KeyFileError, match="P-256"):
        keys.thumbprint(OTHER_CURVE.public_key())


def test_encrypted_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    encryption = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(
        KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="unencrypted"):
        keys.load_private_key(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for load in (keys.load_private_key, keys.load_public_key):
        with pytest.raises(KeyFileError, match="cannot read"):
            load(tmp_path / "missing")
    with pytest.raises(KeyFileError, match="cannot create"):
        keys.save_public_key(tmp_path / "missing" / "key", PUBLIC)


def test_key_set() -> None:
    members = json.loads(JWKS)["keys"]
    assert [member["kid"] for member in members] == [
        keys.key_id(PUBLIC),
        keys.key_id(example.key("stranger").public_key()),
    ]
    assert jwt.PyJWKSet.from_json(JWKS.decode())[keys.key_id(PUBLIC)].key == PUBLIC
    assert keys.decode_jwks(JWKS) == (PUBLIC, example.key("stranger").public_key())


def test_other_keys_of_a_set_are_passed_over() -> None:
    member = json.loads(JWKS)["keys"][0]
    others = [
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        member | {"use": "enc"},
        member | {"alg": "ECDH-ES"},
        7,
    ]
    assert keys.decode_jwks(json.dumps({"keys": [*others, member]}).encode()) == (PUBLIC,)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":' + b"[" * 50_000, b'{"keys":[' + b"1," * 64 + b"1]}",
        b"\xff", b" " * 70_000, b'{"keys":[{"kty":"EC","crv":"P-256"}]}',
        b'{"keys":[{"kty":"EC","crv":"P-256","x":"' + b"A" * 43 + b'","y":"' + b"A" * 43 + b'"}]}',
    ],
)  # fmt: skip
def test_bad_key_sets(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        keys.decode_jwks(data)


@bounded
@given(
    st.one_of(
        damaged(JWKS),
        mutated(json.loads(JWKS)).map(lambda v: json.dumps(v).encode()),
        json_values.map(lambda v: json.dumps(v).encode()),
    )
)
def test_any_key_set_is_read_or_refused(data: bytes) -> None:
    try:
        found = keys.decode_jwks(data)
    except KeyFileError:
        return
    assert all(isinstance(key.curve, ec.SECP256R1) for key in found)
