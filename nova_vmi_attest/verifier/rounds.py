# SPDX-License-Identifier: Apache-2.0
"""One round as the verifier sees it: announce, challenge, submit, appraise, store, publish.

Every step may be taken by another verifier than the one before; what has to happen once is decided by the
database (see :mod:`.challenges` and :mod:`.hosts`). Only the bus and the database are touched here; what the
evidence is worth is decided in :mod:`.appraisal`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Callable, Sequence

import oslo_messaging
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import BusyError, Database, DuplicateError
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.batch import MAX_BATCH_BYTES, Batch
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.tpm.ak_certificate import verify_ak_certificate
from nova_vmi_attest.verifier import challenges as challenge_store
from nova_vmi_attest.verifier import hosts as host_store
from nova_vmi_attest.verifier.appraisal import Appraisal, Question, appraise, place
from nova_vmi_attest.verifier.challenges import Challenges, Closed
from nova_vmi_attest.verifier.hosts import Hosts, KnownHost, StateConflictError, StoredState
from nova_vmi_attest.verifier.placement import Placements
from nova_vmi_attest.verifier.policy import Policy
from nova_vmi_attest.verifier.references import ApprovedReferences
from nova_vmi_attest.verifier.results import Results

LOG = log.getLogger(__name__)

_MAX_CERTIFICATE = 1 << 16

# How often a batch is appraised when another verifier moves the host's state meanwhile, or the database is
# busy, and the seconds in between: a batch that is given up is a round that is lost.
_ATTEMPTS = 5
_PAUSE = 0.2

_RENEW = "if it was registered again, remove ak.pem from its [agent] state_path and restart its agent"

# How many batches are decoded at once.
_DECODERS = 2


class EvidenceError(AttestError):
    """A message to the verifier cannot be used."""


class Rounds:
    """Thread-safe. The lifetimes of challenges and results are those of the parts that are given.

    :param thumbprint: RFC 7638 thumbprint of the verifier's key.
    :param authorities: certificates of the enrolment authority.
    :param placements: what Nova places on a host; without it every guest that a host shows counts.
    :param changed: is called after each result that was stored; must not block.
    """

    def __init__(
        self,
        transport: oslo_messaging.Transport,
        database: Database,
        thumbprint: bytes,
        authorities: Sequence[x509.Certificate],
        policy: Policy,
        references: ApprovedReferences,
        hosts: Hosts,
        challenges: Challenges,
        results: Results,
        placements: Placements | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._attesters = messaging.AttesterClient(transport)
        self._publisher = messaging.ResultsClient(transport)
        self._database = database
        self._thumbprint = thumbprint
        self._authorities = tuple(authorities)
        self._policy = policy
        self._references = references
        self._hosts = hosts
        self._challenges = challenges
        self._results = results
        self._placements = placements
        self._on_change = changed
        self._changed = threading.Condition()
        # Anybody on the bus can send much that is no evidence: it takes memory before it is found out.
        self._decoding = threading.BoundedSemaphore(_DECODERS)

    def announce(self, host: str, certificate: str, now: int) -> None:
        """Remember a host whose certificate is good, and challenge it when it is new.

        :raises AttestError: when the certificate is not one of that host, or nothing can be stored.
        """
        if not isinstance(certificate, str) or len(certificate) > _MAX_CERTIFICATE:
            raise EvidenceError("the certificate is not text of at most 64 KiB")
        try:
            der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER)
        except ValueError as error:
            raise EvidenceError(f"the certificate cannot be read: {error}") from error
        named = verify_ak_certificate(der, self._authorities, host, now)
        if named.serial in self._hosts.revoked(host, now):
            raise EvidenceError(f"the operator withdrew the registration of host {host}", _RENEW)
        if self._hosts.remember(host, named.ek_digest, certificate, now):
            LOG.info("host %s announced itself (TPM %s)", host, named.ek_digest[:16])
            self.challenge(host, now)

    def challenge_in_turn(self, host: KnownHost, now: int) -> bool:
        """Challenge a host, unless another verifier took the turn since ``host`` was read: false then.

        :raises AttestError: when nothing can be stored; :class:`oslo_messaging.MessagingException` when the
            bus is away.
        """
        if not self._hosts.claim(host, now):
            return False
        self._send_challenge(host.name, now)
        return True

    def challenge(self, host: str, now: int) -> bytes:
        """Challenge a host at once; returns the nonce. Raises as :meth:`challenge_in_turn`."""
        self._hosts.challenged(host, now)
        return self._send_challenge(host, now)

    def challenge_with(self, host: str, nonce: bytes, now: int) -> None:
        """Challenge a host at once with a nonce that somebody else chose, and with one of ours: only the
        answer to ours renews the host's result.

        Raises as :meth:`challenge_in_turn`, and :class:`DuplicateError` when that nonce is open.
        """
        token, _ = self._challenges.create(host, self._hosts.since(host), now, nonce)
        # In this order: the newest batch, from which proofs are cut, is then the one with the chosen nonce.
        self.challenge(host, now)
        self._attesters.attest(host, token)

    def is_open(self, host: str, nonce: bytes, now: int) -> bool:
        """Whether a challenge still waits for its answer."""
        return nonce in self._challenges.open_nonces(host, now)

    def _send_challenge(self, host: str, now: int) -> bytes:
        token, nonce = self._challenges.create(host, self._hosts.since(host), now)
        self._attesters.attest(host, token)
        LOG.debug("host %s was challenged", host)
        return nonce

    def submit(self, encoded: str, now: int) -> None:
        """Take in one batch of evidence.

        :param encoded: the batch in base64.
        :raises AttestError: when it is malformed, answers nothing, or nothing can be stored.
        """
        data = _decode(encoded)
        with self._decoding:
            batch = Batch.decode(data)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                token = self._appraise_and_store(batch, data, now)
                break
            except (StateConflictError, DuplicateError, BusyError) as error:
                if attempt == _ATTEMPTS:
                    raise
                LOG.debug("host %s: appraising once more: %s", batch.host, error)
                time.sleep(_PAUSE * attempt)
        if token:
            self._publish(batch.host, token)

    def wait_for_change(self, seconds: float) -> None:
        """Wait until this process has stored a result, or the time is over."""
        with self._changed:
            self._changed.wait(seconds)

    def _appraise_and_store(self, batch: Batch, data: bytes, now: int) -> str:
        """The token to publish; empty when the batch changes nothing."""
        read = self._hosts.state(batch.host)
        nonces = self._challenges.open_nonces(batch.host, now)
        revoked = self._hosts.revoked(batch.host, now)
        question = Question(batch.host, self._thumbprint, nonces, now, read.state, revoked)
        kernels = (item.measurement.integrity.kernel for item in batch.guests)
        references = self._references.approved({kernel.reference for kernel in kernels if kernel})
        appraisal = appraise(batch, question, self._authorities, self._policy, references)
        if not appraisal.attributed:
            message = "; ".join(f"{reason.check}: {reason.detail}" for reason in appraisal.host.reasons)
            self._hosts.note_error(batch.host, message)
            raise EvidenceError(f"evidence in the name of host {batch.host} is not its own: {message}")
        if self._placements is not None:
            appraisal = self._place(appraisal, self._placements, now)
        return self._store(batch, data, appraisal, read, now)

    def _place(self, appraisal: Appraisal, placements: Placements, now: int) -> Appraisal:
        """Hold the guests against Nova's word, and ask Nova when they disagree with what is known of it."""
        host, shown = appraisal.host.host, {result.guest for result in appraisal.guests}
        placed = placements.on(host, shown, now)
        doubtful = placed.doubtful(shown)
        if (doubtful or not placed.checked) and placements.look(host, doubtful):
            placed = placements.on(host, shown, now)
        return place(appraisal, placed)

    def _store(self, batch: Batch, data: bytes, appraisal: Appraisal, read: StoredState, now: int) -> str:
        with self._database.writer() as session:
            closed = challenge_store.close(session, batch.host, batch.nonces, now)
            if closed is Closed.NOTHING:
                LOG.debug("host %s: another answer to the same challenge came first", batch.host)
                return ""
            if appraisal.state is not None:
                host_store.advance(session, batch.host, read, appraisal.state)
                row = models.BatchRow(host=batch.host, received=now, batch=data)
                row.pcr_before = appraisal.pcr_before.hex()
                session.merge(row)
            if closed is Closed.CHOSEN:
                LOG.debug("host %s answered a nonce that is not ours", batch.host)
                return ""
            host_store.answered(session, batch.host, now)
            token = self._results.record(session, appraisal, now)
        _log(appraisal, hashlib.sha256(data).hexdigest()[:16])
        with self._changed:
            self._changed.notify_all()
        if self._on_change is not None:
            self._on_change()
        return token

    def _publish(self, host: str, token: str) -> None:
        try:
            self._publisher.result(token)
        except oslo_messaging.MessagingException as error:
            LOG.warning("the result of host %s is stored but was not published: %s", host, error)


def _decode(encoded: str) -> bytes:
    if not isinstance(encoded, str) or len(encoded) > MAX_BATCH_BYTES * 4 // 3 + 4:
        raise EvidenceError("a batch is not text or is too large")
    try:
        return base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise EvidenceError("a batch is not base64") from error


def _log(appraisal: Appraisal, batch: str) -> None:
    """Every verdict that is not trusted with its first reason, and every tolerated deviation."""
    host = appraisal.host
    trusted = sum(guest.verdict is Verdict.TRUSTED for guest in appraisal.guests)
    LOG.info(
        "host %s is %s, %d of %d guests are trusted (batch %s)",
        host.host, host.verdict, trusted, len(appraisal.guests), batch,
    )  # fmt: skip
    for reason in host.reasons:
        LOG.log(
            log.WARNING if host.verdict is not Verdict.TRUSTED else log.DEBUG,
            "host %s: %s: %s", host.host, reason.check, reason.detail,
        )  # fmt: skip
    for guest in appraisal.guests:
        for reason in guest.reasons[:8]:
            LOG.warning(
                "guest %s on %s is %s: %s %s+%#x (%d bytes) %s",
                guest.guest, host.host, guest.verdict, reason.check, reason.symbol, reason.offset,
                reason.length, reason.detail,
            )  # fmt: skip
