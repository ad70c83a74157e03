# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import cast

import pytest

from nova_vmi_attest.introspection.checks.base import CheckContext, Findings
from nova_vmi_attest.introspection.checks.idt import (
    EXCEPTIONS,
    STACKS,
    TABLE_ADDRESS,
    USER_VECTORS,
    InterruptTable,
)
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.paging import PAGE, PRESENT

from ..fakes import KERNEL, FakeMemory, guest, kernel, map_page

SIZE = 64 * PAGE
IDT, DESCRIPTOR, STUBS, SPURIOUS, ENTRIES = 0x20000, 0x21000, 0x22000, 0x22800, 0x23000
NAMES = {
    "_text": KERNEL,
    "idt_table": KERNEL + IDT,
    "idt_descr": KERNEL + DESCRIPTOR,
    "irq_entries_start": KERNEL + STUBS,
    "spurious_entries_start": KERNEL + SPURIOUS,
    "entry_INT80_compat": KERNEL + ENTRIES,
    **{f"asm_exc_{name}": KERNEL + ENTRIES + 0x10 * (1 + vector) for vector, name in EXCEPTIONS.items()},
    "_end": KERNEL + SIZE,
}


def gate(target: int, kind: int = 0x8E, stack: int = 0, segment: int = 0x10) -> bytes:
    middle, high = target >> 16 & 0xFFFF, target >> 32
    return struct.pack("<HHBBHII", target & 0xFFFF, segment, stack, kind, middle, high, 0)


def healthy(vector: int) -> bytes:
    kind = 0xEE if vector in USER_VECTORS else 0x8E
    if vector in EXCEPTIONS:
        return gate(NAMES[f"asm_exc_{EXCEPTIONS[vector]}"], kind, STACKS.get(vector, 0))
    if vector < 0x20:
        return bytes(16)
    if vector == 0x80:
        return gate(NAMES["entry_INT80_compat"], kind)
    if vector < 0xEC:
        return gate(KERNEL + STUBS + 8 * (vector - 0x20))
    return gate(KERNEL + SPURIOUS + 8 * (vector - 0xEC))


class Lab:
    def __init__(self) -> None:
        self.memory = FakeMemory(SIZE)
        self.guest: Guest = guest(self.memory, kernel(NAMES))
        for page in range(0x20000, SIZE, PAGE):
            map_page(self.memory, KERNEL + page, page)
        map_page(self.memory, TABLE_ADDRESS, IDT, PRESENT)
        self.memory.put(IDT, b"".join(map(healthy, range(256))))
        self.memory.put(DESCRIPTOR, struct.pack("<HQ", 4095, TABLE_ADDRESS))

    def findings(self) -> list[tuple[str, str]]:
        state = SimpleNamespace(accepted={})
        context = SimpleNamespace(guest=self.guest, state=state, name=hex)
        found = Findings("idt")
        InterruptTable().examine(cast(CheckContext, context), found)
        return [(one.symbol, one.detail) for one in found.result().findings]


def test_a_healthy_table_passes() -> None:
    assert Lab().findings() == []


@pytest.mark.parametrize(
    ("vector", "altered", "told"),
    [
        (14, gate(NAMES["asm_exc_debug"]), "leads to"),
        (0x40, gate(KERNEL + STUBS), "leads to"),
        (0x80, gate(KERNEL + 0x30000, 0xEE), "leads to"),
        (14, gate(NAMES["asm_exc_page_fault"], 0xEE), "type 0xee"),
        (14, gate(NAMES["asm_exc_page_fault"], 0x8E, 0, 0x18), "segment 0x18"),
        (14, gate(NAMES["asm_exc_page_fault"], 0x8E, 1), "stack 1"),
        (2, gate(NAMES["asm_exc_nmi"], 0x8E, 0), "stack 0"),
    ],
)
def test_an_altered_gate_is_a_finding(vector: int, altered: bytes, told: str) -> None:
    lab = Lab()
    lab.memory.put(IDT + 16 * vector, altered)
    found = lab.findings()
    assert [symbol for symbol, _ in found] == ["idt_table"]
    assert told in found[0][1]
    assert f"{vector:#x}" in found[0][1]


def test_a_table_elsewhere_is_a_finding() -> None:
    lab = Lab()
    lab.memory.put(DESCRIPTOR, struct.pack("<HQ", 4095, KERNEL + 0x30000))
    assert [symbol for symbol, _ in lab.findings()] == ["idt_descr"]


def test_an_alias_led_elsewhere_is_a_finding_whatever_the_descriptor_says() -> None:
    lab = Lab()
    map_page(lab.memory, TABLE_ADDRESS, 0x30000, PRESENT)
    lab.memory.put(DESCRIPTOR, struct.pack("<HQ", 4095, KERNEL + IDT))
    assert [symbol for symbol, _ in lab.findings()] == ["idt_table"]
