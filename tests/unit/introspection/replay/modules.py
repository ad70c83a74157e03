# SPDX-License-Identifier: Apache-2.0
"""Small modules for the tests: sections, symbols and relocations without a file around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nova_vmi_attest.kernel.module import ModuleObject, ModuleRelocations, ModuleSection, ModuleSymbol

WRITE, ALLOC, EXEC = 1, 2, 4
PROGBITS, NOBITS = 1, 8


def section(
    name: str, data: bytes = b"", flags: int = ALLOC, *, align: int = 1, size: int | None = None
) -> ModuleSection:
    kind = PROGBITS if size is None else NOBITS
    length = len(data) if size is None else size
    return ModuleSection(name, length, flags, align, kind, np.frombuffer(data, np.uint8))


def symbol(name: str, home: int, value: int = 0, *, bind: int = 1) -> ModuleSymbol:
    return ModuleSymbol(name, home, value, 0, bind, 0)


def relocations(*rows: tuple[int, int, int, int]) -> ModuleRelocations:
    """(offset, type, symbol, addend)"""
    offset, kind, number, addend = zip(*rows, strict=True)
    return ModuleRelocations(
        np.array(offset, np.int64),
        np.array(kind, np.uint32),
        np.array(number, np.uint32),
        np.array(addend, np.int64),
    )


def module(
    *sections: ModuleSection,
    symbols: Sequence[ModuleSymbol] = (),
    relocated: Mapping[int, ModuleRelocations] | None = None,
) -> ModuleObject:
    """A module whose section 0 and symbol 0 are empty, as in every file."""
    return ModuleObject(
        "sample",
        "6.1.0 SMP",
        (ModuleSection("", 0, 0, 0, 0, np.zeros(0, np.uint8)), *sections),
        (ModuleSymbol("", 0, 0, 0, 0, 0), *symbols),
        relocated or {},
    )
