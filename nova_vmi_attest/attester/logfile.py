# SPDX-License-Identifier: Apache-2.0
"""The file of the measurement log: CEL-JSON entries, one a line, appended durably or not at all.

The file knows the PCR values that its entries give, and nothing of a TPM. An agent runs for months, so
entries stay on disk and memory holds 40 bytes for each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.log import (
    MAX_ENTRY_BYTES,
    ZERO_DIGEST,
    EntryKind,
    LogEntry,
    LogError,
    check_chain,
    extend,
)

# The value of the log's PCR before the first entry of an epoch; replaying starts from it.
INITIAL_VALUE = ZERO_DIGEST


class JournalError(AttestError):
    """The log cannot be read, written or continued."""


class LogFile:
    """The entries of one PCR's log, to be opened once.

    Its user locks between threads; the file is locked between processes.
    """

    def __init__(self, path: Path, pcr: int) -> None:
        self._path = path
        self._pcr = pcr
        self._file = -1
        # Where each entry ends in the file, and the PCR value before each (32 bytes an entry).
        self._ends = array("Q")
        self._before = bytearray()
        self._last: LogEntry | None = None
        self._value = INITIAL_VALUE
        self._boot = 0

    @property
    def length(self) -> int:
        """How many entries there are; also the number of the next one."""
        return len(self._ends)

    @property
    def last(self) -> LogEntry | None:
        """The last entry."""
        return self._last

    @property
    def head(self) -> bytes:
        """The digest of the last entry, zeros when there is none."""
        return self._last.digest if self._last else ZERO_DIGEST

    @property
    def value(self) -> bytes:
        """The PCR value after every entry since the last boot entry."""
        return self._value

    @property
    def boot(self) -> int:
        """The number of the last boot entry; 0 when there is none."""
        return self._boot

    def value_before(self, number: int) -> bytes:
        """The PCR value before an entry; zeros for a boot entry."""
        if not 0 <= number < len(self._ends):
            raise JournalError(f"{self._path} has no entry {number}")
        return bytes(self._before[32 * number : 32 * number + 32])

    def open(self) -> None:
        """Open, lock and read the file, making it when it is missing; a line that a crash left cut is
        removed.

        :raises JournalError: another process has it, it cannot be read, or it is damaged before its last
            line.
        """
        with self.disk("open the log"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JournalError(f"another agent has {self._path} open", "stop the other agent") from error
            _sync_directory(self._path.parent)
        with self.disk("read the log"):
            self._load()

    def close(self) -> None:
        """Close and unlock the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, entry: LogEntry) -> None:
        """Write an entry and wait until it is on the disk.

        :raises JournalError: the disk refused; the file is as it was before.
        """
        line = entry.encode() + b"\n"
        try:
            with self.disk("append to the log"):
                if os.write(self._file, line) != len(line):
                    raise OSError("the disk took only a part of the entry")
                os.fsync(self._file)
        except JournalError:
            # It must neither be extended nor stay in the way of the next entry.
            with self.disk("take back a failed append"):
                self._cut()
            raise
        self._accept(entry, len(line))

    def read(self, number: int) -> LogEntry:
        """The entry with this number, from the disk."""
        if not 0 <= number < len(self._ends):
            raise JournalError(f"{self._path} has no entry {number}")
        start = self._ends[number - 1] if number else 0
        with self.disk("read the log"):
            line = os.pread(self._file, self._ends[number] - start - 1, start)
        try:
            return LogEntry.decode(line)
        except LogError as error:
            raise JournalError(
                f"entry {number} of {self._path} was altered on disk: {error.message}", "examine the host"
            ) from error

    @contextlib.contextmanager
    def disk(self, action: str) -> Iterator[None]:
        """Turn an OSError during ``action`` into a :class:`JournalError`."""
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"could not {action} ({self._path}): {error.strerror or error}",
                "free space on the disk, or check its health and the file's access rights",
            ) from error

    def _load(self) -> None:
        total = os.fstat(self._file).st_size
        with open(os.dup(self._file), "rb") as lines:
            while line := lines.readline(MAX_ENTRY_BYTES + 1):
                try:
                    entry = self._parse(line)
                except LogError as error:
                    if self._size + len(line) < total:
                        raise JournalError(
                            f"{self._path} is damaged after entry {self.length - 1}: {error.message}",
                            "examine the host; then move the log aside and reboot",
                        ) from error
                    self._cut()
                    return
                self._accept(entry, len(line))

    def _parse(self, line: bytes) -> LogEntry:
        if not line.endswith(b"\n"):
            raise LogError("the line has no end")
        entry = LogEntry.decode(line[:-1])
        check_chain([entry], self.head, self.length)
        if entry.pcr != self._pcr:
            raise JournalError(
                f"{self._path} is the log of PCR {entry.pcr}, not of PCR {self._pcr}",
                "set [tpm] log_pcr back, or move the log aside and reboot",
            )
        return entry

    def _accept(self, entry: LogEntry, size: int) -> None:
        if entry.kind is EntryKind.BOOT:
            self._boot = entry.recnum
            self._value = INITIAL_VALUE
        self._before += self._value
        self._value = extend(self._value, entry.digest)
        self._ends.append(self._size + size)
        self._last = entry

    def _cut(self) -> None:
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
