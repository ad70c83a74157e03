# SPDX-License-Identifier: Apache-2.0
"""What makes an attestation key a host's: its certificate by the enrolment authority.

The profile is that of the TCG's AK certificates: extended key usage 2.23.133.8.3, and the host as the one
dNSName of the subject alternative name. The authority signs directly: there is no chain to build, and each CA
certificate that the caller gives is trusted by itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nova_vmi_attest.errors import AttestError

AK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate


class CertificateError(AttestError):
    """A certificate does not make a key the attestation key of this host."""


def verify_ak_certificate(
    data: bytes, ca_certificates: Sequence[x509.Certificate], host: str, now: float
) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """The attestation key of ``host`` that a DER certificate states.

    :param ca_certificates: the authority's certificates that the caller trusts.
    :param host: the name that the certificate must have, letter for letter.
    :param now: the moment at which it must be valid, seconds since 1970.
    :raises CertificateError: naming what is wrong. NOT checked: revocation.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        _check_issuer(certificate, ca_certificates, now)
        _check_profile(certificate, host)
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise CertificateError(f"the AK certificate of host {host} cannot be read: {error}") from error
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise CertificateError(f"the AK certificate of host {host} holds neither an RSA nor an ECC key")
    return key


def _check_issuer(
    certificate: x509.Certificate, ca_certificates: Sequence[x509.Certificate], now: float
) -> None:
    for ca in ca_certificates:
        if ca.subject == certificate.issuer:
            try:
                certificate.verify_directly_issued_by(ca)
            except InvalidSignature:
                continue
            _check_ca(ca)
            _check_validity(ca, "CA", now)
            _check_validity(certificate, "AK", now)
            return
    issuer = certificate.issuer.rfc4514_string()[:200]
    raise CertificateError(
        f"the AK certificate is not signed by a trusted authority (issuer {issuer})",
        "give the certificate of the authority that enrolled the host",
    )


def _check_ca(ca: x509.Certificate) -> None:
    try:
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateError("the CA certificate lacks basicConstraints or keyUsage") from error
    if not constraints.ca or not usage.key_cert_sign:
        raise CertificateError("the certificate given as the CA's is not one of a CA")


def _check_validity(certificate: x509.Certificate, whose: str, now: float) -> None:
    first = certificate.not_valid_before_utc.timestamp()
    last = certificate.not_valid_after_utc.timestamp()
    if not first <= now <= last:
        begin, end = (datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat() for t in (first, last))
        raise CertificateError(f"the {whose} certificate is valid from {begin} to {end} only")


def _check_profile(certificate: x509.Certificate, host: str) -> None:
    extensions = certificate.extensions
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise CertificateError(f"the AK certificate lacks {error.oid.dotted_string}") from error
    if list(usages) != [AK_CERTIFICATE_USAGE]:
        raise CertificateError("the extended key usage of the AK certificate is not 2.23.133.8.3 alone")
    hosts = names.get_values_for_type(x509.DNSName)
    if hosts != [host]:
        raise CertificateError(f"the AK certificate names {hosts[:4]}, not {host}")
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CertificateError("the AK certificate is one of a CA")
    except x509.ExtensionNotFound:
        pass
