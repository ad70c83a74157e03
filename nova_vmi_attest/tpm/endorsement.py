# SPDX-License-Identifier: Apache-2.0
"""The endorsement: reading an EK certificate as chips really store it, and checking its chain to a maker's
root.

Sources: TCG EK Credential Profile for TPM Family 2.0 (level 0, version 2.5), RFC 5280. The chain says that a
maker vouches for a TPM with this EK; it does not say which host the TPM sits in. That is the registry's
business.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import crypto

from nova_vmi_attest.errors import AttestError

# tcg-kp-EKCertificate
EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
# What cryptography raises for a certificate that is not well-formed, when it is read or one of its fields is.
CERTIFICATE_FAULTS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
MAX_CERTIFICATE = 1 << 14
MAX_INTERMEDIATES = 16
# CAs in a trust directory: a maker's bundle holds a few hundred.
MAX_TRUSTED = 4096
MAX_BUNDLE = 1 << 24

EndorsementKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class EndorsementError(AttestError):
    """An EK certificate that cannot be read, or that no configured root vouches for."""


def certificate_from_nv(data: bytes) -> bytes:
    """The DER certificate inside what an NV index holds.

    Chips pad the index with 0x00 or 0xff, and some wrap the certificate in an OCTET STRING: both are removed.
    What remains is exactly one DER SEQUENCE; whether it is a certificate is not checked here.
    """
    if data[:1] == b"\x04":
        start, end = _der_body(data)
        data = data[start:end]
    if data[:1] != b"\x30":
        raise EndorsementError(
            "the TPM's NV index for the EK certificate holds no DER certificate",
            "ask the TPM's maker for the EK certificate, or provision the index with it",
        )
    return data[: _der_body(data)[1]]


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one DER certificate of at most 16 KiB. Nothing is verified.

    :raises EndorsementError: it is no certificate, or one with the DER faults that some makers are known for.
    """
    if len(der) > MAX_CERTIFICATE:
        raise EndorsementError(f"a certificate of {len(der)} bytes is beyond the limit of {MAX_CERTIFICATE}")
    try:
        return x509.load_der_x509_certificate(der)
    except CERTIFICATE_FAULTS as error:
        raise EndorsementError(
            f"not a readable certificate: {error}",
            "some makers' EK certificates have wrong DER; ask the maker for a corrected one",
        ) from error


def certified_key(certificate: x509.Certificate) -> EndorsementKey:
    """The RSA or elliptic curve key that a certificate names.

    :raises EndorsementError: another kind of key, or an RSAES-OAEP one as some old chips' certificates carry
        it.
    """
    try:
        key = certificate.public_key()
    except CERTIFICATE_FAULTS as error:
        raise EndorsementError(
            f"the key in the EK certificate cannot be read: {error}",
            "certificates that name the key as RSAES-OAEP are not supported; use the chip's ECC EK",
        ) from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EndorsementError("the EK certificate names a key that is neither RSA nor elliptic curve")
    return key


def ek_digest(key: EndorsementKey) -> str:
    """How the registry names an EK: SHA-256 of its DER SubjectPublicKeyInfo, in lowercase hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def verify_ek_chain(
    leaf_der: bytes,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> x509.Certificate:
    """Check an EK certificate up to one of ``roots`` and give it back parsed.

    Checked: signatures, validity at ``now``, CA constraints and path length (RFC 5280 as OpenSSL implements
    it; unknown critical extensions are refused), and that the leaf carries EKU 2.23.133.8.1. An empty
    subject, a critical SAN with a directory name and notAfter 9999 are what TPM makers do, and pass. NOT
    checked: revocation, and which host the TPM is in.

    :param now: aware UTC time.
    :raises EndorsementError: any of these fails, or there is no root to trust.
    """
    if not roots:
        raise EndorsementError(
            "no root certificate of a TPM maker is configured", "put PEM files into [authority] ek_roots"
        )
    leaf = load_certificate(leaf_der)
    # A key that cannot be read fails here with its own remedy, not deep in the verifier.
    certified_key(leaf)
    try:
        _demand_ek_usage(leaf)
        _verify_path(leaf, intermediates, roots, now)
    except (crypto.Error, crypto.X509StoreContextError, x509.ExtensionNotFound, *CERTIFICATE_FAULTS) as error:
        raise EndorsementError(
            f"the EK certificate does not chain to a configured root: {error}",
            "add the TPM maker's root to [authority] ek_roots and its intermediates to ek_intermediates",
        ) from error
    return leaf


def _verify_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> None:
    """Have OpenSSL build and check a path.

    No purpose is set, since an EK certificate is neither for TLS nor mail, and no strictness: makers leave a
    SAN uncritical where the subject is empty. What strictness would demand of CAs is checked here.
    """
    store = crypto.X509Store()
    store.set_time(now)
    for root in roots:
        store.add_cert(crypto.X509.from_cryptography(root))
    chain = [crypto.X509.from_cryptography(certificate) for certificate in intermediates]
    path = crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), chain).get_verified_chain()
    if len(path) > MAX_INTERMEDIATES + 2:
        raise ValueError(f"its path has {len(path)} certificates")
    for issuer in (certificate.to_cryptography() for certificate in path[1:]):
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError(f"{issuer.subject.rfc4514_string()} is no CA")


def _demand_ek_usage(certificate: x509.Certificate) -> None:
    if (
        EK_CERTIFICATE_USAGE
        not in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    ):
        raise ValueError("not an EK certificate (extended key usage 2.23.133.8.1 is missing)")


def load_trusted(directory: Path) -> tuple[x509.Certificate, ...]:
    """Every certificate in the ``*.pem`` and ``*.crt`` files of a directory; a file may hold several.

    :raises EndorsementError: the directory or a file cannot be read, or holds something else or too much.
    """
    found: list[x509.Certificate] = []
    try:
        for path in _pem_files(directory):
            if path.stat().st_size > MAX_BUNDLE:
                raise EndorsementError(f"{path} is larger than {MAX_BUNDLE} bytes")
            found.extend(x509.load_pem_x509_certificates(path.read_bytes()))
            if len(found) > MAX_TRUSTED:
                raise EndorsementError(f"{directory} holds more than {MAX_TRUSTED} certificates")
    except (OSError, ValueError) as error:
        raise EndorsementError(
            f"certificates in {directory} cannot be read: {error}", "the directory must hold PEM files only"
        ) from error
    return tuple(found)


def _pem_files(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in (".pem", ".crt"))


def _der_body(data: bytes) -> tuple[int, int]:
    """Where the content of the DER element at the start of ``data`` begins and ends."""
    if len(data) < 2:
        raise EndorsementError("the EK certificate is cut short")
    start, length = 2, data[1]
    if length & 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 3:
            raise EndorsementError("the EK certificate has an impossible DER length")
        start += octets
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise EndorsementError("the EK certificate is cut short")
    return start, start + length
