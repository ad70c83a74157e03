# SPDX-License-Identifier: Apache-2.0
"""Guest memory made by hand: bytes, page tables over them, and a kernel small enough to read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np

from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.locate import Located
from nova_vmi_attest.introspection.memory.base import GuestMemory, MemoryRange
from nova_vmi_attest.introspection.paging import PAGE, PRESENT, WRITABLE
from nova_vmi_attest.kernel.btf import BtfError
from nova_vmi_attest.kernel.kallsyms import SymbolError
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

ROOT = 0x1000
KERNEL = LINK_BASE


class FakeMemory(GuestMemory):
    """RAM from guest-physical 0, held as bytes."""

    name = "fake"

    def __init__(self, size: int, content: bytes = b"") -> None:
        super().__init__([MemoryRange(0, size, 0)])
        self.bytes = bytearray(content.ljust(size, b"\0")[:size])

    def read(self, address: int, length: int) -> bytes:
        at = self.locate(address, length)
        self.bytes_read += length
        return bytes(self.bytes[at : at + length])

    def put(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data

    def word(self, address: int, value: int) -> None:
        self.put(address, struct.pack("<Q", value & ((1 << 64) - 1)))


def map_page(
    memory: FakeMemory, va: int, physical: int, flags: int = PRESENT | WRITABLE, levels: int = 4
) -> None:
    """Map one 4 KiB page; tables are taken from the pages that follow the root."""
    table = ROOT
    for level in range(levels - 1, 0, -1):
        at = table + (va >> (12 + 9 * level) & 511) * 8
        entry = int.from_bytes(memory.read(at, 8), "little")
        if not entry & PRESENT:
            free = int.from_bytes(memory.read(0, 8), "little") or ROOT + PAGE
            memory.word(0, free + PAGE)
            entry = free | PRESENT | WRITABLE | 4
            memory.word(at, entry)
        table = entry & ~0xFFF
    memory.word(table + (va >> 12 & 511) * 8, physical | flags)


@dataclass
class FakeSymbols:
    names: Mapping[str, int] = field(default_factory=dict)

    def get(self, name: str) -> int | None:
        return self.names.get(name)

    def __getitem__(self, name: str) -> int:
        if name not in self.names:
            raise SymbolError(f"no symbol {name}")
        return self.names[name]

    @property
    def starts(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array(sorted(self.names.values()), np.uint64)

    def at(self, address: int) -> tuple[str, int]:
        below = [(value, name) for name, value in self.names.items() if value <= address]
        if not below:
            raise SymbolError("no symbol there")
        value, name = max(below)
        return name, address - value

    def items(self) -> list[tuple[str, int]]:
        return sorted(self.names.items())


@dataclass
class FakeBtf:
    offsets: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def offset(self, structure: str, path: str) -> int:
        if (structure, path) not in self.offsets:
            raise BtfError(f"no {structure}.{path}")
        return self.offsets[structure, path]

    def has(self, structure: str, path: str = "") -> bool:
        return (structure, path) in self.offsets

    def size(self, name: str, path: str = "") -> int:
        return self.offsets[name, "sizeof"]


def kernel(names: Mapping[str, int], offsets: Mapping[tuple[str, str], int] | None = None) -> Vmlinux:
    """A kernel of symbols and types only; ``init_top_pgt`` lies at :data:`ROOT` of an image at 0."""
    symbols = FakeSymbols({"init_top_pgt": LINK_BASE + ROOT, **names})
    return cast(
        Vmlinux,
        SimpleNamespace(
            symbols=symbols,
            btf=FakeBtf(offsets or {}),
            offset_of=lambda name: symbols[name] - LINK_BASE,
            image=np.zeros(1 << 16, np.uint8),
        ),
    )


def guest(memory: FakeMemory, vmlinux: Vmlinux) -> Guest:
    """A guest whose kernel lies at guest-physical 0, without a slide, on the tables at :data:`ROOT`."""
    return Guest(memory, vmlinux, Located(0, 0, 0, 4))
