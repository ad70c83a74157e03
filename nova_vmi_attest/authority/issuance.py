# SPDX-License-Identifier: Apache-2.0
"""Enrolment: from a host's claim to its attestation key certificate, in two steps.

``begin`` checks what was claimed and answers with a secret that only the claimed TPM, holding the claimed
key, can open; ``complete`` takes the secret and issues. What has to be remembered in between travels with the
host, sealed by the authority (Fernet, under a key derived from the CA's), so forged requests occupy no memory
here, and any process of the authority can complete what another one began.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_log import log
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from nova_vmi_attest.authority.ca import CertificateAuthority
from nova_vmi_attest.db.models import AkCertificate
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.records import audit, registry
from nova_vmi_attest.records.pending import PendingHosts
from nova_vmi_attest.tpm.ak_certificate import is_host_name
from nova_vmi_attest.tpm.credential import make_challenge
from nova_vmi_attest.tpm.endorsement import (
    MAX_CERTIFICATE,
    certified_key,
    ek_digest,
    load_certificate,
    verify_ek_chain,
)
from nova_vmi_attest.tpm.structures import MAX_STRUCTURE, Public

LOG = log.getLogger(__name__)

# Seconds from begin to complete; a discrete TPM needs about one.
ENROLMENT_LIFETIME = 60
_REQUEST = ("host", "ek_certificate", "ek_public", "ak_public")
_SEALED = ("host", "ek_certificate", "ak_public", "secret_digest")
_MAX_SEALED = 1 << 16
# How many certificates a host may have that have not ended: it can make attestation keys without end.
_MOST_CERTIFICATES = 64


class IssuanceError(AttestError):
    """A request of the enrolment protocol is malformed, late, used, or proves nothing."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What :meth:`Issuance.begin` answers: the sealed enrolment, TPM2B_ID_OBJECT and
    TPM2B_ENCRYPTED_SECRET."""

    enrolment: str
    credential: bytes
    encrypted_secret: bytes


@dataclass(frozen=True, slots=True)
class Endorsers:
    """Certificates of TPM makers: trusted roots, and intermediates that are merely known."""

    roots: Sequence[x509.Certificate]
    intermediates: Sequence[x509.Certificate]


class Issuance:
    """Runs enrolments. Safe for several threads.

    :param lifetime: of the certificates issued.
    :param trust_on_first_use: register an unknown host with the EK that it shows. Unsafe; each use is logged.
    """

    def __init__(
        self,
        database: Database,
        authority: CertificateAuthority,
        endorsers: Endorsers,
        lifetime: datetime.timedelta,
        trust_on_first_use: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._authority = authority
        self._endorsers = endorsers
        self._lifetime = lifetime
        self._trust_on_first_use = trust_on_first_use
        self._clock = clock
        self._refusals = audit.RefusalLog(database, clock)
        self._pending = PendingHosts(database, clock)
        self._seal = Fernet(base64.urlsafe_b64encode(authority.derive(b"enrolment seal v1")))
        self._lock = threading.Lock()
        # Enrolments that were completed, until they expire: only a registered host's TPM gets one in here.
        self._used: dict[bytes, int] = {}

    def begin(self, request: Mapping[str, str]) -> Offer:
        """Check a claim {host, ek_certificate, ek_public, ak_public} (octets in base64) and make the
        challenge.

        :raises AttestError: EndorsementError, RegistryError, CredentialError or IssuanceError with the
            reason, which is recorded.
        """
        host = _claimed_host(request)
        try:
            return self._begin(host, request)
        except AttestError as error:
            self._refused("begin enrolment", host, error)
            raise

    def complete(self, enrolment: str, proof: bytes) -> x509.Certificate:
        """Check the opened secret and issue the certificate.

        :param enrolment: as :meth:`begin` gave it; good once and for 60 seconds.
        :raises AttestError: IssuanceError or RegistryError with the reason, which is recorded.
        """
        host = ""
        try:
            sealed = self._open(enrolment)
            host = encoding.text(sealed, "host", 255)
            if not hmac.compare_digest(
                hashlib.sha256(proof).digest(), encoding.hexdigest(sealed, "secret_digest")
            ):
                raise IssuanceError(
                    "the secret is wrong: the TPM that answered does not hold the claimed keys"
                )
            self._use(enrolment)
            return self._issue(host, sealed)
        except AttestError as error:
            self._refused("complete enrolment", host, error)
            raise

    def _begin(self, host: str, request: Mapping[str, str]) -> Offer:
        # 1. The request has its form, and a name that a certificate can carry.
        encoding.exact_keys(request, _REQUEST, "an enrolment request")
        if not is_host_name(host):
            raise IssuanceError(
                "the claimed host name is malformed", "set [agent] host to the host's name in Nova"
            )
        der = _octets(request, "ek_certificate", MAX_CERTIFICATE)
        ek_public = _octets(request, "ek_public", MAX_STRUCTURE)
        ak_public = _octets(request, "ak_public", MAX_STRUCTURE)
        # 2. A trusted maker vouches for the EK.
        certificate = verify_ek_chain(der, self._endorsers.intermediates, self._endorsers.roots, self._now())
        # 3. The operator said that this EK is in this host.
        digest = ek_digest(certified_key(certificate))
        try:
            with self._database.reader() as session:
                registry.require(session, host, digest)
        except registry.NotRegistered:
            if not self._trust_on_first_use:
                # For an operator to approve, who compares the digest on the host itself.
                self._pending.note(host, digest, certificate.public_bytes(Encoding.PEM).decode())
                raise
        # 4. The keys are what a credential may be made for; only their TPM can open it.
        challenge = make_challenge(certificate, ek_public, ak_public)
        sealed = encoding.canonical(
            {
                "host": host,
                "ek_certificate": encoding.base64url(der),
                "ak_public": encoding.base64url(ak_public),
                "secret_digest": hashlib.sha256(challenge.secret).hexdigest(),
            }
        )
        token = self._seal.encrypt_at_time(sealed, int(self._clock())).decode()
        return Offer(token, challenge.credential, challenge.encrypted_secret)

    def _open(self, enrolment: str) -> dict[str, object]:
        if len(enrolment) > 2 * _MAX_SEALED or not enrolment.isascii():
            raise IssuanceError("the enrolment is malformed")
        try:
            data = self._seal.decrypt_at_time(enrolment.encode(), ENROLMENT_LIFETIME, int(self._clock()))
        except InvalidToken as error:
            raise IssuanceError("the enrolment is unknown or has expired", "begin again") from error
        return encoding.exact_keys(encoding.parse(data, _MAX_SEALED), _SEALED, "an enrolment")

    def _use(self, enrolment: str) -> None:
        # The token's own bytes after decoding: base64 has more than one spelling for the same octets.
        key = hashlib.sha256(base64.urlsafe_b64decode(enrolment)).digest()
        now = int(self._clock())
        with self._lock:
            self._used = {used: until for used, until in self._used.items() if until >= now}
            if key in self._used:
                raise IssuanceError("the enrolment was used before", "begin again")
            self._used[key] = now + 2 * ENROLMENT_LIFETIME

    def _issue(self, host: str, sealed: Mapping[str, object]) -> x509.Certificate:
        now = self._now()
        ek_certificate = load_certificate(encoding.octets(sealed, "ek_certificate", MAX_CERTIFICATE))
        digest = ek_digest(certified_key(ek_certificate))
        ak = Public.parse(encoding.octets(sealed, "ak_public", MAX_STRUCTURE))
        certificate = self._authority.issue(ak.key, host, digest, self._lifetime, now)
        at = int(now.timestamp())
        with self._database.writer() as session:
            session.execute(delete(AkCertificate).where(AkCertificate.not_after < at))
            # Again, and in the transaction that issues: the registry may have changed since.
            try:
                registry.require(session, host, digest)
            except registry.NotRegistered:
                if not self._trust_on_first_use:
                    raise
                pem = ek_certificate.public_bytes(Encoding.PEM).decode()
                registry.add(session, host, digest, pem, at, "on first use")
                LOG.warning("unsafe_trust_on_first_use: host %s registered with the EK %s", host, digest)
            if (standing := self._standing(session, host, ak, at)) is not None:
                return standing
            session.add(
                AkCertificate(
                    serial=f"{certificate.serial_number:x}",
                    host_name=host,
                    ak_name=ak.name.hex(),
                    certificate=certificate.public_bytes(Encoding.PEM).decode(),
                    not_before=int(certificate.not_valid_before_utc.timestamp()),
                    not_after=int(certificate.not_valid_after_utc.timestamp()),
                )
            )
            detail = f"serial {certificate.serial_number:x}, AK {ak.name.hex()}, EK {digest}"
            audit.record(session, at, "issue", host, audit.ISSUED, detail)
        LOG.info("host %s: certificate issued, %s", host, detail)
        return certificate

    def _standing(self, session: Session, host: str, ak: Public, at: int) -> x509.Certificate | None:
        """The certificate that this key has for long enough: who asks again, as a host does whose clock is
        wrong, gets it again.

        :raises IssuanceError: the host has too many.
        """
        rows = session.scalars(
            select(AkCertificate).where(AkCertificate.host_name == host, AkCertificate.revoked_at.is_(None))
        ).all()
        life = int(self._lifetime.total_seconds())
        for row in rows:
            if row.ak_name == ak.name.hex() and at + life // 2 < row.not_after <= at + life:
                certificate = x509.load_pem_x509_certificate(row.certificate.encode())
                # Of this authority's key, which may have been replaced since.
                with contextlib.suppress(InvalidSignature, ValueError, TypeError):
                    certificate.verify_directly_issued_by(self._authority.certificate)
                    return certificate
        if len(rows) >= _MOST_CERTIFICATES:
            raise IssuanceError(
                f"host {host} has {len(rows)} certificates that have not ended",
                "examine the host; to end them, unregister and register it",
            )
        return None

    def _refused(self, action: str, host: str, error: AttestError) -> None:
        LOG.warning("host %r: %s refused: %s", host[:255], action, error)
        self._refusals.refused(action, host, error.message)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)


def _claimed_host(request: Mapping[str, str]) -> str:
    host = request.get("host") if isinstance(request, Mapping) else None
    return host if isinstance(host, str) else ""


def _octets(request: Mapping[str, str], name: str, limit: int) -> bytes:
    value = request[name]
    if not isinstance(value, str) or len(value) > limit * 2:
        raise IssuanceError(f"{name} is not base64 of at most {limit} bytes")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise IssuanceError(f"{name} is not base64") from error
