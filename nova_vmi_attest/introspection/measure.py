# SPDX-License-Identifier: Apache-2.0
"""One pass over one guest: find its kernel, run the checks, state the facts.

Whatever a guest's memory holds, :meth:`Measurer.measure` returns a measurement; a guest that could not be
measured says why. What was learnt of a boot is kept for the next pass and believed only as long as the same
kernel still runs at the same place, which each pass asks anew.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stevedore.extension import ExtensionManager

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import (
    CheckResult,
    Integrity,
    Inventory,
    KernelIdentity,
    Measurement,
    Observation,
    Outcome,
    Status,
    Unmeasured,
)
from nova_vmi_attest.introspection.build import Build
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, PassFacts
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.locate import (
    SYSTEM_RUNNING,
    Located,
    NotFound,
    entered_by_trampoline,
    find_kernel,
    search_banners,
    still_there,
)
from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    GuestMemory,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.state import BootState
from nova_vmi_attest.introspection.structures import printable
from nova_vmi_attest.kernel.reference import Reference

NAMESPACE = "nova_vmi_attest.checks"
STANDSTILL = 1.0  # seconds without a tick, after which a kernel may be dead; an idle one may do without, too
SEARCH_FIRST, SEARCH_LONGEST = 5.0, 300.0  # seconds until an unknown guest is searched for a kernel again


# How an error is stated in the evidence; the first match counts. What is none of these lies in the guest.
_REASONS: tuple[tuple[type[AttestError], Unmeasured], ...] = (
    (GuestGone, Unmeasured.GONE),
    (EncryptedMemory, Unmeasured.ENCRYPTED),
    (UnsupportedLayout, Unmeasured.UNSUPPORTED),
    (ReaderError, Unmeasured.UNREADABLE),
)


def unmeasured_reason(error: AttestError) -> Unmeasured:
    """Why a guest could not be measured, given what went wrong with its memory."""
    if isinstance(error, NotFound):
        return error.reason
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Unmeasured.UNSUPPORTED)


class CheckError(AttestError):
    """The checks that are installed cannot be run: one needs another that is not there."""


class ReferenceProvider(Protocol):
    """Gives the references that guests may be measured against. Called from several threads."""

    def candidates(self) -> Sequence[Reference]:
        """The references that are at hand."""

    def missing(self, banner: bytes) -> None:
        """A guest holds a Linux kernel with this ``linux_banner``, and no candidate has it."""


@dataclass
class _Record:
    """What is known of one guest between passes."""

    state: BootState | None = None
    banners: tuple[bytes, ...] = ()
    search_at: float = 0.0
    wait: float = SEARCH_FIRST


def installed_checks() -> tuple[Check, ...]:
    """The checks of the ``nova_vmi_attest.checks`` namespace, each after those that it needs.

    :raises CheckError: one needs another that is not installed, or they need each other.
    """
    manager: ExtensionManager[Check] = ExtensionManager(
        NAMESPACE, invoke_on_load=True, on_load_failure_callback=_refuse
    )
    extensions = sorted(manager.extensions, key=lambda extension: str(extension.name))
    return in_order([extension.obj for extension in extensions if extension.obj is not None])


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks, each after those that it needs.

    :raises CheckError: as :func:`installed_checks`.
    """
    waiting = {check.name: check for check in checks}
    placed: dict[str, Check] = {}
    while waiting:
        ready = [name for name, check in waiting.items() if placed.keys() >= set(check.needs)]
        if not ready:
            raise CheckError(f"checks need what is not installed: {', '.join(sorted(waiting))}")
        for name in ready:
            placed[name] = waiting.pop(name)
    return tuple(placed.values())


def _refuse(manager: object, entry_point: object, error: BaseException) -> None:
    raise CheckError(f"check {entry_point} cannot be loaded: {error}") from error


class Measurer:
    """Measures guests. Thread-safe: guests are measured in parallel, one guest by one thread at a time.

    :param references: where references come from.
    :param checks: the checks to run instead of the installed ones.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        references: ReferenceProvider,
        checks: Sequence[Check] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._references = references
        self._checks = installed_checks() if checks is None else in_order(checks)
        self._clock = clock
        self._records: dict[uuid.UUID, _Record] = {}
        self._builds: dict[str, Build] = {}
        self._lock = threading.Lock()

    def forget(self, guest: uuid.UUID) -> None:
        """Believe nothing any more that was learnt of a guest: it stopped, or started anew."""
        with self._lock:
            self._records.pop(guest, None)

    def measure(self, guest: uuid.UUID, memory: GuestMemory, reader: str) -> Measurement:
        """One pass. Nothing that the guest did or does makes it raise."""
        started = time.perf_counter()
        with self._lock:
            record = self._records.setdefault(guest, _Record())
        facts = PassFacts()
        try:
            memory.begin_pass()
            state = self._locate(record, memory)
            integrity = self._run(state, facts)
            memory.end_pass()
        except AttestError as error:
            record.state = None
            integrity = _unmeasured(unmeasured_reason(error), error.message)
        elapsed = int((time.perf_counter() - started) * 1e6)
        measured = integrity.status is Status.MEASURED
        inventory = Inventory(facts.processes, facts.processes_left_out) if measured else Inventory()
        return Measurement(guest, integrity, inventory, Observation(reader, memory.bytes_read, elapsed))

    def _locate(self, record: _Record, memory: GuestMemory) -> BootState:
        """The state of the boot that runs now, which may be the one of the pass before.

        :raises NotFound: no kernel runs that could be measured.
        """
        references = self._references.candidates()
        state = record.state
        if state is None or not self._still_runs(state, memory):
            record.state = None
            located = self._find(record, memory, references)
            reference = references[located.index]
            state = BootState(reference, self._build(reference), located, memory)
        state.begin_pass(memory)
        self._require_running(state)
        record.state, record.wait, record.search_at = state, SEARCH_FIRST, 0.0
        return state

    def _still_runs(self, state: BootState, memory: GuestMemory) -> bool:
        """Whether the kernel of the pass before still is where it was, and is the one that runs.

        A warm reset leaves a dead kernel behind, whole: it no longer counts time, and the trampoline no
        longer enters it. Where either is so, all of memory is looked at again.
        """
        located, vmlinux = state.located, state.reference.vmlinux
        if not still_there(memory, vmlinux, located):
            return False
        state.begin_pass(memory)
        try:
            ticks = state.guest.u64(state.guest.symbol("jiffies_64"))
        except GuestFault:
            return False
        now = self._clock()
        if ticks != state.ticks:
            state.ticks, state.ticked = ticks, now
        stands = now - state.ticked >= STANDSTILL
        if stands or not entered_by_trampoline(memory, vmlinux, located):
            found = find_kernel(memory, [vmlinux])
            return (found.physical_base, found.slide) == (located.physical_base, located.slide)
        return True

    def _find(self, record: _Record, memory: GuestMemory, references: Sequence[Reference]) -> Located:
        try:
            return find_kernel(memory, [reference.vmlinux for reference in references])
        except NotFound as error:
            if error.reason is not Unmeasured.NO_KERNEL:
                raise
            now = self._clock()
            if now >= record.search_at:
                record.banners = search_banners(memory)
                record.search_at, record.wait = now + record.wait, min(2 * record.wait, SEARCH_LONGEST)
            known = {reference.vmlinux.banner for reference in references}
            unknown = [banner for banner in record.banners if banner not in known]
            if not unknown:
                raise
            for banner in unknown:
                self._references.missing(banner)
            raise NotFound(Unmeasured.UNKNOWN_KERNEL, printable(unknown[0].rstrip(), 256)) from error

    def _require_running(self, state: BootState) -> None:
        """:raises NotFound: the kernel has not finished its start, or has begun its end."""
        try:
            phase = state.guest.u32(state.guest.symbol("system_state"))
        except GuestFault as fault:
            raise NotFound(Unmeasured.BOOTING, fault.message) from fault
        if phase != SYSTEM_RUNNING:
            raise NotFound(Unmeasured.BOOTING, f"the kernel is starting or stopping (system_state {phase})")

    def _build(self, reference: Reference) -> Build:
        with self._lock:
            known = self._builds.get(reference.manifest_digest)
            if known is None or known.vmlinux is not reference.vmlinux:
                known = self._builds[reference.manifest_digest] = Build(reference.vmlinux)
            return known

    def _run(self, state: BootState, facts: PassFacts) -> Integrity:
        reference = state.reference
        context = CheckContext(state.guest, reference, state, state.structures, facts)
        results: dict[str, CheckResult] = {}
        for check in self._checks:
            results[check.name] = check.run(context)
        vmlinux = reference.vmlinux
        return Integrity(
            status=Status.MEASURED,
            kernel=KernelIdentity(reference.manifest_digest, vmlinux.release, vmlinux.build_id),
            checks=tuple(results[name] for name in sorted(results)),
            modules=facts.module_facts,
            code_bytes=facts.code_bytes,
            unexplained_bytes=facts.unexplained_bytes,
        )


def passed(measurement: Measurement) -> bool:
    """Whether every check was carried out in full and found nothing. Not a verdict: that needs the policy."""
    integrity = measurement.integrity
    return integrity.status is Status.MEASURED and all(c.outcome is Outcome.PASSED for c in integrity.checks)


def unmeasured(guest: uuid.UUID, reason: Unmeasured, detail: str) -> Measurement:
    """The measurement of a guest whose memory could not even be opened."""
    return Measurement(guest, _unmeasured(reason, detail), Inventory(), Observation("", 0, 0))


def _unmeasured(reason: Unmeasured, detail: str) -> Integrity:
    return Integrity(status=Status.UNMEASURED, reason=reason, detail=printable(detail.encode(), 256))
