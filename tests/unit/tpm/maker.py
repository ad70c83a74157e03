# SPDX-License-Identifier: Apache-2.0
"""A TPM maker and its chips without chips: certificates, and credential activation as part 1 of the TPM 2.0
Library describes it, written apart from the code under test."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import importlib
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from tpm2_pytss.constants import TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_SYM_DEF_OBJECT, TPMU_SYM_KEY_BITS, TPMU_SYM_MODE

from nova_vmi_attest.tpm.device import AkPublic
from nova_vmi_attest.tpm.structures import Public

NOW = datetime.datetime.now(datetime.UTC)
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
EK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.ADMINWITHPOLICY | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
)  # fmt: skip
AK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SIGN_ENCRYPT
)  # fmt: skip


def _cfb() -> Any:
    """AES-CFB, which a TPM uses; cryptography moved it when it called the mode decrepit."""
    for module in ("decrepit.ciphers.modes", "primitives.ciphers.modes"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"cryptography.hazmat.{module}").CFB
    raise AssertionError("cryptography has no CFB")


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_area(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, attributes: int) -> bytes:
    """TPM2B_PUBLIC; a storage key protects its children with AES-128-CFB."""
    symmetric = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
    if attributes & TPMA_OBJECT.DECRYPT:
        symmetric = TPMT_SYM_DEF_OBJECT(
            algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
        )
    area = TPM2B_PUBLIC.from_pem(
        pem(key), objectAttributes=attributes, nameAlg=TPM2_ALG.SHA256, symmetric=symmetric
    )
    return bytes(area.marshal())


@dataclass
class Maker:
    """A root, an intermediate under it, and EK certificates of the shapes that makers are known for."""

    root_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.root = self._authority("maker root", self.root_key, "maker root", self.root_key, 1)
        self.intermediate = self._authority("maker CA", self.key, "maker root", self.root_key, 0)

    def _authority(
        self,
        subject: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        signer: ec.EllipticCurvePrivateKey,
        depth: int,
    ) -> x509.Certificate:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        return (
            x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=1)).not_valid_after(NOW +
            datetime.timedelta(days=900)) .add_extension(x509.BasicConstraints(True, depth),
            True).add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
            .sign(signer, hashes.SHA256())
        )  # fmt: skip

    def certify(
        self,
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        *,
        subject: str = "",
        usage: x509.ObjectIdentifier | None = EK_USAGE,
        critical_names: bool = True,
        not_after: datetime.datetime = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC),
    ) -> x509.Certificate:
        model = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "chip")])
        builder = (
            x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("maker CA"))
            .public_key(key).serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(hours=1)).not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(model)]), critical_names)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )  # fmt: skip
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        return builder.sign(self.key, hashes.SHA256())


class Chip:
    """An RSA EK and a P-256 AK whose private halves are in this process."""

    def __init__(self, maker: Maker) -> None:
        self.ek = rsa.generate_private_key(65537, 2048)
        self.ak = ec.generate_private_key(ec.SECP256R1())
        self.certificate = maker.certify(self.ek.public_key())

    def ek_certificate(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def ek_public(self) -> bytes:
        return public_area(self.ek, EK_ATTRIBUTES)

    def ak_public(self) -> bytes:
        return public_area(self.ak, AK_ATTRIBUTES)

    def provision_ak(self, handle: int) -> AkPublic:
        return AkPublic(self.ak_public(), Public.parse(self.ak_public()).name)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential."""
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        seed = self.ek.decrypt(encrypted_secret[2:], oaep)
        ak_name = Public.parse(self.ak_public()).name
        mac, sealed = credential_blob[4:36], credential_blob[36:]
        mac_key = _kdfa(seed, b"INTEGRITY", b"", 256)
        if not hmac.compare_digest(mac, hmac.digest(mac_key, sealed + ak_name, "sha256")):
            raise ValueError("TPM_RC_INTEGRITY")
        cipher = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", ak_name, 128)), _cfb()(bytes(16))).decryptor()
        opened = cipher.update(sealed) + cipher.finalize()
        return opened[2 : 2 + int.from_bytes(opened[:2], "big")]


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode with HMAC-SHA-256, one block."""
    block = b"\0\0\0\1" + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.new(key, block, hashlib.sha256).digest()[: bits // 8]
