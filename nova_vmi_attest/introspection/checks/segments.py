# SPDX-License-Identifier: Apache-2.0
"""The descriptors of memory segments of each CPU hold no gate, and CPUs see the tables that were looked at.

A gate in the global descriptor table would let any process enter the kernel where the gate says. CPUs load
these tables through read-only aliases in the area for kernel entries, and under page table isolation an
interrupt in user mode reads them through the tables of user mode: each alias must lead to the table itself.

NOT checked: local descriptor tables of processes, and the register that says where the table lies (GDTR).

Sources: arch/x86/include/asm/{segment,desc_defs,cpu_entry_area}.h; Intel SDM volume 3A, 3.5 and 5.8.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nova_vmi_attest.introspection.checks.base import CheckContext, Findings
from nova_vmi_attest.introspection.guest import WORD
from nova_vmi_attest.introspection.paging import ENTRIES, PAGE, AddressSpace

TASK, LOCAL, THREAD, LAST = 8, 10, 12, 15  # GDT_ENTRY_TSS, _LDT, _TLS_MIN, _CPUNODE
PRESENT, ORDINARY = 0x80, 0x10  # of the access byte
TASK_KINDS, LOCAL_KINDS = (0x89, 0x8B), (0x82,)


def spaces(context: CheckContext) -> Iterator[tuple[str, AddressSpace]]:
    """(mode, address space) for each mode of the CPU that has tables of its own."""
    guest = context.guest
    yield "kernel mode", guest.space
    user = AddressSpace(guest.memory, guest.space.root + PAGE, guest.located.levels)
    if guest.has_symbol("pti_init") and user.table(user.root)[ENTRIES // 2 :].any():
        yield "user mode", user


def examine_segments(context: CheckContext, findings: Findings) -> None:
    """The table of each online CPU, then its aliases.

    :raises AttestError: a table cannot be read.
    """
    guest = context.guest
    if not guest.has_symbol("gdt_page") or not guest.has_symbol("__per_cpu_load"):
        return
    symbol = guest.symbol("gdt_page")
    at = guest.vmlinux.offset_of("__per_cpu_load") + symbol
    wanted = guest.vmlinux.image[at : at + PAGE].view("<u8")
    for cpu, area in context.structures.online_cpus():
        start = (area + symbol) & WORD
        table = np.frombuffer(guest.read(start, PAGE), "<u8")
        findings.bytes_verified += PAGE
        for index in np.flatnonzero(table != wanted).tolist():
            if not _legal(index, table):
                findings.add(
                    "gdt_page",
                    f"descriptor {index} of CPU {cpu} is {int(table[index]):#x}",
                    offset=8 * index,
                    length=8,
                    address=start + 8 * index,
                    expected=wanted[index].tobytes(),
                    actual=table[index].tobytes(),
                )
        _aliases(context, findings, cpu, area, table)


def _legal(index: int, table: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> bool:
    """Whether the kernel would write that descriptor: none of them is a gate."""
    access = int(table[index]) >> 40 & 0xFF
    if index in (TASK, LOCAL):
        return access in (TASK_KINDS if index == TASK else LOCAL_KINDS) or not table[index]
    if index in (TASK + 1, LOCAL + 1):
        return int(table[index]) >> 32 == 0  # the upper half of an address
    return THREAD <= index <= LAST and (not access & PRESENT or bool(access & ORDINARY))


def _aliases(
    context: CheckContext,
    findings: Findings,
    cpu: int,
    area: int,
    table: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> None:
    """The CPU's area for kernel entries, found by its task state segment, shows these very pages."""
    guest, offset = context.guest, context.structures.offset
    low, high = int(table[TASK]), int(table[TASK + 1])
    task = low >> 16 & 0xFFFFFF | (low >> 56 & 0xFF) << 24 | (high & 0xFFFFFFFF) << 32
    entry = (task - offset("cpu_entry_area", "tss")) & WORD
    for name, member in (("gdt_page", "gdt"), ("cpu_tss_rw", "tss")):
        own = guest.space.translate((area + guest.symbol(name)) & WORD)
        alias = (entry + offset("cpu_entry_area", member)) & WORD
        for mode, space in spaces(context):
            if space.translate(alias) != own:
                detail = f"in {mode} CPU {cpu} sees other memory in its place"
                findings.add(name, detail, length=PAGE, address=alias)
