# SPDX-License-Identifier: Apache-2.0
"""What a check is, what it may look at, and how it states what it found.

A check fails when the guest's memory is not what the reference kernel's must be. It is incomplete when it
could not be carried out in full: never as good as passed. A check that met both has failed.

A check of its own (namespace ``nova_vmi_attest.checks``) subclasses :class:`Check` and yields findings.
"""

from __future__ import annotations

import abc
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import CheckResult, Finding, Module, Outcome, Process
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.memory.base import Bytes, GuestGone, ReaderError
from nova_vmi_attest.introspection.state import BootState
from nova_vmi_attest.introspection.structures import LiveModule, Structures
from nova_vmi_attest.kernel.kallsyms import SymbolError
from nova_vmi_attest.kernel.reference import Reference

FINDING_LIMIT = 64
EVIDENCE_BYTES = 32
DETAIL_LIMIT = 256
NEAR = 16  # differences this close together are one finding
OFFSETS_LIMIT = 1 << 16


@dataclass
class PassFacts:
    """What the checks of one pass learn and later ones build on."""

    modules: tuple[LiveModule, ...] = ()
    verified: tuple[LiveModule, ...] = ()  # those of them whose text is that of their reference
    module_facts: tuple[Module, ...] = ()
    processes: tuple[Process, ...] = ()
    processes_left_out: int = 0
    tasks: tuple[int, ...] = ()
    code_bytes: int = 0
    unexplained_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CheckContext:
    """One pass over one guest."""

    guest: Guest
    reference: Reference
    state: BootState
    structures: Structures
    facts: PassFacts = field(default_factory=PassFacts)

    def name(self, address: int) -> str:
        """``symbol+0x10`` of a running address in the kernel image, or the address itself."""
        guest = self.guest
        start, end = guest.symbol("_text"), guest.symbol("_end")
        if start <= address < end:
            try:
                symbol, offset = guest.vmlinux.symbols.at(guest.link(address))
            except SymbolError:
                return f"{address:#x}"
            return f"{symbol}+{offset:#x}" if offset else symbol
        for module in self.facts.modules:
            for extent in module.extents:
                if extent.holds(address):
                    return f"{module.name}+{address - extent.base:#x}"
        return f"{address:#x}"


class Findings:
    """Collects at most 64 findings of one check, and why it could not be completed."""

    def __init__(self, check: str) -> None:
        self.check = check
        self.bytes_verified = 0
        self._found: list[Finding] = []
        self._left_out = 0
        self._incomplete = ""
        self._remark = ""

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(
        self,
        symbol: str,
        detail: str = "",
        *,
        offset: int = 0,
        length: int = 0,
        address: int = 0,
        expected: bytes = b"",
        actual: bytes = b"",
    ) -> None:
        """One deviation; bytes and text are cut to their bounds."""
        if len(self._found) >= FINDING_LIMIT:
            self._left_out += 1
            return
        self._found.append(
            Finding(
                check=self.check,
                symbol=symbol[:128],
                offset=offset,
                length=length,
                address=address,
                expected=expected[:EVIDENCE_BYTES],
                actual=actual[:EVIDENCE_BYTES],
                detail=detail[:DETAIL_LIMIT],
            )
        )

    def incomplete(self, why: str) -> None:
        """Part of the check could not be carried out; the first reason is kept."""
        self._incomplete = self._incomplete or why

    def remark(self, what: str) -> None:
        """Something worth saying of a check that passed."""
        self._remark = what

    def result(self) -> CheckResult:
        """What the check came to."""
        unfinished = Outcome.INCOMPLETE if self._incomplete else Outcome.PASSED
        outcome = Outcome.FAILED if self._found else unfinished
        return CheckResult(
            check=self.check,
            outcome=outcome,
            bytes_verified=self.bytes_verified,
            findings=tuple(self._found),
            truncated=self._left_out,
            detail=(self._incomplete or self._remark)[:DETAIL_LIMIT],
        )

    def differences(
        self,
        offsets: NDArray[np.int64],
        expected: Callable[[int, int], bytes],
        live: Bytes,
        base: int,
        locate: Callable[[int], tuple[str, int]],
        detail: str,
    ) -> None:
        """Findings for differing bytes: neighbouring ones of one symbol are one finding.

        :param offsets: ascending byte offsets into ``live`` that differ.
        :param expected: gives bytes of the expectation from an offset and a length.
        :param base: running address of ``live[0]``.
        :param locate: symbol and offset of a running address.
        """
        cut = offsets[:OFFSETS_LIMIT]
        breaks = np.flatnonzero(np.diff(cut) > NEAR) + 1
        self._left_out += max(len(breaks) - 2 * FINDING_LIMIT, 0)
        waiting = np.split(cut, breaks[: 2 * FINDING_LIMIT])[: 2 * FINDING_LIMIT]
        for _ in range(4 * FINDING_LIMIT):
            if not waiting:
                break
            run = waiting.pop(0)
            first = int(run[0])
            symbol, inside = locate(base + first)
            # A run that reaches into the next symbol is cut there.
            here = bisect_left(run, 1, key=lambda at: int(locate(base + int(at))[0] != symbol))
            if here < len(run):
                waiting.insert(0, run[here:])
            length = int(run[here - 1]) - first + 1
            self.add(
                symbol,
                detail,
                offset=inside,
                length=length,
                address=base + first,
                expected=expected(first, min(length, EVIDENCE_BYTES)),
                actual=live[first : first + min(length, EVIDENCE_BYTES)].tobytes(),
            )
        self._left_out += len(waiting)


class Check(abc.ABC):
    """One check. ``name`` is its name on the wire, ``needs`` the checks whose facts it builds on."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def run(self, context: CheckContext) -> CheckResult:
        """Carry it out. Whatever the guest's memory holds, this returns a result.

        :raises GuestGone: the guest ended meanwhile.
        :raises ReaderError: the reader failed.
        """
        findings = Findings(self.name)
        try:
            self.examine(context, findings)
        except (GuestGone, ReaderError):
            raise
        except AttestError as error:
            findings.incomplete(error.message)
        return findings.result()

    @abc.abstractmethod
    def examine(self, context: CheckContext, findings: Findings) -> None:
        """State every deviation in ``findings``.

        :raises AttestError: the check could not be carried out in full.
        """
