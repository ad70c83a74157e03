# SPDX-License-Identifier: Apache-2.0
"""The measurement log of a host: records of the TCG Canonical Event Log, and what they do to a PCR.

Each record is one CEL-JSON object (TCG Canonical Event Log Format 1.0). Its digest, which is what the host
extends, covers the canonical encoding of ``content``; the content repeats the record number and carries the
digest of the record before, so the records form a chain. Only a quote makes a log believable: a chain that
checks is merely consistent with itself.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import MAX_INTEGER, EncodingError

CONTENT_TYPE = "nova_vmi_attest"
DOMAIN = "nova-vmi-attest log entry v1"
ZERO_DIGEST = bytes(32)
# Anybody can reset PCRs 16 and 23, and 17 to 22 are not extended from locality 0: no log is tied to those.
MAX_PCR = 15
MAX_GUESTS = 4096
MAX_ENTRY_BYTES = 2048
_U32 = (1 << 32) - 1


class LogError(AttestError):
    """A log record is malformed, or does not follow the one before."""


class EntryKind(enum.StrEnum):
    """What a record states. Wire values: never renamed, never reused."""

    BOOT = "boot"  # the first of an epoch: the PCR has its initial value
    RESUME = "resume"  # a new restart count with the PCR kept (TPM Resume)
    BATCH = "batch"  # a Merkle root over the guests of one round


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One record. ``previous`` is the digest of the record before it, zeros for the first.

    ``root`` and ``guests`` (how many leaves) are those of a batch; zeros and 0 for the other kinds.
    The counts are those of the TPM's clockInfo when the record was written.

    :raises LogError: when made from values that no record can have.
    """

    recnum: int
    pcr: int
    kind: EntryKind
    reset_count: int
    restart_count: int
    previous: bytes
    root: bytes = ZERO_DIGEST
    guests: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, EntryKind):
            raise LogError(f"{str(self.kind)[:32]!r} is not a kind of log record")
        bounds = (
            ("recnum", self.recnum, MAX_INTEGER),
            ("pcr", self.pcr, MAX_PCR),
            ("reset_count", self.reset_count, _U32),
            ("restart_count", self.restart_count, _U32),
            ("guests", self.guests, MAX_GUESTS),
        )
        for name, number, highest in bounds:
            if type(number) is not int or not 0 <= number <= highest:
                raise LogError(f"the {name} of a log record is not an integer from 0 to {highest}")
        if len(self.previous) != 32 or len(self.root) != 32:
            raise LogError(f"a digest in log record {self.recnum} has not 32 bytes")
        if self.kind is not EntryKind.BATCH and (self.guests or self.root != ZERO_DIGEST):
            raise LogError(f"log record {self.recnum} is no batch but names guests")

    @property
    def epoch(self) -> tuple[int, int]:
        """``(reset_count, restart_count)``: between two changes of it the PCR only moves by extends."""
        return self.reset_count, self.restart_count

    @property
    def content(self) -> dict[str, Any]:
        """The part of the record that its digest covers."""
        return {
            "domain": DOMAIN,
            "guests": self.guests,
            "kind": str(self.kind),
            "previous": self.previous.hex(),
            "recnum": self.recnum,
            "reset_count": self.reset_count,
            "restart_count": self.restart_count,
            "root": self.root.hex(),
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical content: the value that is extended into the PCR."""
        return encoding.digest(self.content)

    def to_wire(self) -> dict[str, Any]:
        """The CEL-JSON object."""
        return {
            "content": self.content,
            "content_type": CONTENT_TYPE,
            "digests": [{"digest": self.digest.hex(), "hashAlg": "sha256"}],
            "pcr": self.pcr,
            "recnum": self.recnum,
        }

    def encode(self) -> bytes:
        """The canonical bytes of the CEL-JSON object, without a line end."""
        return encoding.canonical(self.to_wire())

    @classmethod
    def from_wire(cls, value: Any) -> LogEntry:
        """The record that a CEL-JSON object states; its digest is recomputed and compared.

        :raises LogError: if any member is missing, unknown, out of bounds, or contradicts another.
        """
        try:
            return cls._from_wire(value)
        except EncodingError as error:
            raise LogError(f"log record: {error.message}") from error

    @classmethod
    def _from_wire(cls, value: Any) -> LogEntry:
        record = encoding.exact_keys(
            value, ("content", "content_type", "digests", "pcr", "recnum"), "a log record"
        )
        if record["content_type"] != CONTENT_TYPE:
            raise LogError("a log record has another content type")
        content = encoding.exact_keys(record["content"], _CONTENT_KEYS, "the content of a log record")
        if content["domain"] != DOMAIN:
            raise LogError("a log record has another domain")
        try:
            kind = EntryKind(encoding.text(content, "kind", 16))
        except ValueError as error:
            raise LogError("a log record is of an unknown kind") from error
        entry = cls(
            recnum=encoding.integer(record, "recnum"),
            pcr=encoding.integer(record, "pcr", 0, MAX_PCR),
            kind=kind,
            reset_count=encoding.integer(content, "reset_count", 0, _U32),
            restart_count=encoding.integer(content, "restart_count", 0, _U32),
            previous=encoding.hexdigest(content, "previous"),
            root=encoding.hexdigest(content, "root"),
            guests=encoding.integer(content, "guests", 0, MAX_GUESTS),
        )
        if encoding.integer(content, "recnum") != entry.recnum:
            raise LogError(f"log record {entry.recnum} has another number inside")
        if record["digests"] != [{"digest": entry.digest.hex(), "hashAlg": "sha256"}]:
            raise LogError(f"log record {entry.recnum} has not the SHA-256 digest of its content")
        return entry

    @classmethod
    def decode(cls, data: bytes) -> LogEntry:
        """The inverse of :meth:`encode`.

        :raises LogError: if the bytes are not the canonical form of a record.
        """
        try:
            value = encoding.parse(data, MAX_ENTRY_BYTES)
        except EncodingError as error:
            raise LogError(f"log record: {error.message}") from error
        return cls.from_wire(value)


_CONTENT_KEYS = frozenset(
    ("domain", "guests", "kind", "previous", "recnum", "reset_count", "restart_count", "root")
)


def extend(pcr: bytes, digest: bytes) -> bytes:
    """The value of a SHA-256 PCR after ``TPM2_PCR_Extend``: ``SHA-256(pcr ‖ digest)``.

    :raises LogError: if either has not 32 bytes.
    """
    if len(pcr) != 32 or len(digest) != 32:
        raise LogError("a PCR value and what extends it have 32 bytes each")
    return hashlib.sha256(pcr + digest).digest()


def replay(initial: bytes, entries: Iterable[LogEntry]) -> bytes:
    """The PCR value after extending every record in turn, whatever its kind."""
    for entry in entries:
        initial = extend(initial, entry.digest)
    return initial


def check_chain(entries: Iterable[LogEntry], previous: bytes, recnum: int) -> None:
    """Check that the records follow each other without a gap.

    :param previous: the digest of the record before the first one, zeros if there is none.
    :param recnum: the number that the first one must have.
    :raises LogError: naming the first record that does not follow. What is NOT checked: epochs, PCR values.
    """
    for entry in entries:
        if entry.recnum != recnum:
            raise LogError(f"log record {entry.recnum} stands where {recnum} must")
        if not hmac.compare_digest(entry.previous, previous):
            raise LogError(f"log record {recnum} does not follow the one before it")
        previous, recnum = entry.digest, recnum + 1
