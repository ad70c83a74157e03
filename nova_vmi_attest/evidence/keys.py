# SPDX-License-Identifier: Apache-2.0
"""The P-256 keys that sign challenges, results and reference indexes: in files, and as RFC 7517 key sets.

A key is named by its RFC 7638 thumbprint everywhere: as ``kid``, in the binding of a quote, in logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import EncodingError

MAX_KEY_BYTES = 1 << 16
MAX_KEYS = 64


class KeyFileError(AttestError):
    """A key file or key set cannot be read, written or used."""


def generate() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key from the system's random numbers."""
    return ec.generate_private_key(ec.SECP256R1())


def thumbprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """The RFC 7638 thumbprint: 32 bytes, SHA-256 of the key's required JWK members.

    :raises KeyFileError: if the key is not on P-256.
    """
    return hashlib.sha256(encoding.canonical(_jwk(key))).digest()


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """The thumbprint as it stands in ``kid``: unpadded base64url."""
    return encoding.base64url(thumbprint(key))


def save_private_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write an unencrypted PKCS #8 PEM file of mode 0600. An existing file is never replaced.

    :raises KeyFileError: if the file exists or cannot be written.
    """
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, data, 0o600)


def save_public_key(path: Path, key: ec.EllipticCurvePublicKey) -> None:
    """Write a SubjectPublicKeyInfo PEM file of mode 0644. An existing file is never replaced.

    :raises KeyFileError: if the file exists or cannot be written.
    """
    data = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(path, data, 0o644)


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read what :func:`save_private_key` wrote.

    :raises KeyFileError: if it cannot be read, others than its owner may read or write it, or it is no
        unencrypted P-256 key.
    """
    data, mode = _read(path)
    if mode & 0o077:
        raise KeyFileError(f"the private key {path} is open to other users", f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"the key in {path} is not on the curve P-256")
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read one PEM public key.

    :raises KeyFileError: if it cannot be read or is no P-256 key.
    """
    data, _ = _read(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"the key in {path} is not on the curve P-256")
    return key


def load_public_keys(paths: Iterable[Path]) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """The keys of several files, in order. A PEM file holds one key, a ``.jwks`` or ``.json`` file a set.

    :raises KeyFileError: naming the file that cannot be used.
    """
    keys: list[ec.EllipticCurvePublicKey] = []
    for path in paths:
        if path.suffix in (".jwks", ".json"):
            keys.extend(decode_jwks(_read(path)[0]))
        else:
            keys.append(load_public_key(path))
    return tuple(keys)


def encode_jwks(keys: Sequence[ec.EllipticCurvePublicKey]) -> bytes:
    """An RFC 7517 key set of public keys for ES256 signatures, in canonical JSON.

    :raises KeyFileError: if a key is not on P-256.
    """
    members = [{**_jwk(key), "alg": "ES256", "kid": key_id(key), "use": "sig"} for key in keys]
    return encoding.canonical({"keys": members})


def decode_jwks(data: bytes) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """The P-256 signature keys of an RFC 7517 key set of at most 64; others in it are passed over.

    Other software writes key sets too, so the JSON need not be canonical. A ``kid`` is ignored: keys are
    named by their thumbprint.

    :raises KeyFileError: if it is no key set, or a P-256 key in it is malformed.
    """
    if len(data) > MAX_KEY_BYTES:
        raise KeyFileError(f"a key set of {len(data)} bytes is too large")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise KeyFileError("the key set is not JSON") from error
    members = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise KeyFileError(f"the key set is not an object with at most {MAX_KEYS} keys")
    keys = []
    for member in members:
        if not isinstance(member, dict) or (member.get("kty"), member.get("crv")) != ("EC", "P-256"):
            continue
        if member.get("use", "sig") == "sig" and member.get("alg", "ES256") == "ES256":
            keys.append(_from_jwk(member))
    return tuple(keys)


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    if not isinstance(key.curve, ec.SECP256R1):
        raise KeyFileError(f"a key on {key.curve.name} where P-256 is needed")
    numbers = key.public_numbers()
    return {
        "crv": "P-256",
        "kty": "EC",
        "x": encoding.base64url(numbers.x.to_bytes(32, "big")),
        "y": encoding.base64url(numbers.y.to_bytes(32, "big")),
    }


def _from_jwk(member: dict[str, object]) -> ec.EllipticCurvePublicKey:
    try:
        x = encoding.octets(member, "x", 32, minimum=32)
        y = encoding.octets(member, "y", 32, minimum=32)
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        )
        return numbers.public_key()
    except (EncodingError, ValueError) as error:
        raise KeyFileError("a P-256 key in the key set is malformed") from error


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    if len(data) > MAX_KEY_BYTES:
        raise KeyFileError(f"{path} is too large for a key")
    return data, mode


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists and is not replaced", "move it away first") from error
    except OSError as error:
        raise KeyFileError(f"cannot create {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
