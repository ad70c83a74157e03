# SPDX-License-Identifier: Apache-2.0
"""The measurement log on a host's disk, kept in step with the PCR that it explains.

An entry is appended and synced first and extended second, under one lock, so whenever a crash comes, the file
is ahead of the PCR by at most one entry and never behind. :func:`next_step` says what a log, a PCR value and
an epoch together mean; it is all there is to recovery. Only a quote proves the log to somebody else.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nova_vmi_attest.attester.coverage import Coverage, CoverageFile
from nova_vmi_attest.attester.logfile import INITIAL_VALUE, JournalError, LogFile
from nova_vmi_attest.evidence.log import ZERO_DIGEST, EntryKind, LogEntry
from nova_vmi_attest.tpm.device import PcrRights

__all__ = ["ForeignExtend", "Journal", "JournalError", "ReplacedTpm", "Step", "next_step"]

# Locality 0 may reset 16 and 23 and not extend 17 to 22 (PC Client Platform TPM Profile).
_RESERVED_PCRS = frozenset(range(16, 24))
# Finishing an entry, recording a resume, and being in step: no state needs more.
_MOST_STEPS = 4


class ForeignExtend(JournalError):  # noqa: N818 - the alarm is called by what happened
    """Something other than this log extended the PCR. It denies service; it cannot forge evidence."""


class ReplacedTpm(JournalError):  # noqa: N818
    """The TPM's counters went back: it was cleared, replaced, or its state restored from a copy."""


class JournalTpm(Protocol):
    """What the journal asks of a TPM; :class:`nova_vmi_attest.tpm.device.Tpm` has it."""

    def extend(self, pcr: int, digest: bytes) -> None: ...
    def read_pcrs(self, indices: tuple[int, ...]) -> dict[int, bytes]: ...
    def epoch(self) -> tuple[int, int]: ...
    def pcr_rights(self) -> PcrRights: ...


class Step(enum.StrEnum):
    """What brings log and PCR in step."""

    NOTHING = "nothing"
    EXTEND_LAST = "extend the last entry"
    BOOT = "record a boot"
    RESUME = "record a resume"


@dataclass(frozen=True, slots=True)
class Position:
    """The end of a log: the epoch of its last entry, and the PCR values that it gives before and after that
    entry."""

    epoch: tuple[int, int]
    before: bytes
    after: bytes


def next_step(position: Position | None, epoch: tuple[int, int], value: bytes) -> Step:
    """What to do next, given the log's end (None when it is empty), the TPM's epoch and the PCR's value.

    :raises ForeignExtend: no history of this log alone explains the value.
    :raises ReplacedTpm: the epoch is older than the log.
    """
    if position is None:
        if value != INITIAL_VALUE:
            raise ForeignExtend("it is not at its initial value and there is no log that explains it")
        return Step.BOOT
    if epoch < position.epoch:
        raise ReplacedTpm(
            f"the TPM's counters went back from {position.epoch} to {epoch}: it was cleared or replaced",
            "if that was intended, move the log aside, enrol again and have the verifier forget the host",
        )
    if epoch == position.epoch and value == position.after:
        return Step.NOTHING
    if epoch > position.epoch and value == INITIAL_VALUE:
        return Step.BOOT
    kept = epoch[0] == position.epoch[0]
    if kept and value == position.after:
        return Step.RESUME
    if kept and value == position.before:
        return Step.EXTEND_LAST
    raise ForeignExtend(f"it is {value.hex()[:16]}… where the log gives {position.after.hex()[:16]}…")


class Journal:
    """The log of one PCR: one CEL-JSON entry a line. Opening it recovers; nothing is done before.

    :param path: the file; ``<path>.coverage`` beside it says which entries a quote covered.
    :param pcr_index: the PCR, which must be zero at boot, and extendable and not resettable from locality 0.
    """

    def __init__(self, path: Path, tpm: JournalTpm, pcr_index: int) -> None:
        self._tpm = tpm
        self._pcr = pcr_index
        self._log = LogFile(path, pcr_index)
        self._lock = threading.RLock()
        self._coverage = CoverageFile(path.with_name(path.name + ".coverage"))

    def __enter__(self) -> Self:
        with self._lock:
            self._check_pcr()
            try:
                self._log.open()
                with self._log.disk("read what was quoted"):
                    self._coverage.load()
                self._settle()
            except BaseException:
                self._log.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._log.close()

    @property
    def next_recnum(self) -> int:
        """The number that the next entry will have; also how many entries there are."""
        with self._lock:
            return self._log.length

    @property
    def value(self) -> bytes:
        """The PCR value that the log gives."""
        with self._lock:
            return self._log.value

    @property
    def head(self) -> bytes:
        """The digest of the last entry, zeros when there is none."""
        with self._lock:
            return self._log.head

    @property
    def epoch_start(self) -> int:
        """The number of the last boot entry: a replay that begins there needs nothing older."""
        with self._lock:
            return self._log.boot

    @property
    def coverage(self) -> Coverage:
        """Which entries a quote covered, and which never will be."""
        with self._lock:
            return self._coverage.state

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No entry is added inside: a quote taken here covers exactly the entries read here."""
        with self._lock:
            yield

    def append_batch(self, root: bytes, guests: int) -> LogEntry:
        """Log the Merkle root over ``guests`` guests and extend it; a change of epoch is recorded first.

        :raises JournalError: the disk is full or failing, in which case nothing was extended.
        :raises ForeignExtend: something else extended the PCR since the last entry.
        :raises TpmError: from the TPM; the entry may then be logged and not extended, which the next call
            mends.
        """
        with self._lock:
            self._settle()
            return self._append(EntryKind.BATCH, self._tpm.epoch(), root, guests)

    def entries(self, since: int) -> tuple[LogEntry, ...]:
        """The entries from number ``since`` on, from the file."""
        with self._lock:
            return tuple(self._log.read(number) for number in range(max(since, 0), self._log.length))

    def value_before(self, recnum: int) -> bytes:
        """The PCR value before the entry with this number was extended; zeros for a boot entry."""
        with self._lock:
            return self._log.value_before(recnum)

    def mark_quoted(self, count: int) -> None:
        """A quote covers the entries numbered below ``count``."""
        with self._lock, self._log.disk("record what was quoted"):
            self._coverage.quoted(min(count, self._log.length))

    # -- recovery --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        for _ in range(_MOST_STEPS):
            epoch = self._tpm.epoch()
            value = self._tpm.read_pcrs((self._pcr,))[self._pcr]
            try:
                step = next_step(self._position(), epoch, value)
            except ForeignExtend as error:
                raise ForeignExtend(
                    f"PCR {self._pcr} was extended by something else: {error.message}",
                    "find what extends it, or set [tpm] log_pcr to one that nothing else uses; then reboot",
                ) from error
            if step is Step.NOTHING:
                return
            if step is Step.EXTEND_LAST:
                self._tpm.extend(self._pcr, self._log.head)
            elif step is Step.BOOT:
                with self._log.disk("record what was not quoted"):
                    self._coverage.epoch_ended(self._log.length)
                self._append(EntryKind.BOOT, epoch, ZERO_DIGEST, 0)
            else:
                self._append(EntryKind.RESUME, epoch, ZERO_DIGEST, 0)
        raise JournalError(f"PCR {self._pcr} and its log do not come in step", "is another agent running?")

    def _position(self) -> Position | None:
        last = self._log.last
        if last is None:
            return None
        return Position(last.epoch, self._log.value_before(last.recnum), self._log.value)

    def _check_pcr(self) -> None:
        remedy = "set [tpm] log_pcr to one from 8 to 15 that nothing else extends"
        rights = self._tpm.pcr_rights()
        if self._pcr in _RESERVED_PCRS or self._pcr in rights.resettable:
            raise JournalError(f"PCR {self._pcr} can be reset by software, or not extended by it", remedy)
        if self._pcr not in rights.extendable:
            raise JournalError(f"PCR {self._pcr} cannot be extended by software", remedy)

    def _append(self, kind: EntryKind, epoch: tuple[int, int], root: bytes, guests: int) -> LogEntry:
        entry = LogEntry(self._log.length, self._pcr, kind, epoch[0], epoch[1], self._log.head, root, guests)
        self._log.append(entry)
        self._tpm.extend(self._pcr, entry.digest)
        return entry
