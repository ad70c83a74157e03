# SPDX-License-Identifier: Apache-2.0
"""Symbols and relocations of a module, applied as the kernel does when it loads one.

Source: kernel/module/main.c (simplify_symbols), arch/x86/kernel/module.c (apply_relocate_add).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.kernel.module import SHN_ABS, SHN_UNDEF, ModuleObject

from .inputs import MASK64, signed
from .layout import PERCPU, Placed
from .patching import Bytes

STB_WEAK = 2
R_NONE, R_64, R_PC32, R_PLT32, R_32, R_32S, R_PC64 = 0, 1, 2, 4, 10, 11, 24


class Linker:
    """Gives the bytes of a module's sections at the addresses where they run.

    :param resolve: the running address of a symbol that another module or the kernel defines, or None.

    ``unresolved`` collects what a relocation needed and nothing gave, and ``overflowed`` the relocations
    whose value does not fit, as (section, offset). The bytes of both keep what the file has, so they will
    not match a guest.
    """

    def __init__(
        self,
        module: ModuleObject,
        placed: Sequence[Placed],
        addresses: Mapping[str, int],
        resolve: Callable[[str], int | None],
    ) -> None:
        self._module = module
        self._resolve = resolve
        self._bases = {one.index: one.address for one in placed}
        percpu = module.section_index(PERCPU)
        if percpu is not None and PERCPU in addresses:
            self._bases[percpu] = addresses[PERCPU]
        self._known: dict[int, int | None] = {}
        self.unresolved: list[str] = []
        self.overflowed: list[tuple[str, int]] = []

    def link(self, placed: Placed) -> Bytes:
        """A writable copy of a section's bytes after relocation."""
        data = placed.section.data.copy()
        table = self._module.relocations.get(placed.index)
        if table is None or not len(table.offset):
            return data
        numbers, which = np.unique(table.symbol, return_inverse=True)
        found = [self._value(number) for number in numbers.tolist()]
        defined = np.array([value is not None for value in found], np.bool_)[which]
        values = np.array([signed(value or 0) for value in found], np.int64)[which]
        with np.errstate(over="ignore"):  # the kernel computes modulo 2**64
            values = values + table.addend
            relative = values - (signed(placed.address) + table.offset)
        fits = np.ones(len(values), np.bool_)
        for kind, width, source, low, high in (
            (R_64, 8, values, None, None),
            (R_PC64, 8, relative, None, None),
            (R_PC32, 4, relative, -(1 << 31), 1 << 31),
            (R_PLT32, 4, relative, -(1 << 31), 1 << 31),
            (R_32, 4, values, 0, 1 << 32),
            (R_32S, 4, values, -(1 << 31), 1 << 31),
        ):
            chosen = (table.type == kind) & defined
            if low is not None and high is not None:
                fits &= ~chosen | ((source >= low) & (source < high))
            chosen &= fits
            _store(data, table.offset[chosen], source[chosen], width)
        self.overflowed += [(placed.section.name, offset) for offset in table.offset[~fits].tolist()]
        return data

    def address(self, number: int) -> int | None:
        """Running address of a symbol that the module itself defines, or None."""
        symbol = self._module.symbols[number]
        base = self._bases.get(symbol.section)
        return None if base is None or symbol.section == SHN_UNDEF else (base + symbol.value) & MASK64

    def _value(self, number: int) -> int | None:
        if number not in self._known:
            self._known[number] = self._find(number)
        return self._known[number]

    def _find(self, number: int) -> int | None:
        symbol = self._module.symbols[number]
        if number == 0:
            return 0
        if symbol.section == SHN_ABS:
            return symbol.value
        if symbol.section != SHN_UNDEF:
            found = self.address(number)
            if found is None:
                self.unresolved.append(symbol.name or self._module.sections[symbol.section].name)
            return found
        found = self._resolve(symbol.name)
        if found is None and symbol.bind == STB_WEAK:
            return 0
        if found is None:
            self.unresolved.append(symbol.name)
        return found


def _store(data: Bytes, offsets: NDArray[np.int64], values: NDArray[np.int64], width: int) -> None:
    if len(offsets):
        places = offsets[:, None] + np.arange(width)
        data[places] = np.ascontiguousarray(values.astype("<i8"))[:, None].view(np.uint8)[:, :width]
