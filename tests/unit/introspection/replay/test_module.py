# SPDX-License-Identifier: Apache-2.0
"""A whole small module: linked, patched, and what is said of each section."""

from __future__ import annotations

from typing import cast

import pytest

from nova_vmi_attest.introspection.replay.layout import MODULES_START, SectionAddressError
from nova_vmi_attest.introspection.replay.module import INEXACT, ReplayedModule, replay_module
from nova_vmi_attest.introspection.replay.patching import Mechanism, ReplayError
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .modules import ALLOC, EXEC, WRITE, module, relocations, section, symbol
from .support import BASE, CAPABILITIES, Build, Memory, branch, capabilities, s32, u64

TEXT = MODULES_START + 0x1000
MORE, INIT, RODATA, TABLE = TEXT + 0x40, TEXT + 0x3000, TEXT + 0x1000, TEXT + 0x2000
FENTRY = BASE + 0x500
ADDRESSES = {
    ".text": TEXT,
    ".text.unlikely": MORE,
    ".init.text": INIT,
    ".rodata": RODATA,
    "__mcount_loc": TABLE,
    "__jump_table": TABLE + 0x100,
}


def replayed(addresses: dict[str, int] = ADDRESSES, table: bytes = bytes(8)) -> ReplayedModule:
    sample = module(
        section(".text", b"\xe8\0\0\0\0\xc3" + bytes(10), ALLOC | EXEC),
        section(".text.unlikely", b"\xc3" * 8, ALLOC | EXEC),
        section(".init.text", b"\xc3" * 8, ALLOC | EXEC),
        section(".rodata", bytes(8)),
        section("__mcount_loc", table),
        section("__jump_table", b"", ALLOC | WRITE),
        section(".bss", b"", ALLOC | WRITE, size=64),
        symbols=[symbol("__fentry__", 0), symbol("function", 1)],
        relocated={
            1: relocations((1, 4, 1, -4)),
            4: relocations((0, 1, 2, 0)),
            5: relocations((0, 1, 2, 0)),
        },
    )
    source = Memory({CAPABILITIES: capabilities(())})
    vmlinux = cast(Vmlinux, Build({"__fentry__": FENTRY}, 1))
    return replay_module(source, vmlinux, sample, addresses, vmlinux.symbols.get)


def test_code_is_linked_and_patched() -> None:
    found = {one.name: one for one in replayed().sections if one.name}
    assert found[".text"].expected.tobytes()[:6] == bytes.fromhex("0f1f440000 c3")
    assert found[".text"].owner.tolist()[:6] == [Mechanism.MCOUNT] * 5 + [Mechanism.NONE]
    assert found[".text"].executable
    assert not found[".text"].expected.flags.writeable


def test_read_only_data_is_linked() -> None:
    found = {one.name: one for one in replayed().sections}
    assert found[".rodata"].expected.tobytes() == u64(TEXT)
    assert not found[".rodata"].executable
    assert ".bss" not in found


def test_the_holes_between_code_must_be_zero_and_initialisation_is_gone() -> None:
    code = [one for one in replayed().sections if one.executable]
    assert [(one.name, one.address, len(one.expected)) for one in code] == [
        (".text", TEXT, 16),
        ("", TEXT + 16, 0x30),
        (".text.unlikely", MORE, 8),
        ("", MORE + 8, 0x1000 - 0x48),
    ]
    assert not code[1].expected.any()


def test_tables_that_loading_changes_are_named() -> None:
    assert replayed().inexact == (("__jump_table", INEXACT["__jump_table"]),)


def test_an_unresolved_symbol_is_reported() -> None:
    sample = module(
        section(".text", b"\xe8\0\0\0\0", ALLOC | EXEC),
        symbols=[symbol("nobody", 0)],
        relocated={1: relocations((1, 4, 1, -4))},
    )
    vmlinux = cast(Vmlinux, Build({}, 1))
    made = replay_module(Memory({}), vmlinux, sample, {".text": TEXT}, lambda name: None)
    assert made.unresolved == ("nobody",)
    assert made.sections[0].expected.tobytes() == b"\xe8\0\0\0\0"


def test_a_hostile_layout_is_a_typed_error() -> None:
    with pytest.raises(SectionAddressError):
        replayed({**ADDRESSES, ".text.unlikely": TEXT + 8})


def test_a_corrupt_table_is_a_typed_error() -> None:
    with pytest.raises(ReplayError):
        replayed(table=bytes(8) + u64(TEXT + 0x10000))


def test_the_modules_own_trampolines_follow_its_own_keys() -> None:
    function = BASE + 0x700
    sample = module(
        section(".static_call.text", b"\xc3" * 8, ALLOC | EXEC),
        section(".data", bytes(16), ALLOC | WRITE),
        symbols=[symbol("__SCT__mine", 1), symbol("__SCK__mine", 2, 8), symbol("__SCT__alone", 1)],
    )
    source = Memory({RODATA: bytes(8) + u64(function)})
    vmlinux = cast(Vmlinux, Build({}, 1))
    addresses = {".static_call.text": TEXT, ".data": RODATA}
    made = replay_module(source, vmlinux, sample, addresses, lambda name: None)
    assert made.sections[0].expected.tobytes()[:5] == branch(0xE9, TEXT, function)
    assert made.inputs.static_calls == {RODATA + 8: function}


def test_a_module_without_code_is_possible() -> None:
    sample = module(section(".rodata", s32(7)))
    vmlinux = cast(Vmlinux, Build({}, 1))
    made = replay_module(Memory({}), vmlinux, sample, {".rodata": RODATA}, lambda name: None)
    assert [one.expected.tobytes() for one in made.sections] == [s32(7)]
