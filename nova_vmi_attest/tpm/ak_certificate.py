# SPDX-License-Identifier: Apache-2.0
"""What an attestation key certificate says, and the one rule by which everybody who relies on one reads it.

The host is named by a URI (``urn:nova-vmi-attest:host:<name>``), because a common name ends at 64 characters
and a DNS name cannot hold an underscore; another URI carries the digest of the EK, so that certificates of
one TPM are known as such. Sources: RFC 5280; TCG EK Credential Profile (EKU tcg-kp-AIKCertificate).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.tpm.endorsement import (
    CERTIFICATE_FAULTS,
    EndorsementError,
    certified_key,
    load_certificate,
)

# tcg-kp-AIKCertificate
AK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.3")
HOST_URN = "urn:nova-vmi-attest:host:"
EK_URN = "urn:nova-vmi-attest:ek:sha256:"
MAX_HOST_NAME = 253

_HOST_NAME = re.compile(rf"(?=.{{1,{MAX_HOST_NAME}}}\Z)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class AkCertificateError(AttestError):
    """A certificate is not a valid attestation key certificate of a known authority."""


@dataclass(frozen=True, slots=True)
class AkCertificate:
    """A certificate that :func:`verify_ak_certificate` accepted.

    :param host: the host's name, as Nova knows it.
    :param ek_digest: SHA-256 of the EK's SubjectPublicKeyInfo, lowercase hex.
    :param not_after: end of validity, seconds since 1970.
    """

    host: str
    ek_digest: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    serial: int
    not_before: int
    not_after: int


def is_host_name(name: str) -> bool:
    """The one rule for host names: 1 to 253 letters, digits, dots, dashes, underscores, no sign at an end."""
    return _HOST_NAME.fullmatch(name) is not None


def verify_ak_certificate(
    der: bytes, authorities: Sequence[x509.Certificate], host: str, now: float
) -> AkCertificate:
    """Check that a certificate makes a key the attestation key of ``host``, and read it.

    Checked: issuer and signature, validity of both at ``now``, that the issuer is a CA and the subject is
    not, EKU 2.23.133.8.3, key usage digitalSignature, exactly one host and one EK, and the host's name letter
    for letter. NOT checked: revocation.

    :param authorities: the authority's certificates that the caller trusts, each by itself.
    :param now: the moment at which it must be valid, seconds since 1970.
    :raises AkCertificateError: naming what is wrong.
    """
    try:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise AkCertificateError(f"{now} is no moment") from error
    try:
        certificate = load_certificate(der)
        key = certified_key(certificate)
    except EndorsementError as error:
        raise AkCertificateError(f"the attestation key certificate is malformed: {error.message}") from error
    issuer = _issuer(certificate, authorities)
    for which, checked in (("the attestation key certificate", certificate), ("the authority's", issuer)):
        if not checked.not_valid_before_utc <= moment <= checked.not_valid_after_utc:
            raise AkCertificateError(f"{which} is not valid at {moment.isoformat(timespec='seconds')}")
    try:
        named, ek_digest = _names(certificate)
    except (x509.ExtensionNotFound, *CERTIFICATE_FAULTS) as error:
        raise AkCertificateError(f"not an attestation key certificate: {error}") from error
    if named != host:
        raise AkCertificateError(
            f"the attestation key certificate names {named}, not {host!r:.256}", "check [agent] host"
        )
    return AkCertificate(
        host, ek_digest, key, certificate.serial_number,
        int(certificate.not_valid_before_utc.timestamp()), int(certificate.not_valid_after_utc.timestamp()),
    )  # fmt: skip


def _issuer(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> x509.Certificate:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
            if authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                return authority
        except (InvalidSignature, x509.ExtensionNotFound, *CERTIFICATE_FAULTS):
            continue
    raise AkCertificateError(
        "the attestation key certificate was not issued by a configured authority",
        "copy the authority's certificate to [agent] and [verifier] authority_certificates",
    )


def _names(certificate: x509.Certificate) -> tuple[str, str]:
    """(host, EK digest); raises ValueError or the extension errors of cryptography."""
    extensions = certificate.extensions
    if AK_CERTIFICATE_USAGE not in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
        raise ValueError("extended key usage 2.23.133.8.3 is missing")
    if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
        raise ValueError("its key may not sign")
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it is a CA's")
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = [uri.removeprefix(HOST_URN) for uri in uris if uri.startswith(HOST_URN)]
    digests = [uri.removeprefix(EK_URN) for uri in uris if uri.startswith(EK_URN)]
    if len(hosts) != 1 or not is_host_name(hosts[0]):
        raise ValueError("it does not name one host")
    if len(digests) != 1 or not _DIGEST.fullmatch(digests[0]):
        raise ValueError("it does not name one EK")
    return hosts[0], digests[0]
