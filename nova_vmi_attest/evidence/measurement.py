# SPDX-License-Identifier: Apache-2.0
"""What introspection states about one guest: facts, and no judgement of them.

A measurement has three sections, each with a digest of its own, because they change at different rates:
*integrity* is constant for a healthy guest from boot to shutdown, the *inventory* follows its processes, and
the *observation* differs in every pass. The leaf of a guest binds all three (see :mod:`.encoding`).

The values come from hostile memory. Strings are bounded and printable, counts are bounded, and nothing here
has been appraised: a measurement without findings is not a trusted guest.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass


class Status(enum.StrEnum):
    """Whether a guest could be measured at all."""

    MEASURED = "measured"
    UNMEASURED = "unmeasured"


class Unmeasured(enum.StrEnum):
    """Why a guest could not be measured. Wire values: never renamed, never reused."""

    NO_KERNEL = "no_kernel"  # no Linux kernel in memory: booting, or another system
    UNKNOWN_KERNEL = "unknown_kernel"  # a Linux kernel without a reference
    BOOTING = "booting"  # a known kernel that has not finished its start
    ENCRYPTED = "encrypted_memory"
    GONE = "guest_gone"  # stopped, migrated or crashed while it was read
    UNSUPPORTED = "unsupported"  # a memory layout or CPU mode that cannot be read exactly
    UNREADABLE = "unreadable"  # the reader failed
    INTERNAL = "internal_error"  # a defect of ours, kept from stopping the round


class Outcome(enum.StrEnum):
    """What one check came to."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"  # could not be carried out in full: never as good as passed


@dataclass(frozen=True, slots=True)
class Finding:
    """One deviation from what the reference kernel must be.

    ``offset`` is in bytes from ``symbol`` (or from the start of the object that ``symbol`` names);
    ``length`` is in bytes; ``expected`` and ``actual`` are the first 32 bytes at most; ``address`` is
    guest-virtual. ``detail`` is for people and never parsed.
    """

    check: str
    symbol: str
    offset: int = 0
    length: int = 0
    address: int = 0
    expected: bytes = b""
    actual: bytes = b""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: its outcome, how many bytes it compared, and at most 64 findings.

    ``truncated`` counts the findings that were left out. ``detail`` says why an outcome is incomplete.
    """

    check: str
    outcome: Outcome
    bytes_verified: int = 0
    findings: tuple[Finding, ...] = ()
    truncated: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class KernelIdentity:
    """The reference that the guest was measured against: not a claim of the guest."""

    reference: str  # hex SHA-256 of the reference manifest
    release: str  # e.g. "6.1.0-56-cloud-amd64"
    build_id: str  # hex GNU build id of the image


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded module. ``reference`` is the hex SHA-256 of its .ko file, empty if the package lacks it."""

    name: str
    reference: str
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """A thread group leader. ``executable`` is a path within the guest's mount, empty for kernel threads."""

    pid: int
    name: str
    uid: int
    executable: str


@dataclass(frozen=True, slots=True)
class Integrity:
    """What does not change while a guest is healthy.

    ``code_bytes`` counts kernel and module text that was compared with its replay; ``unexplained_bytes``
    counts those of them that differ from it.
    """

    status: Status
    reason: Unmeasured | None = None
    detail: str = ""
    kernel: KernelIdentity | None = None
    checks: tuple[CheckResult, ...] = ()
    modules: tuple[Module, ...] = ()
    code_bytes: int = 0
    unexplained_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What runs in the guest, sorted by pid: at most 4,096 processes, ``truncated`` counts the rest."""

    processes: tuple[Process, ...] = ()
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """How the pass went: the reader, the bytes of guest memory it asked for, and its duration."""

    reader: str
    bytes_read: int
    microseconds: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One pass over one guest."""

    guest: uuid.UUID
    integrity: Integrity
    inventory: Inventory
    observation: Observation
