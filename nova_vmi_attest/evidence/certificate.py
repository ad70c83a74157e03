# SPDX-License-Identifier: Apache-2.0
"""The attestation key of one host at one moment, for who holds the authority's certificate and no service."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.tpm import ak_certificate
from nova_vmi_attest.tpm.ak_certificate import AkCertificateError


class CertificateError(AttestError):
    """A certificate does not make a key the attestation key of this host."""


def verify_ak_certificate(
    data: bytes, ca_certificates: Sequence[x509.Certificate], host: str, now: float
) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """The attestation key of ``host`` that a DER certificate states.

    :param ca_certificates: the authority's certificates that the caller trusts, each by itself.
    :param host: the name that the certificate must have, letter for letter.
    :param now: the moment at which it must be valid, seconds since 1970.
    :raises CertificateError: naming what is wrong. NOT checked: revocation.
    """
    try:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise CertificateError(f"{now} is no moment") from error
    try:
        certificate = ak_certificate.verify_ak_certificate(data, ca_certificates, moment)
    except AkCertificateError as error:
        raise CertificateError(error.message) from error
    if certificate.host != host:
        raise CertificateError(f"the attestation key certificate names {certificate.host}, not {host}")
    return certificate.key
