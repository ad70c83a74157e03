# SPDX-License-Identifier: Apache-2.0
"""Every gate of the interrupt descriptor table leads to the one stub of its vector.

A range check would miss a gate that leads to some other place of the kernel. Checked too: that gates run the
kernel's code segment at the privilege and on the stack that the vector needs, that the table the CPUs load is
this one in kernel and in user mode, and the tables of segments (:mod:`.segments`).

NOT checked: that a CPU's IDTR holds the address that the kernel loads, for memory does not show it.

Sources: arch/x86/kernel/idt.c, arch/x86/include/asm/{idtentry,irq_vectors,trapnr}.h; Intel SDM 3A, 6.14.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.checks.segments import examine_segments, spaces

VECTORS = 256
FIRST_EXTERNAL, FIRST_SYSTEM, SYSCALL = 0x20, 0xEC, 0x80
KERNEL_CODE = 0x10
USER_VECTORS = frozenset((3, 4, SYSCALL))  # breakpoint, overflow and the 32-bit system call
# Stacks of their own (arch/x86/kernel/idt.c, IST_INDEX_*), for the vectors that have one.
STACKS = {1: 3, 2: 2, 8: 1, 18: 4, 29: 5}
TABLE_ADDRESS = 0xFFFFFE0000000000  # CPU_ENTRY_AREA_RO_IDT
GATE = np.dtype(
    [("low", "<u2"), ("segment", "<u2"), ("stack", "u1"), ("type", "u1"), ("middle", "<u2"), ("high", "<u4"),
     ("reserved", "<u4")]
)  # fmt: skip

EXCEPTIONS: Mapping[int, str] = {
    0: "divide_error",
    1: "debug",
    2: "nmi",
    3: "int3",
    4: "overflow",
    5: "bounds",
    6: "invalid_op",
    7: "device_not_available",
    8: "double_fault",
    9: "coproc_segment_overrun",
    10: "invalid_tss",
    11: "segment_not_present",
    12: "stack_segment",
    13: "general_protection",
    14: "page_fault",
    15: "spurious_interrupt_bug",
    16: "coprocessor_error",
    17: "alignment_check",
    18: "machine_check",
    19: "simd_coprocessor_error",
    20: "virtualization_exception",
    21: "control_protection",
    29: "vmm_communication",
}
# Their handlers are installed only on CPUs that raise them.
OPTIONAL = frozenset((18, 20, 21, 29))
SYSTEM: Mapping[int, tuple[str, ...]] = {
    0x20: ("irq_move_cleanup",),
    0xEC: ("apic_timer_interrupt",),
    0xED: ("hyperv_stimer0",),
    0xEE: ("hyperv_reenlightenment",),
    0xF0: ("kvm_posted_intr_nested_ipi",),
    0xF1: ("kvm_posted_intr_wakeup_ipi",),
    0xF2: ("kvm_posted_intr_ipi",),
    0xF3: ("hyperv_callback", "kvm_asyncpf_interrupt", "xen_hvm_callback", "acrn_hv_callback"),
    0xF4: ("deferred_error",),
    0xF6: ("irq_work",),
    0xF7: ("x86_platform_ipi",),
    0xF8: ("reboot",),
    0xF9: ("threshold",),
    0xFA: ("thermal",),
    0xFB: ("call_function_single",),
    0xFC: ("call_function",),
    0xFD: ("reschedule_ipi",),
    0xFE: ("error_interrupt",),
    0xFF: ("spurious_apic_interrupt",),
}


class InterruptTable(Check):
    """See the module."""

    name = "idt"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The table's place first, then its gates, then the segments."""
        self._gates(context, findings)
        examine_segments(context, findings)

    def _gates(self, context: CheckContext, findings: Findings) -> None:
        guest, state = context.guest, context.state
        start = guest.symbol("idt_table")
        self._place(context, findings, start)
        raw = guest.read(start, VECTORS * GATE.itemsize)
        findings.bytes_verified += len(raw)
        if state.accepted.get(self.name) == raw:
            return
        gates = np.frombuffer(raw, GATE)
        targets = (
            gates["low"].astype(np.uint64)
            | gates["middle"].astype(np.uint64) << np.uint64(16)
            | gates["high"].astype(np.uint64) << np.uint64(32)
        )
        legal = self._legal(context)
        for vector, target in enumerate(targets.tolist()):
            gate = gates[vector]
            kind, segment = int(gate["type"]), int(gate["segment"])
            if not kind & 0x80 and not target:
                continue
            wanted_kind = 0xEE if vector in USER_VECTORS else 0x8E
            if target not in legal[vector]:
                detail = f"vector {vector:#x} leads to {context.name(target)}"
            elif segment != KERNEL_CODE or kind != wanted_kind:
                detail = f"vector {vector:#x} has segment {segment:#x} and type {kind:#x}"
            elif int(gate["stack"]) != STACKS.get(vector, 0) and (vector not in OPTIONAL or gate["stack"]):
                detail = f"vector {vector:#x} runs on stack {int(gate['stack'])}"
            else:
                continue
            at = vector * GATE.itemsize
            findings.add(
                "idt_table", detail, offset=at, length=GATE.itemsize, address=start + at,
                actual=raw[at : at + GATE.itemsize],
            )  # fmt: skip
        if not findings:
            state.accepted[self.name] = raw

    def _place(self, context: CheckContext, findings: Findings, table: int) -> None:
        """The descriptor that CPUs load names this table, by its own address or by its read-only alias.

        The alias is looked at in either case: CPUs may have loaded it before the descriptor was altered.
        """
        guest = context.guest
        address = guest.u64(guest.symbol("idt_descr") + 2)
        findings.bytes_verified += 8
        if address not in (table, TABLE_ADDRESS):
            findings.add("idt_descr", f"CPUs load the table at {address:#x}", offset=2, length=8)
        own = guest.space.translate(table)
        for mode, space in spaces(context):
            if space.translate(TABLE_ADDRESS) != own:
                detail = f"in {mode} CPUs see other memory in its place"
                findings.add("idt_table", detail, length=VECTORS * GATE.itemsize, address=TABLE_ADDRESS)

    def _legal(self, context: CheckContext) -> list[set[int]]:
        """The places to which each vector may lead."""
        guest = context.guest
        symbols = guest.vmlinux.symbols

        def running(name: str) -> set[int]:
            address = symbols.get(name)
            return set() if address is None else {address + guest.slide}

        legal = [set[int]() for _ in range(VECTORS)]
        for vector, name in EXCEPTIONS.items():
            legal[vector] |= running(f"asm_exc_{name}")
        legal[SYSCALL] |= running("entry_INT80_compat") | running("asm_int80_emulation")
        for vector, names in SYSTEM.items():
            for name in names:
                legal[vector] |= running(f"asm_sysvec_{name}")
        early = symbols.get("early_idt_handler_array")
        for vector in range(FIRST_EXTERNAL):
            # A vector that this CPU does not use keeps the handler of early boot, 9 bytes for each.
            if early is not None and (vector not in EXCEPTIONS or vector in OPTIONAL):
                legal[vector].add(early + guest.slide + 9 * vector)
        stubs, spurious = symbols["irq_entries_start"], symbols["spurious_entries_start"]
        # 8 bytes a stub, or 16 where they begin with a landing pad for indirect branches.
        step = 16 if spurious - stubs >= 16 * (FIRST_SYSTEM - FIRST_EXTERNAL) else 8
        for vector in range(FIRST_EXTERNAL, VECTORS):
            if vector < FIRST_SYSTEM:
                legal[vector].add(stubs + guest.slide + step * (vector - FIRST_EXTERNAL))
            else:
                legal[vector].add(spurious + guest.slide + step * (vector - FIRST_SYSTEM))
        return legal
