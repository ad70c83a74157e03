# SPDX-License-Identifier: Apache-2.0
"""Appraisal of one evidence batch: numbered steps from the certificate to the verdicts. Pure, no I/O.

:func:`appraise` takes steps 1 to 8 from the evidence alone. :func:`place`, step 9, holds the outcome against
Nova's word; it is apart because Nova may have to be asked, and only for evidence that is the host's own.

Steps 1 to 5 say whose evidence this is and that nobody changed it on its way. Anybody on the bus can take a
genuine quote and send it with other records or guests, or late, so a failure until there proves nothing
*about* the host: the appraisal is then not ``attributed``, and the caller must neither let it change a
verdict nor close a challenge. A host that never sends evidence that can be attributed to it goes stale, which
denies as well. From step 6 on all that is judged was signed by the host's TPM, and a failure is the host's:
it becomes untrusted, and its guests unknown, because measurements that a host vouches for are worth no more
than the host.

NOT checked here: that the host's firmware, kernel and agent are honest, beyond the PCR values that the policy
approves; and that the guests' memory is what the host says it is.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography import x509

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.batch import Batch, BatchError, batch_root
from nova_vmi_attest.evidence.challenge import ChallengeError, binding
from nova_vmi_attest.evidence.log import (
    ZERO_DIGEST,
    EntryKind,
    LogEntry,
    LogError,
    check_chain,
    extend,
)
from nova_vmi_attest.evidence.result import MAX_REASONS, GuestResult, HostResult, Reason, Verdict
from nova_vmi_attest.tpm.ak_certificate import AkCertificate, AkCertificateError, verify_ak_certificate
from nova_vmi_attest.tpm.quote import QuoteError, VerifiedQuote, verify_quote
from nova_vmi_attest.verifier.placed import Placed, concerned, hold
from nova_vmi_attest.verifier.policy import ApprovedReference, Policy, reason

HOST_UNTRUSTED = "host_untrusted"


@dataclass(frozen=True, slots=True)
class HostState:
    """Where the newest accepted quote of a host left its TPM and its log.

    ``tpm`` is the EK digest in the AK certificate; counts and clock (ms) are the quote's; ``recnum``,
    ``head`` (digest) and ``pcr_value`` belong to the last log record that the quote covered.
    """

    tpm: str
    reset_count: int
    restart_count: int
    clock: int
    recnum: int
    pcr_value: bytes
    head: bytes

    @property
    def epoch(self) -> tuple[int, int]:
        """``(reset_count, restart_count)``."""
        return self.reset_count, self.restart_count


@dataclass(frozen=True, slots=True)
class Question:
    """What the verifier asked and what it knows: everything that is not in the batch.

    :param host: the host that was asked.
    :param verifier: RFC 7638 thumbprint of our key.
    :param nonces: our nonces that are open for that host; at least one of them must be answered.
    :param now: seconds since 1970.
    :param previous: the host's state after its last accepted evidence, if any.
    :param revoked: serial numbers of the host's certificates that the operator withdrew.
    """

    host: str
    verifier: bytes
    nonces: frozenset[bytes]
    now: int
    previous: HostState | None = None
    revoked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What came of it.

    ``attributed`` is false when one of steps 1 to 5 failed; ``state`` and ``pcr_before`` (the log PCR before
    the last quoted record) are there when the host is trusted. ``guests`` ascend by UUID bytes.
    """

    attributed: bool
    host: HostResult
    guests: tuple[GuestResult, ...] = ()
    state: HostState | None = None
    pcr_before: bytes = b""


class _HostError(AttestError):
    """A step that the host did not pass; ``check`` names it."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


@dataclass(frozen=True, slots=True)
class _Position:
    """A place in the log: after record ``recnum``, with the PCR's value there and before that record."""

    recnum: int
    head: bytes
    value: bytes
    before: bytes
    epoch: tuple[int, int] | None
    entry: LogEntry | None


def appraise(
    batch: Batch,
    question: Question,
    authorities: Sequence[x509.Certificate],
    policy: Policy,
    references: Mapping[str, ApprovedReference],
) -> Appraisal:
    """Appraise one decoded batch. Never raises for what is in it.

    :param authorities: certificates of the enrolment authority.
    :param references: the approved kernels by the digest of their manifest.
    """
    attributed = False
    try:
        # 1. The attestation key belongs to the host that was asked, by word of our authority.
        certificate = _certificate(batch, question, authorities)

        # 2. Its TPM signed a quote that answers our challenge, over exactly the PCR values that came along.
        quote = _quote(batch, question, certificate)

        # 3. The TPM went forward since the evidence that was accepted last: this is not older than that.
        previous = _of_this_tpm(question.previous, certificate)
        _forward(quote, previous)

        # 4. The log goes on where it was left; its longest prefix that gives the quoted PCR is what counts.
        position, notes = _replay(batch, previous, quote, policy.log_pcr)

        # 5. The last quoted record is this batch: its root covers every guest, each by exactly one leaf.
        _root(batch, position)
        attributed = True

        # 6. The quote covers every PCR of the host that the policy wants.
        _selection(quote, policy)

        # 7. The host's own PCRs have approved values, where the policy names any.
        notes = _host_pcrs(quote, policy) + notes
    except _HostError as failure:
        return _refused(batch, question, attributed, reason(failure.check, detail=failure.message))

    # 8. Each measurement is held against the approved references and the policy.
    results = [policy.appraise(item.measurement, references) for item in batch.guests]
    return Appraisal(
        attributed=True,
        host=HostResult(question.host, Verdict.TRUSTED, notes),
        guests=tuple(sorted(results, key=lambda result: result.guest.bytes)),
        state=_state(certificate, quote, position),
        pcr_before=position.before,
    )


def place(appraisal: Appraisal, placed: Placed) -> Appraisal:
    """Step 9: the guests are those that Nova places on this host, none hidden, none from somewhere else.

    :param placed: what Nova says of the host and of the guests in ``appraisal``.
    """
    host = appraisal.host
    if host.verdict is Verdict.TRUSTED:
        guests, notes = hold(appraisal.guests, placed)
        host = replace(host, reasons=(host.reasons + notes)[:MAX_REASONS])
    else:
        shown = (result.guest for result in appraisal.guests)
        guests = _untrusted(host.reasons[0], concerned(shown, placed))
    return replace(appraisal, host=host, guests=guests)


def _certificate(batch: Batch, question: Question, authorities: Sequence[x509.Certificate]) -> AkCertificate:
    if batch.host != question.host:
        raise _HostError("certificate", f"the evidence is of host {batch.host}, {question.host} was asked")
    try:
        certificate = verify_ak_certificate(batch.ak_certificate, authorities, question.host, question.now)
    except AkCertificateError as error:
        raise _HostError("certificate", error.message) from error
    if certificate.serial in question.revoked:
        raise _HostError("certificate", "the operator withdrew the host's registration")
    return certificate


def _quote(batch: Batch, question: Question, certificate: AkCertificate) -> VerifiedQuote:
    if not hmac.compare_digest(batch.verifier, question.verifier):
        raise _HostError("quote", "the evidence answers another verifier")
    if question.nonces.isdisjoint(batch.nonces):
        raise _HostError("quote", "the evidence answers no open challenge: replayed, late or unasked")
    try:
        qualifying_data = binding(question.host, question.verifier, batch.nonces)
        quote = batch.quote
        return verify_quote(certificate.key, quote.attest, quote.signature, qualifying_data, quote.pcrs)
    except (ChallengeError, QuoteError) as error:
        raise _HostError("quote", error.message) from error


def _selection(quote: VerifiedQuote, policy: Policy) -> None:
    if absent := sorted(policy.required_pcrs - quote.pcrs.keys()):
        raise _HostError("pcr_selection", f"the quote leaves out PCRs {absent}")


def _of_this_tpm(previous: HostState | None, certificate: AkCertificate) -> HostState | None:
    """The former state, unless the authority has since enrolled another TPM under the host's name."""
    return previous if previous is not None and previous.tpm == certificate.ek_digest else None


def _forward(quote: VerifiedQuote, previous: HostState | None) -> None:
    if previous is None:
        return
    if quote.epoch < previous.epoch:
        raise _HostError("epoch", f"the TPM's epoch went back from {previous.epoch} to {quote.epoch}")
    if quote.epoch == previous.epoch and quote.clock < previous.clock:
        raise _HostError("clock", f"the TPM's clock went back from {previous.clock} to {quote.clock} ms")


def _replay(
    batch: Batch, previous: HostState | None, quote: VerifiedQuote, pcr: int
) -> tuple[_Position, tuple[Reason, ...]]:
    """The longest prefix of the log that ends at the quoted value, and notes on records nobody ever quoted
    and on a beginning that we did not see.
    """
    position = _start(batch, previous)
    new = _continuation(batch.entries, previous, position)
    quoted = quote.pcrs.get(pcr)
    if quoted is None:
        raise _HostError("log", f"the quote leaves out the log's PCR {pcr}")
    accepted: _Position | None = None
    for entry in new:
        if entry.pcr != pcr:
            raise _HostError("log", f"log record {entry.recnum} belongs to PCR {entry.pcr}, not {pcr}")
        position = _step(position, entry)
        if position.epoch == quote.epoch and position.value == quoted:
            accepted = position
    if accepted is None:
        raise _HostError(
            "log", "no prefix of the log gives the quoted PCR: records withheld, or somebody else extended it"
        )
    return accepted, _unattested(new, accepted) + _unseen(new, previous)


def _start(batch: Batch, previous: HostState | None) -> _Position:
    """Where the records that came along begin.

    For a host that is new to us the sender says what the PCR was before them. If the records then give the
    quoted value, that was true: nobody finds another value that leads there.
    """
    if previous is not None:
        return _Position(previous.recnum, previous.head, previous.pcr_value, b"", previous.epoch, None)
    if not batch.entries:
        raise _HostError("log", "no log records came along")
    first = batch.entries[0]
    epoch = None if first.kind is EntryKind.BOOT else first.epoch
    return _Position(first.recnum - 1, first.previous, batch.log_start, b"", epoch, None)


def _continuation(
    entries: Sequence[LogEntry], previous: HostState | None, start: _Position
) -> Sequence[LogEntry]:
    """The records after the last accepted one; those before it were sent for another verifier's challenge."""
    skip = 0
    while skip < len(entries) and entries[skip].recnum <= start.recnum:
        skip += 1
    known = entries[skip - 1] if skip else None
    if (
        previous is not None
        and known is not None
        and known.recnum == start.recnum
        and known.digest != start.head
    ):
        raise _HostError("log", f"log record {known.recnum} is not the one that was quoted before")
    try:
        check_chain(entries[skip:], start.head, start.recnum + 1)
    except LogError as error:
        raise _HostError("log", error.message) from error
    return entries[skip:]


def _step(position: _Position, entry: LogEntry) -> _Position:
    """Extend by one record. Only a boot record makes the PCR start again, and only in a new epoch."""
    value, epoch = position.value, position.epoch
    if entry.epoch == epoch:
        if entry.kind is not EntryKind.BATCH:
            raise _HostError("log", f"{entry.kind} record {entry.recnum} stands inside an epoch")
    elif epoch is not None and entry.epoch < epoch:
        raise _HostError("log", f"log record {entry.recnum} goes back to epoch {entry.epoch}")
    elif entry.kind is EntryKind.BOOT:
        value = ZERO_DIGEST
    elif epoch is None or entry.kind is not EntryKind.RESUME or entry.reset_count != epoch[0]:
        raise _HostError("log", f"epoch {entry.epoch} begins with {entry.kind} record {entry.recnum}")
    return _Position(entry.recnum, entry.digest, extend(value, entry.digest), value, entry.epoch, entry)


def _unattested(new: Sequence[LogEntry], accepted: _Position) -> tuple[Reason, ...]:
    """Batches from before the last boot that no quote covered in time: believable by nobody, but no fault."""
    covered = [entry for entry in new if entry.recnum <= accepted.recnum]
    boots = [entry.recnum for entry in covered if entry.kind is EntryKind.BOOT]
    batches = [entry.recnum for entry in covered if entry.kind is EntryKind.BATCH]
    lost = [recnum for recnum in batches if boots and recnum < boots[-1]]
    if not lost:
        return ()
    detail = f"no quote covered records {lost[0]} to {lost[-1]} before a reboot"
    return (reason("log_unattested", detail=detail),)


def _unseen(new: Sequence[LogEntry], previous: HostState | None) -> tuple[Reason, ...]:
    """A host that was up for long sends the newest records only to who knows none."""
    if previous is not None or new[0].kind is EntryKind.BOOT:
        return ()
    return (reason("log_beginning_unseen", detail=f"records before {new[0].recnum} were not sent"),)


def _root(batch: Batch, position: _Position) -> None:
    entry = position.entry
    if entry is None or entry.kind is not EntryKind.BATCH:
        raise _HostError("merkle_root", "the last quoted log record is not a batch")
    try:
        root = batch_root(batch.guests, batch.binding)
    except (BatchError, ChallengeError) as error:
        raise _HostError("merkle_root", error.message) from error
    if entry.guests != len(batch.guests):
        raise _HostError("merkle_root", f"{entry.guests} guests were logged, {len(batch.guests)} were sent")
    if any(item.guest != item.measurement.guest for item in batch.guests):
        raise _HostError("merkle_root", "a leaf carries the measurement of another guest")
    if not hmac.compare_digest(root, entry.root):
        raise _HostError("merkle_root", f"the guests do not give the root in log record {entry.recnum}")


def _host_pcrs(quote: VerifiedQuote, policy: Policy) -> tuple[Reason, ...]:
    for index, approved in sorted(policy.approved_pcrs.items()):
        if quote.pcrs[index] not in approved:
            value = quote.pcrs[index].hex()
            raise _HostError("host_pcr", f"PCR {index} has the value {value}, which is not approved")
    if unappraised := sorted(policy.host_pcrs - policy.approved_pcrs.keys()):
        return (reason("host_pcr_not_appraised", detail=f"no approved values for PCRs {unappraised}"),)
    return ()


def _refused(batch: Batch, question: Question, attributed: bool, why: Reason) -> Appraisal:
    return Appraisal(
        attributed=attributed,
        host=HostResult(question.host, Verdict.UNTRUSTED, (why,)),
        guests=_untrusted(why, sorted((item.guest for item in batch.guests), key=lambda guest: guest.bytes)),
    )


def _untrusted(why: Reason, guests: Iterable[uuid.UUID]) -> tuple[GuestResult, ...]:
    because = reason(HOST_UNTRUSTED, detail=f"{why.check}: {why.detail}")
    return tuple(GuestResult(guest, Verdict.UNKNOWN, (because,)) for guest in guests)


def _state(certificate: AkCertificate, quote: VerifiedQuote, position: _Position) -> HostState:
    return HostState(
        tpm=certificate.ek_digest,
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        clock=quote.clock,
        recnum=position.recnum,
        pcr_value=position.value,
        head=position.head,
    )
