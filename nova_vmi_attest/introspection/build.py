# SPDX-License-Identifier: Apache-2.0
"""What the checks need to know of a kernel build, worked out once and shared by every guest that runs it.

All of it comes from the reference; nothing of a guest is in here. Offsets count from ``_text``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

KEY_PREFIX = "__SCK__"
JUMP_ENTRY = np.dtype([("code", "<i4"), ("target", "<i4"), ("key", "<i8")])
CALL_ENTRY = np.dtype([("code", "<i4"), ("key", "<i4")])
INIT_FLAG = 2  # set by the kernel on sites of initialisation code, and by objtool on some others
# The one literal that boot code splits in place (arch/x86/kernel/cpu/resctrl/core.c, set_rdt_options).
SPLIT_LITERAL = b"\0!cmt,!mbmtotal,!mbmlocal,!l3cat\0"
READ_ONLY = ("__start_rodata", "__end_rodata")
AFTER_INIT = ("__start_ro_after_init", "__end_ro_after_init")
JUMP_TABLE = ("__start___jump_table", "__stop___jump_table")
CALL_SITES = ("__start_static_call_sites", "__stop_static_call_sites")


class BuildError(AttestError):
    """The reference kernel is not laid out as the checks know it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` up to ``end`` of the image."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class StaticCall:
    """A static call of the build: link-time addresses of its key and of its first target (0 for none)."""

    name: str
    key: int
    target: int


class Build:
    """One kernel build. Safe to share between threads."""

    def __init__(self, vmlinux: Vmlinux) -> None:
        self.vmlinux = vmlinux
        self._spans: dict[tuple[str, str], Span | None] = {}

    def span(self, names: tuple[str, str]) -> Span | None:
        """The bytes between two symbols of the linker script; None when the build has none.

        :raises BuildError: they are not inside the image.
        """
        if names not in self._spans:
            self._spans[names] = self._between(names)
        return self._spans[names]

    def _between(self, names: tuple[str, str]) -> Span | None:
        first, last = (self.vmlinux.symbols.get(name) for name in names)
        if first is None or last is None:
            return None
        start, end = first - LINK_BASE, last - LINK_BASE
        if not 0 <= start <= end <= len(self.vmlinux.image):
            raise BuildError(f"{names[0]} .. {names[1]} is not inside the kernel's image")
        return Span(start, end)

    def required(self, names: tuple[str, str]) -> Span:
        """The same where every build has it.

        :raises BuildError: this one does not.
        """
        span = self.span(names)
        if span is None:
            raise BuildError(f"the kernel has no {names[0]} .. {names[1]}")
        return span

    @cached_property
    def text(self) -> Span:
        """Kernel text."""
        return self.required(("_text", "_etext"))

    @cached_property
    def read_only(self) -> Span:
        """Read-only data, tables that boot code changes included."""
        return self.required(READ_ONLY)

    @cached_property
    def functions(self) -> NDArray[np.uint64]:
        """Link-time addresses of all symbols in text, ascending and unique."""
        starts = self.vmlinux.symbols.starts
        low, high = np.searchsorted(starts, np.array([LINK_BASE, LINK_BASE + self.text.end], np.uint64))
        return np.unique(starts[low:high])

    @cached_property
    def static_calls(self) -> tuple[StaticCall, ...]:
        """The static call keys of the image."""
        found = []
        for name, address in self.vmlinux.symbols.items():
            offset = address - LINK_BASE
            if name.startswith(KEY_PREFIX) and 0 <= offset <= len(self.vmlinux.image) - 8:
                target = int.from_bytes(self.vmlinux.image[offset : offset + 8].tobytes(), "little")
                found.append(StaticCall(name.removeprefix(KEY_PREFIX), address, target))
        return tuple(found)

    @cached_property
    def ignored(self) -> tuple[tuple[int, int], ...]:
        """Bytes of :attr:`read_only` that boot code writes, as ascending disjoint ranges from its start.

        They are: what is read-only only after initialisation, the two tables that the kernel sorts (mostly
        inside that already), the padding behind the last section, and the commas of the one literal that it
        splits.
        """
        span = self.read_only
        mask = np.zeros(span.size + 2, np.int8)
        inside = mask[1:-1]
        for names in (AFTER_INIT, JUMP_TABLE, CALL_SITES):
            part = self.span(names)
            if part is not None:
                inside[max(part.start - span.start, 0) : max(part.end - span.start, 0)] = 1
        inside[self.padding.start - span.start :] = 1
        inside[self.commas - span.start] = 1
        edges = np.flatnonzero(np.diff(mask)).reshape(-1, 2)
        return tuple((start, end) for start, end in edges.tolist())

    @cached_property
    def padding(self) -> Span:
        """From the end of the last section of read-only data to the end of its last page."""
        span = self.read_only
        ends = [
            place[0] + place[1]
            for name in self.vmlinux.sections
            if (place := self.vmlinux.section_offset(name)) is not None and span.start <= place[0] < span.end
        ]
        end = max(ends, default=span.end)
        return Span(min(end, span.end), span.end)

    @cached_property
    def commas(self) -> NDArray[np.int64]:
        """Offsets of the commas that become NUL when the kernel splits its literal; empty without it."""
        place = self.vmlinux.section_offset(".rodata")
        if place is None:
            return np.zeros(0, np.int64)
        data = self.vmlinux.image[place[0] : place[0] + place[1]].tobytes()
        found = data.find(SPLIT_LITERAL)
        if found < 0 or data.find(SPLIT_LITERAL, found + 1) >= 0:
            return np.zeros(0, np.int64)
        at = np.array([i for i, c in enumerate(SPLIT_LITERAL) if c == ord(",")], np.int64)
        return at + found + place[0]

    @cached_property
    def jump_table(self) -> NDArray[np.int64]:
        """The static branch sites, one row (code, target, key) each, in canonical order."""
        return self._table(JUMP_TABLE, JUMP_ENTRY)

    @cached_property
    def call_sites(self) -> NDArray[np.int64]:
        """The static call sites, one row (code, key) each, in canonical order."""
        return self._table(CALL_SITES, CALL_ENTRY)

    def _table(self, names: tuple[str, str], entry: np.dtype[np.void]) -> NDArray[np.int64]:
        span = self.span(names)
        if span is None:
            return np.zeros((0, len(entry.names or ())), np.int64)
        rows = absolute(self.vmlinux.image[span.start : span.end], span.start, entry)
        rows[:, -1] &= ~INIT_FLAG
        return canonical_order(self.flagged(rows))

    def flagged(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows with the kernel's mark on the sites of initialisation code (kernel/jump_label.c)."""
        part = self.required(("__init_begin", "__init_end"))
        inside = (rows[:, 0] >= part.start) & (rows[:, 0] < part.end)
        rows[inside, -1] |= INIT_FLAG
        return rows


def absolute(data: NDArray[np.uint8], start: int, entry: np.dtype[np.void]) -> NDArray[np.int64]:
    """A table of self-relative fields at offset ``start`` as rows of offsets; flags stay in the last one."""
    count = len(data) // entry.itemsize
    table = np.frombuffer(data[: count * entry.itemsize].tobytes(), entry)
    at = start + np.arange(count, dtype=np.int64) * entry.itemsize
    columns = []
    with np.errstate(over="ignore"):
        for name in entry.names or ():
            field = entry.fields[name][1] if entry.fields else 0
            columns.append(table[name].astype(np.int64) + at + field)
    return np.stack(columns, axis=1)


def canonical_order(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows in an order that depends on nothing but their values."""
    return rows[np.lexsort(rows.T[::-1])] if len(rows) else rows
