# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from nova_vmi_attest.evidence.measurement import Outcome
from nova_vmi_attest.introspection.build import Build
from nova_vmi_attest.introspection.checks.base import CheckContext, Findings
from nova_vmi_attest.introspection.checks.pointers import (
    code_pointers,
    examine_pointers,
    examine_security_hooks,
    security_hooks,
)
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.paging import PAGE, PRESENT
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from ..fakes import KERNEL, FakeMemory, guest, kernel, map_page

SIZE = 64 * PAGE
TEXT_END, DATA, AFTER, HEADS = 0x20000, 0x28000, 0x2A000, 0x2A100
FUNCTION, OTHER = KERNEL + 0x18000, KERNEL + 0x18100
CALLBACK, TABLE = DATA + 0x10, AFTER + 0x200
NAMES = {
    "_text": KERNEL,
    "function": FUNCTION,
    "other": OTHER,
    "_etext": KERNEL + TEXT_END,
    "_sdata": KERNEL + DATA,
    "callback": KERNEL + CALLBACK,
    "_edata": KERNEL + DATA + 0x1000,
    "__start_ro_after_init": KERNEL + AFTER,
    "security_hook_heads": KERNEL + HEADS,
    "capability_hooks": KERNEL + TABLE,
    "__end_ro_after_init": KERNEL + AFTER + 0x1000,
    "_end": KERNEL + SIZE,
}
TYPES = {
    ("security_hook_heads", "sizeof"): 16,
    ("security_hook_list", "list"): 0,
    ("security_hook_list", "head"): 16,
    ("security_hook_list", "hook"): 24,
}


class Lab:
    """A kernel with one callback and two security hooks, as the build has them and attached."""

    def __init__(self) -> None:
        self.memory = FakeMemory(SIZE)
        vmlinux = kernel(NAMES, TYPES)
        image = np.zeros(SIZE, np.uint8)
        words = {CALLBACK: FUNCTION}
        for number in (0, 1):
            entry = TABLE + 40 * number
            words |= {entry + 16: KERNEL + HEADS + 8 * number, entry + 24: FUNCTION}
        for place, value in words.items():
            image[place : place + 8] = np.frombuffer(struct.pack("<Q", value), np.uint8)
        holder = cast(SimpleNamespace, vmlinux)
        holder.image, holder.relocations = image, SimpleNamespace(add64=np.array(sorted(words), np.int64))
        # The tables lie in the first pages, where the image has nothing.
        self.memory.put(0x10000, image[0x10000:].tobytes())
        for page in range(0x10000, SIZE, PAGE):
            map_page(self.memory, KERNEL + page, page, PRESENT | 1 << 63 if page >= TEXT_END else PRESENT)
        for number in (0, 1):
            self.memory.word(HEADS + 8 * number, KERNEL + TABLE + 40 * number)
        self.build = Build(cast(Vmlinux, vmlinux))
        self.guest: Guest = guest(self.memory, cast(Vmlinux, vmlinux))

    def findings(self, hooks: bool = False) -> Findings:
        state = SimpleNamespace(
            build=self.build,
            accepted={},
            modules={},
            is_function=lambda values: np.isin(values, np.array([FUNCTION, OTHER], np.uint64)),
        )
        context = SimpleNamespace(guest=self.guest, state=state, name=self.name)
        found = Findings("hooks")
        (examine_security_hooks if hooks else examine_pointers)(cast(CheckContext, context), found)
        return found

    def name(self, address: int) -> str:
        symbol, offset = self.guest.vmlinux.symbols.at(address)
        return f"{symbol}+{offset:#x}" if offset else symbol


def test_the_build_says_where_pointers_to_code_are() -> None:
    found = code_pointers(Lab().build)
    assert found is not None
    assert found.places.tolist() == [CALLBACK - DATA]
    assert found.values.tolist() == [FUNCTION]


def test_a_pointer_as_built_passes_and_one_exchanged_is_named() -> None:
    lab = Lab()
    assert lab.findings().result().outcome is Outcome.PASSED
    lab.memory.word(CALLBACK, OTHER)
    result = lab.findings().result()
    assert result.outcome is Outcome.PASSED
    assert "callback" in result.detail


def test_a_pointer_into_a_function_is_a_finding() -> None:
    lab = Lab()
    lab.memory.word(CALLBACK, FUNCTION + 3)
    assert [one.symbol for one in lab.findings().result().findings] == ["callback"]


@pytest.mark.parametrize("value", [0, 0x1234, KERNEL + DATA])
def test_a_value_that_cannot_be_executed_is_none(value: int) -> None:
    lab = Lab()
    lab.memory.word(CALLBACK, value)
    assert not lab.findings()


def test_the_build_says_which_security_hooks_there_are() -> None:
    found = security_hooks(Lab().build)
    assert {entry - KERNEL: hook.head - KERNEL for entry, hook in found.items()} == {
        TABLE: HEADS,
        TABLE + 40: HEADS + 8,
    }
    assert {hook.table for hook in found.values()} == {"capability_hooks"}


def test_security_hooks_as_built_pass() -> None:
    assert not Lab().findings(hooks=True)


@pytest.mark.parametrize(
    ("place", "value", "symbol"),
    [
        (HEADS, 0, "capability_hooks"),
        (HEADS, KERNEL + DATA, "security_hook_heads"),
        (HEADS, KERNEL + TABLE + 40, "security_hook_heads"),
        (TABLE, KERNEL + TABLE, "security_hook_heads"),
        (TABLE + 24, OTHER, "capability_hooks"),
    ],
    ids=["emptied", "strange", "of another list", "without end", "exchanged"],
)
def test_a_bent_security_hook_is_a_finding(place: int, value: int, symbol: str) -> None:
    lab = Lab()
    lab.memory.word(place, value)
    assert symbol in [one.symbol for one in lab.findings(hooks=True).result().findings]
