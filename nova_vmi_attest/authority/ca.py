# SPDX-License-Identifier: Apache-2.0
"""The authority's key and certificate, and the attestation key certificates that it signs."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.keys import KeyFileError
from nova_vmi_attest.tpm.ak_certificate import (
    AK_CERTIFICATE_USAGE,
    EK_URN,
    HOST_URN,
    is_host_name,
)

# How far a host's clock may be behind the authority's.
_CLOCK_SKEW = datetime.timedelta(minutes=5)
# ub-common-name of RFC 5280.
_COMMON_NAME = 64


class AuthorityError(AttestError):
    """The authority's key or certificate cannot be used or made, or a certificate cannot be issued."""


class CertificateAuthority:
    """Signs attestation key certificates. :meth:`load` gives one."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def load(cls, key_path: Path, certificate_path: Path) -> CertificateAuthority:
        """Read key and certificate.

        :raises AuthorityError: a file cannot be read, the key is open to other users, or they do not belong
            together.
        """
        try:
            key = keys.load_private_key(key_path)
        except KeyFileError as error:
            raise AuthorityError(error.message, error.remedy) from error
        certificate = load_authorities(certificate_path)[0]
        if certificate.public_key() != key.public_key():
            raise AuthorityError(
                f"{certificate_path} is not the certificate of the key in {key_path}", "correct [authority]"
            )
        return cls(key, certificate)

    def issue(
        self,
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        host: str,
        ek_digest: str,
        lifetime: datetime.timedelta,
        now: datetime.datetime,
    ) -> x509.Certificate:
        """A certificate that says: this attestation key is in the TPM with that EK, which is in that host.

        The caller has checked all of it. The certificate ends no later than the authority's own.

        :param ek_digest: lowercase hex, as :func:`nova_vmi_attest.tpm.endorsement.ek_digest` gives it.
        :param now: aware UTC time.
        :raises AuthorityError: the name is not a host name, or the authority's certificate has ended.
        """
        if not is_host_name(host):
            raise AuthorityError("not a host name that a certificate can carry")
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        if end <= now:
            raise AuthorityError(
                "the authority's own certificate has ended", "make a new one and hand it out before using it"
            )
        names = [
            # Readers of certificates look for a dNSName; some host names hold underscores, which most accept.
            x509.DNSName(host),
            x509.UniformResourceIdentifier(HOST_URN + host),
            x509.UniformResourceIdentifier(EK_URN + ek_digest),
        ]
        return (
            x509.CertificateBuilder()
            .subject_name(_name(host[:_COMMON_NAME]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _CLOCK_SKEW, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([AK_CERTIFICATE_USAGE]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    def derive(self, purpose: bytes) -> bytes:
        """32 secret bytes for one purpose; the same for every process that holds the authority's key."""
        secret = self._key.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(hashes.SHA256(), 32, None, b"nova-vmi-attest " + purpose).derive(secret)


def create_ca(
    key_path: Path, certificate_path: Path, name: str = "nova-vmi-attest enrolment authority", years: int = 10
) -> x509.Certificate:
    """Make a P-256 key (mode 0600) and a self-signed certificate that may sign nothing but AK certificates.

    :raises AuthorityError: a file exists already or cannot be written; an existing file is never replaced.
    """
    if certificate_path.exists():
        raise AuthorityError(f"{certificate_path} exists already", "move it aside if it is to be replaced")
    key = keys.generate()
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=365 * years))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([AK_CERTIFICATE_USAGE]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    try:
        keys.save_private_key(key_path, key)
        with open(certificate_path, "xb", opener=_world_readable) as file:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
    except KeyFileError as error:
        raise AuthorityError(error.message, error.remedy) from error
    except OSError as error:
        raise AuthorityError(f"{certificate_path} cannot be written: {error.strerror}") from error
    return certificate


def load_authorities(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of authorities in a PEM file, at least one.

    :raises AuthorityError: it cannot be read or holds none.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise AuthorityError(
            f"{path} holds no readable certificate: {error}", "copy the authority's certificate there"
        ) from error


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, digital_signature: bool = False, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=certificates, crl_sign=certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _world_readable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)
