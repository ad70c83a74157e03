# SPDX-License-Identifier: Apache-2.0
"""The page tables map the kernel where it lies, alike for every process, and never writable where it must
not be.

Text and read-only data are compared through these tables, so a page of text that is mapped elsewhere must
show here. Checked: every mapping of the kernel image leads to its own place in RAM; no mapping of the
kernel half lets the kernel write to text or read-only data; the kernel half of every process's top-level
table is the kernel's, accessed and dirty bits aside; with page table isolation the same for the tables that
user mode runs on, whose executable mappings must be among the kernel's own.

NOT checked: user mappings, and page tables that no task owns (EFI, a trampoline being run).

Sources: arch/x86/mm/{pgtable,pti,ident_map}.c, arch/x86/include/asm/pgtable_64_types.h.
"""

from __future__ import annotations

from operator import is_

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.checks.base import FINDING_LIMIT, Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.paging import (
    ACCESSED,
    DIRTY,
    ENTRIES,
    PAGE,
    AddressSpace,
    Leaves,
    PagingError,
)

HALF = ENTRIES // 2
ISOLATION = 7 * 32 + 11  # X86_FEATURE_PTI, since it exists
STABLE = np.uint64(((1 << 64) - 1) ^ (ACCESSED | DIRTY))
# A process may have a local descriptor table of its own, mapped in one slot of its top-level table.
LDT_SLOT = {4: ENTRIES - 240, 5: ENTRIES - 112}
ATTEMPTS = 3


class PageTables(Check):
    """See the module."""

    name = "page_tables"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """Three questions: the image, who may write to it, and the processes."""
        leaves = context.guest.space.leaves()
        if leaves is not context.state.sound:
            self._image(context, findings, leaves)
            self._writable(context, findings, leaves)
            context.state.sound = None if findings else leaves
        self._processes(context, findings)

    def _image(self, context: CheckContext, findings: Findings, leaves: Leaves) -> None:
        guest, build = context.guest, context.state.build
        base = guest.symbol("_text")
        start, end = np.uint64(base), np.uint64(guest.symbol("_end"))
        inside = leaves.select((leaves.va < end) & (leaves.va + leaves.size > start))
        there = inside.va.astype(np.int64) - np.int64(base - (1 << 64)) + np.int64(guest.physical_base)
        elsewhere = inside.gpa.astype(np.int64) != there
        for va, gpa, size in _rows(inside.select(elsewhere)):
            detail = f"{size:#x} bytes are mapped to guest-physical {gpa:#x}, outside the kernel image"
            findings.add(context.name(va), detail, length=size, address=va)
        pages = -(-build.read_only.end // PAGE)
        edges = np.zeros(pages + 1, np.int64)
        first = np.maximum(inside.va.astype(np.int64) - np.int64(base - (1 << 64)), 0) // PAGE
        np.add.at(edges, np.minimum(first, pages), 1)
        np.subtract.at(edges, np.minimum(first + inside.size.astype(np.int64) // PAGE, pages), 1)
        mapped = np.cumsum(edges)[:pages] > 0
        for span in (build.text, build.read_only):
            for page in np.flatnonzero(~mapped[span.start // PAGE : -(-span.end // PAGE)])[:ENTRIES].tolist():
                va = base + span.start + page * PAGE
                findings.add(context.name(va), "not mapped", length=PAGE, address=va)

    def _writable(self, context: CheckContext, findings: Findings, leaves: Leaves) -> None:
        guest, build = context.guest, context.state.build
        found = leaves.writable()
        for span in (build.text, build.read_only):
            start = np.uint64(guest.physical_base + span.start)
            end = np.uint64(guest.physical_base + span.end)
            for va, gpa, size in _rows(found.select((found.gpa < end) & (found.gpa + found.size > start))):
                symbol = context.name(guest.symbol("_text") + max(gpa - guest.physical_base, span.start))
                findings.add(symbol, f"can be written through {va:#x}", length=size, address=va)

    def _processes(self, context: CheckContext, findings: Findings) -> None:
        guest = context.guest
        root = guest.space.root
        lower, kernel = guest.space.table(root)[:HALF], guest.space.table(root)[HALF:]
        if lower.any():
            slot = int(np.flatnonzero(lower)[0])
            detail = f"slot {slot} maps addresses of processes"
            findings.add("init_top_pgt", detail, offset=8 * slot, length=8)
        user = self._user_half(context, findings)
        strange = 0
        for task in context.structures.tasks():
            for _ in range(ATTEMPTS):
                odd = self._compare(context, task, kernel, user)
                if not odd:
                    break
                guest.refresh()
            if not odd:
                continue
            process = context.structures.task(task)
            for detail in odd:
                findings.add(f"process {process.pid}", f"{process.name}: {detail}")
            strange += 1
            if strange >= FINDING_LIMIT:
                # Each costs several readings: a guest that makes up tasks must not decide how many.
                findings.incomplete(f"looked no further than {strange} processes with odd page tables")
                break

    def _user_half(self, context: CheckContext, findings: Findings) -> NDArray[np.uint64] | None:
        """The kernel half that user mode runs on under page table isolation, None without it."""
        guest, state = context.guest, context.state
        space = state.user_space
        space.refresh()
        half = space.table(space.root)[HALF:]
        if not half.any() and not state.text().inputs.has(ISOLATION):
            return None
        leaves = space.leaves(), guest.space.leaves()
        if state.sound_user is not None and all(map(is_, leaves, state.sound_user)):
            return half
        clean = True
        for va, gpa, size in _rows(space.executable()):
            if list(guest.space.spans(va, size)) != [(va, gpa, size)]:
                clean = False
                detail = f"user mode's page table alone maps {size:#x} executable bytes to {gpa:#x}"
                findings.add(context.name(va), detail, length=size, address=va)
        state.sound_user = leaves if clean else None
        return half

    def _compare(
        self, context: CheckContext, task: int, kernel: NDArray[np.uint64], user: NDArray[np.uint64] | None
    ) -> list[str]:
        """What is odd about the tables of one task."""
        guest = context.guest
        try:
            address = context.structures.top_table(task)
            physical = None if address is None else guest.space.translate(address)
            if address is None or physical is None:
                return [] if address is None else ["its top-level page table is not mapped"]
            odd = self._half(context, physical, kernel, "kernel mode")
            if user is not None:
                odd += self._half(context, physical | PAGE, user, "user mode")
        except (GuestFault, PagingError) as fault:
            return [fault.message]
        return odd

    def _half(self, context: CheckContext, physical: int, wanted: NDArray[np.uint64], mode: str) -> list[str]:
        guest = context.guest
        table = guest.space.table(physical)
        if np.array_equal(table[HALF:], wanted):
            return []
        slots = np.flatnonzero((table[HALF:] ^ wanted) & STABLE) + HALF
        own = LDT_SLOT[guest.located.levels]
        strange = [slot for slot in slots.tolist() if slot != own]
        odd = [f"slot {slot} of the {mode} page table is not the kernel's" for slot in strange]
        if own in slots.tolist():
            space = AddressSpace(guest.memory, physical, guest.located.levels)
            shift = 3 + 9 * guest.located.levels
            local = space.leaves(own).executable()
            if any(va >> shift & (ENTRIES - 1) == own for va in local.va.tolist()):
                odd.append(f"executable mappings in the descriptor table slot of the {mode} page table")
        return odd


def _rows(leaves: Leaves) -> list[tuple[int, int, int]]:
    return list(zip(leaves.va.tolist(), leaves.gpa.tolist(), leaves.size.tolist(), strict=True))
