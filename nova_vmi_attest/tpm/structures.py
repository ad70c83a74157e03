# SPDX-License-Identifier: Apache-2.0
"""Bounded parsers of the TPM structures that cross the wire, without a TPM library.

TPM 2.0 Library Part 2: TPMS_ATTEST (10.12.12), TPMT_SIGNATURE (11.3.4), TPM2B_PUBLIC (12.2.5). Only what this
project produces is accepted: quotes over SHA-256 or SHA-384, ECDSA and RSASSA signatures, RSA and P-256 /
P-384 keys. Every structure must end where its input ends.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nova_vmi_attest.errors import AttestError

GENERATED_MAGIC = 0xFF544347
ST_ATTEST_QUOTE = 0x8018
ALG_RSA, ALG_ECC = 0x0001, 0x0023
ALG_SHA256, ALG_SHA384 = 0x000B, 0x000C
ALG_NULL = 0x0010
ALG_RSASSA, ALG_RSAPSS, ALG_OAEP, ALG_RSAES = 0x0014, 0x0016, 0x0017, 0x0015
ALG_ECDSA, ALG_ECDH, ALG_ECDAA, ALG_SM2, ALG_ECSCHNORR, ALG_ECMQV = 0x18, 0x19, 0x1A, 0x1B, 0x1C, 0x1D
_BLOCK_CIPHERS = (0x0006, 0x0013, 0x0026)  # AES, SM4, Camellia
_CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
_HASHES = {ALG_SHA256: "sha256", ALG_SHA384: "sha384"}

MAX_STRUCTURE = 4096
_MAX_SELECTIONS = 16
_MAX_DIGEST = 64


class StructureError(AttestError):
    """Octets are not the TPM structure that they should be."""


class Attribute(enum.IntFlag):
    """TPMA_OBJECT (Part 2, 8.3): what a key may do and where it may live."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


@dataclass(frozen=True, slots=True)
class Attest:
    """A TPMS_ATTEST of type quote: what a TPM states about its PCRs, if the signature is good.

    ``clock`` is in milliseconds. ``pcr_selection`` has one ``(hash algorithm, PCR indices ascending)`` for
    each bank, in the order given. ``pcr_digest`` is made with the hash of the signature scheme, not of the
    bank.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    pcr_selection: tuple[tuple[int, tuple[int, ...]], ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, data: bytes) -> Attest:
        """Read a marshalled TPMS_ATTEST (without a size in front).

        :raises StructureError: if the magic or the type is another, or it is cut, too long or out of bounds.
        """
        reader = _Reader(data, "attestation")
        if reader.number(4) != GENERATED_MAGIC:
            raise StructureError("the attestation does not begin with TPM_GENERATED")
        if (kind := reader.number(2)) != ST_ATTEST_QUOTE:
            raise StructureError(f"the attestation is of type {kind:#06x}, not a quote")
        qualified_signer = reader.sized(_MAX_DIGEST + 2)
        extra_data = reader.sized(_MAX_DIGEST)
        clock, reset_count, restart_count = reader.number(8), reader.number(4), reader.number(4)
        if (safe := reader.number(1)) > 1:
            raise StructureError("the clock of the attestation is neither safe nor unsafe")
        firmware_version = reader.number(8)
        if (count := reader.number(4)) > _MAX_SELECTIONS:
            raise StructureError(f"the attestation selects {count} PCR banks")
        selection = tuple(_selection(reader) for _ in range(count))
        pcr_digest = reader.sized(_MAX_DIGEST)
        reader.end()
        return cls(
            qualified_signer, extra_data, clock, reset_count, restart_count, bool(safe),
            firmware_version, selection, pcr_digest,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE. ``hash_name`` is ``sha256`` or ``sha384``.

    ECDSA has ``r`` and ``s``; RSASSA has ``rsa``, the octets of the signature.
    """

    algorithm: int
    hash_name: str
    r: int = 0
    s: int = 0
    rsa: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Signature:
        """Read a marshalled TPMT_SIGNATURE.

        :raises StructureError: if the scheme or the hash is another, or it is cut, too long or out of bounds.
        """
        reader = _Reader(data, "signature")
        algorithm = reader.number(2)
        if algorithm not in (ALG_ECDSA, ALG_RSASSA):
            raise StructureError(f"the signature scheme {algorithm:#06x} is neither ECDSA nor RSASSA")
        hash_name = _hash_name(reader.number(2), "signature")
        if algorithm == ALG_RSASSA:
            signature = cls(algorithm, hash_name, rsa=reader.sized(512))
        else:
            r, s = reader.sized(48), reader.sized(48)
            signature = cls(algorithm, hash_name, int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        reader.end()
        return signature


@dataclass(frozen=True, slots=True)
class Public:
    """The public area of a TPM key, RSA or ECC.

    ``name`` is its TPM name: the name algorithm (2 octets) and the digest of the area. ``key`` is the key
    itself.
    """

    algorithm: int
    name_algorithm: int
    attributes: Attribute
    auth_policy: bytes
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    name: bytes

    @classmethod
    def parse(cls, data: bytes) -> Public:
        """Read a TPM2B_PUBLIC (with its size in front).

        :raises StructureError: if it is no RSA or P-256 / P-384 key, its point is not on the curve, its name
            algorithm is not SHA-256 or SHA-384, or it is cut, too long or out of bounds.
        """
        outer = _Reader(data, "public area")
        area = outer.sized(MAX_STRUCTURE)
        outer.end()
        reader = _Reader(area, "public area")
        algorithm, name_algorithm = reader.number(2), reader.number(2)
        hash_name = _hash_name(name_algorithm, "name of the key")
        attributes = reader.number(4)
        if attributes & ~int(_ALL_ATTRIBUTES):
            raise StructureError(f"the public area has unknown attributes {attributes:#x}")
        auth_policy = reader.sized(_MAX_DIGEST)
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
        if algorithm == ALG_RSA:
            key = _rsa_key(reader)
        elif algorithm == ALG_ECC:
            key = _ecc_key(reader)
        else:
            raise StructureError(f"the public area is of type {algorithm:#06x}, neither RSA nor ECC")
        reader.end()
        name = name_algorithm.to_bytes(2, "big") + hashlib.new(hash_name, area).digest()
        return cls(algorithm, name_algorithm, Attribute(attributes), auth_policy, key, name)


class _Reader:
    """Takes big-endian fields from the front of octets and never looks past their end."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MAX_STRUCTURE:
            raise StructureError(
                f"the {what} has {len(data)} bytes where at most {MAX_STRUCTURE} are accepted"
            )
        self._data, self._position, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise StructureError(f"the {self._what} is cut at byte {len(self._data)}")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, maximum: int) -> bytes:
        count = self.number(2)
        if count > maximum:
            raise StructureError(f"the {self._what} has a field of {count} bytes where {maximum} is the most")
        return self.take(count)

    def end(self) -> None:
        if self._position != len(self._data):
            raise StructureError(f"the {self._what} has {len(self._data) - self._position} bytes too many")


def _selection(reader: _Reader) -> tuple[int, tuple[int, ...]]:
    algorithm = reader.number(2)
    if not 1 <= (size := reader.number(1)) <= 4:
        raise StructureError(f"the attestation has a PCR bitmap of {size} bytes")
    bitmap = int.from_bytes(reader.take(size), "little")
    return algorithm, tuple(index for index in range(size * 8) if bitmap >> index & 1)


def _hash_name(algorithm: int, what: str) -> str:
    try:
        return _HASHES[algorithm]
    except KeyError as error:
        raise StructureError(f"the hash of the {what} is {algorithm:#06x}, not SHA-256 or SHA-384") from error


def _skip_symmetric(reader: _Reader) -> None:
    algorithm = reader.number(2)
    if algorithm in _BLOCK_CIPHERS:
        reader.take(4)  # key bits and mode
    elif algorithm != ALG_NULL:
        raise StructureError(f"the public area names the symmetric algorithm {algorithm:#06x}")


def _skip_scheme(reader: _Reader, hashed: tuple[int, ...], bare: tuple[int, ...]) -> None:
    algorithm = reader.number(2)
    if algorithm in hashed:
        reader.take(4 if algorithm == ALG_ECDAA else 2)
    elif algorithm not in bare:
        raise StructureError(f"the public area names the scheme {algorithm:#06x}")


def _rsa_key(reader: _Reader) -> rsa.RSAPublicKey:
    _skip_symmetric(reader)
    _skip_scheme(reader, (ALG_RSASSA, ALG_RSAPSS, ALG_OAEP), (ALG_NULL, ALG_RSAES))
    bits = reader.number(2)
    exponent = reader.number(4) or 65537
    modulus = int.from_bytes(reader.sized(512), "big")
    if bits not in (2048, 3072, 4096) or modulus.bit_length() != bits:
        raise StructureError(f"an RSA modulus of {modulus.bit_length()} bits is declared as one of {bits}")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise StructureError("the public area holds no usable RSA key") from error


def _ecc_key(reader: _Reader) -> ec.EllipticCurvePublicKey:
    _skip_symmetric(reader)
    _skip_scheme(reader, (ALG_ECDSA, ALG_ECDH, ALG_ECDAA, ALG_SM2, ALG_ECSCHNORR, ALG_ECMQV), (ALG_NULL,))
    identifier = reader.number(2)
    if identifier not in _CURVES:
        raise StructureError(f"the curve {identifier:#06x} is neither P-256 nor P-384")
    if reader.number(2) != ALG_NULL:
        reader.take(2)  # hash of the key derivation
    x, y = reader.sized(48), reader.sized(48)
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), _CURVES[identifier]
        ).public_key()
    except ValueError as error:
        raise StructureError("the point of the public area is not on its curve") from error


_ALL_ATTRIBUTES = Attribute(sum(Attribute))
