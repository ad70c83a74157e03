# SPDX-License-Identifier: Apache-2.0
"""The host's side of enrolment: get a certificate for the attestation key, believe it only after checking,
renew it.

The authority is reached over a bus that every compute host can speak on, so its answer counts for nothing
until the certificate verifies under the authority's own, names this host and holds this TPM's key.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import oslo_messaging
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_log import log

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.tpm.ak_certificate import AkCertificate, AkCertificateError, verify_ak_certificate
from nova_vmi_attest.tpm.device import AkPublic
from nova_vmi_attest.tpm.endorsement import CERTIFICATE_FAULTS, MAX_CERTIFICATE
from nova_vmi_attest.tpm.structures import MAX_STRUCTURE, Public

LOG = log.getLogger(__name__)

# Renewed when less than this part of its life is left.
_RENEWAL = 1 / 3


class EnrolmentError(AttestError):
    """The authority refused or did not answer, or its answer cannot be believed."""


class AuthorityCaller(Protocol):
    """What enrolment asks of the authority; :class:`nova_vmi_attest.messaging.AuthorityClient` has it."""

    def begin_enrolment(self, request: Mapping[str, str]) -> dict[str, str]: ...
    def complete_enrolment(self, enrolment: str, proof: str) -> dict[str, str]: ...


class EnrolmentTpm(Protocol):
    """What enrolment asks of a TPM; :class:`nova_vmi_attest.tpm.device.Tpm` has it."""

    def ek_certificate(self) -> bytes: ...
    def ek_public(self) -> bytes: ...
    def provision_ak(self, handle: int) -> AkPublic: ...
    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes: ...


def enrol(
    tpm: EnrolmentTpm,
    authority: AuthorityCaller,
    host: str,
    ak: AkPublic,
    authorities: tuple[x509.Certificate, ...],
    now: int,
) -> bytes:
    """Obtain a certificate (DER) for ``ak`` and check it.

    :param ak: what :meth:`Tpm.provision_ak` returned.
    :param authorities: the certificates that the answer must verify under.
    :param now: seconds since 1970.
    :raises EnrolmentError: refused, no answer, or an answer that cannot be believed.
    :raises TpmError: from the TPM.
    """
    request = {
        "host": host,
        "ek_certificate": _base64(tpm.ek_certificate()),
        "ek_public": _base64(tpm.ek_public()),
        "ak_public": _base64(ak.public),
    }
    try:
        offer = authority.begin_enrolment(request)
        secret = tpm.activate(
            _octets(offer, "credential", MAX_STRUCTURE, host), _octets(offer, "secret", MAX_STRUCTURE, host)
        )
        answer = authority.complete_enrolment(_member(offer, "enrolment", host), _base64(secret))
    except oslo_messaging.MessagingException as error:
        raise EnrolmentError(
            f"host {host}: the enrolment authority did not answer: {error}",
            "check that nova-vmi-attest-authority runs and that both use the same transport_url",
        ) from error
    pem = _member(answer, "certificate", host)
    try:
        der = x509.load_pem_x509_certificate(pem.encode()[: 2 * MAX_CERTIFICATE]).public_bytes(Encoding.DER)
    except CERTIFICATE_FAULTS as error:
        raise EnrolmentError(f"host {host}: the authority's answer holds no certificate: {error}") from error
    _accept(der, host, ak, authorities, now)
    return der


class Enrolment:
    """Keeps one host enrolled.

    :param store: where the certificate (PEM) is kept across restarts.
    :param authorities: PEM file with the authority's certificates; read again at each enrolment.
    :param ak_handle: persistent handle of the attestation key.
    """

    def __init__(
        self,
        tpm: EnrolmentTpm,
        authority: AuthorityCaller,
        host: str,
        store: Path,
        authorities: Path,
        ak_handle: int,
    ) -> None:
        self._tpm = tpm
        self._authority = authority
        self._host = host
        self._store = store
        self._authorities = authorities
        self._ak_handle = ak_handle
        self._ak: AkPublic | None = None
        self._current: tuple[bytes, AkCertificate] | None = None

    def certificate_der(self) -> bytes:
        """The certificate in use.

        :raises EnrolmentError: the host is not enrolled yet.
        """
        if self._current is None:
            raise EnrolmentError(f"host {self._host} is not enrolled yet", "see the log for the reason")
        return self._current[0]

    def ensure(self, now: int) -> bytes:
        """The certificate (DER), after enrolling or renewing if it is time to. Not for several threads at
        once.

        A renewal that fails is logged and the certificate used on while it is valid.

        :param now: seconds since 1970.
        :raises EnrolmentError: there is no valid certificate and none was to be had.
        :raises TpmError: the attestation key cannot be used.
        """
        if self._ak is None:
            self._ak = self._tpm.provision_ak(self._ak_handle)
            self._current = self._load(self._ak, now)
        if self._current is not None and not _due(self._current[1], now):
            return self._current[0]
        try:
            self._renew(self._ak, now)
        except EnrolmentError as error:
            if self._current is None or self._current[1].not_after <= now:
                self._current = None
                raise
            LOG.warning("host %s: the certificate was not renewed: %s", self._host, error)
        return self.certificate_der()

    def _renew(self, ak: AkPublic, now: int) -> None:
        authorities = self._read_authorities()
        der = enrol(self._tpm, self._authority, self._host, ak, authorities, now)
        certificate = _accept(der, self._host, ak, authorities, now)
        try:
            _write(self._store, x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        except OSError as error:
            raise EnrolmentError(
                f"{self._store} cannot be written: {error.strerror}", "check the disk and [agent] state_path"
            ) from error
        self._current = (der, certificate)
        LOG.info(
            "host %s: enrolled until %s", self._host, datetime.datetime.fromtimestamp(certificate.not_after)
        )

    def _load(self, ak: AkPublic, now: int) -> tuple[bytes, AkCertificate] | None:
        """The stored certificate, unless it is missing, outdated or of another key, name or authority."""
        try:
            with self._store.open("rb") as file:
                der = x509.load_pem_x509_certificate(file.read(2 * MAX_CERTIFICATE)).public_bytes(
                    Encoding.DER
                )
            return der, _accept(der, self._host, ak, self._read_authorities(), now)
        except FileNotFoundError:
            return None
        except (OSError, EnrolmentError, *CERTIFICATE_FAULTS) as error:
            LOG.info("host %s: the stored certificate is of no use: %s", self._host, error)
            return None

    def _read_authorities(self) -> tuple[x509.Certificate, ...]:
        try:
            return tuple(x509.load_pem_x509_certificates(self._authorities.read_bytes()))
        except (OSError, ValueError) as error:
            raise EnrolmentError(
                f"{self._authorities} holds no readable certificate: {error}",
                "copy the authority's certificate there ([agent] authority_certificates)",
            ) from error


def _accept(
    der: bytes, host: str, ak: AkPublic, authorities: tuple[x509.Certificate, ...], now: int
) -> AkCertificate:
    """Check that a certificate is for this host and this key."""
    try:
        certificate = verify_ak_certificate(der, authorities, host, now)
    except AkCertificateError as error:
        raise EnrolmentError(f"host {host}: {error.message}", error.remedy) from error
    if certificate.key != Public.parse(ak.public).key:
        raise EnrolmentError(f"host {host}: the certificate is for another key than this TPM's")
    return certificate


def _due(certificate: AkCertificate, now: int) -> bool:
    life = certificate.not_after - certificate.not_before
    return certificate.not_after - now < life * _RENEWAL


def _member(answer: object, name: str, host: str) -> str:
    """One text member of the authority's answer; a refusal becomes the error that it is."""
    if not isinstance(answer, Mapping):
        raise EnrolmentError(f"host {host}: the authority's answer is malformed")
    if "refused" in answer:
        raise EnrolmentError(
            f"host {host}: the enrolment authority refused: {str(answer['refused'])[:1024]}",
            str(answer.get("remedy", ""))[:1024],
        )
    value = answer.get(name)
    if not isinstance(value, str):
        raise EnrolmentError(f"host {host}: the authority's answer lacks {name}")
    return value


def _octets(answer: object, name: str, limit: int, host: str) -> bytes:
    value = _member(answer, name, host)
    try:
        if len(value) <= 2 * limit:
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise EnrolmentError(f"host {host}: {name} in the authority's answer is not base64")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once, readable by all; durable when this returns."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
