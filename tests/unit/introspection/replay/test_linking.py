# SPDX-License-Identifier: Apache-2.0
"""Relocations of modules, of every type."""

from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.replay.layout import MODULES_START, PERCPU, place
from nova_vmi_attest.introspection.replay.linking import Linker
from nova_vmi_attest.kernel.module import SHN_ABS, SHN_UNDEF, ModuleSymbol

from .modules import ALLOC, EXEC, WRITE, module, relocations, section, symbol
from .support import s32, u64

TEXT, DATA = MODULES_START + 0x1000, MODULES_START + 0x3000
IMPORTED = 0xFFFFFFFF81234560


def linked(symbols: list[ModuleSymbol], row: tuple[int, int, int, int]) -> tuple[bytes, Linker]:
    sample = module(
        section(".text", b"\xaa" * 16, ALLOC | EXEC),
        section(".data", bytes(64), ALLOC | WRITE),
        section(".lost", bytes(8), ALLOC | WRITE),
        section(PERCPU, bytes(8), ALLOC | WRITE),
        symbols=symbols,
        relocated={1: relocations(row)},
    )
    addresses = {".text": TEXT, ".data": DATA, PERCPU: 0x2000}
    placed = place(sample, addresses)
    linker = Linker(sample, placed, addresses, {"imported": IMPORTED}.get)
    return linker.link(placed[0]).tobytes(), linker


@pytest.mark.parametrize(
    ("kind", "addend", "expected"),
    [
        (1, 8, u64(DATA + 16)),
        (2, -4, s32(DATA + 4 - TEXT - 4)),
        (4, -4, s32(DATA + 4 - TEXT - 4)),
        (11, 8, s32(DATA + 16)),
        (24, 0, u64(DATA + 8 - TEXT - 4)),
        (0, 0, b""),
    ],
)
def test_each_type_of_relocation(kind: int, addend: int, expected: bytes) -> None:
    data, linker = linked([symbol("here", 2, 8)], (4, kind, 1, addend))
    assert data == b"\xaa" * 4 + expected.ljust(12, b"\xaa")
    assert (linker.unresolved, linker.overflowed) == ([], [])


@pytest.mark.parametrize(
    ("defined", "value"),
    [
        (symbol("imported", SHN_UNDEF), IMPORTED),
        (symbol("constant", SHN_ABS, 0x77), 0x77),
        (symbol("optional", SHN_UNDEF, bind=2), 0),
        (symbol("percpu", 4, 4), 0x2004),
    ],
)
def test_where_symbols_come_from(defined: ModuleSymbol, value: int) -> None:
    data, linker = linked([defined], (0, 1, 1, 0))
    assert data[:8] == u64(value)
    assert linker.unresolved == []


@pytest.mark.parametrize(
    ("missing", "name"), [(symbol("nobody", SHN_UNDEF), "nobody"), (symbol("", 3), ".lost")]
)
def test_what_nothing_defines_is_reported_and_not_written(missing: ModuleSymbol, name: str) -> None:
    data, linker = linked([missing], (0, 1, 1, 0))
    assert data == b"\xaa" * 16
    assert linker.unresolved == [name]


@pytest.mark.parametrize("kind", [2, 4, 10, 11])
def test_a_value_that_does_not_fit_is_reported_and_not_written(kind: int) -> None:
    data, linker = linked([symbol("far", SHN_ABS, 1 << 40)], (4, kind, 1, 0))
    assert data == b"\xaa" * 16
    assert linker.overflowed == [(".text", 4)]


def test_only_unsigned_relocations_refuse_kernel_addresses() -> None:
    assert linked([symbol("here", 2)], (0, 10, 1, 0))[1].overflowed == [(".text", 0)]
    assert linked([symbol("here", 2)], (0, 11, 1, 0))[1].overflowed == []
