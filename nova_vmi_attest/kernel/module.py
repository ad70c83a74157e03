# SPDX-License-Identifier: Apache-2.0
"""A loadable module as the build left it: sections, symbols and relocations of a ``.ko`` file.

This is the input of a replay, not its result: addresses are zero until the kernel has placed the sections.
What follows the ELF file (a signature) is not looked at; the digest that selected the file covers it.

Source: System V ABI, chapter 4, and its AMD64 supplement; kernel/module/main.c and arch/x86/kernel/module.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.elf import (
    SHT_NOBITS,
    SHT_RELA,
    SHT_SYMTAB,
    ElfImage,
    ImageError,
    Section,
    c_string,
)

SHF_ALLOC = 2
SHN_UNDEF = 0
SHN_ABS = 0xFFF1

_ET_REL = 1
_RESERVED_INDEX = 0xFF00
_MAX_FILE = 256 << 20
_MAX_SYMBOLS = 1_000_000
_MAX_VERMAGIC = 256
_NAME = re.compile(r"[A-Za-z0-9_]{1,63}")
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
# Bytes that a relocation changes: R_X86_64_NONE, 64, PC32, PLT32, 32, 32S, PC64; modules have no others.
_WIDTHS = {0: 0, 1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}


class ModuleError(AttestError):
    """A module file is malformed, or is not an x86-64 kernel module."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSection:
    """One section, at its index in the file.

    ``data`` (read-only uint8) is empty when the section has no contents.
    """

    name: str
    size: int
    flags: int
    align: int
    type: int
    data: npt.NDArray[np.uint8]

    @property
    def allocated(self) -> bool:
        """Whether the kernel gives the section memory."""
        return bool(self.flags & SHF_ALLOC)


@dataclass(frozen=True, slots=True)
class ModuleSymbol:
    """``section`` is an index, or SHN_UNDEF or SHN_ABS; ``bind`` is STB_LOCAL 0, STB_GLOBAL 1, STB_WEAK 2."""

    name: str
    section: int
    value: int
    size: int
    bind: int
    type: int


@dataclass(frozen=True, slots=True, eq=False)
class ModuleRelocations:
    """The relocations of one section as parallel arrays; every place lies inside the section.

    ``offset`` int64 from the section's start, ``type`` uint32 (R_X86_64_*), ``symbol`` uint32 index,
    ``addend`` int64.
    """

    offset: npt.NDArray[np.int64]
    type: npt.NDArray[np.uint32]
    symbol: npt.NDArray[np.uint32]
    addend: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ModuleObject:
    """A module file.

    ``sections`` and ``symbols`` are by index; ``relocations`` by the index of the section changed.
    """

    name: str
    vermagic: str
    sections: tuple[ModuleSection, ...]
    symbols: tuple[ModuleSymbol, ...]
    relocations: Mapping[int, ModuleRelocations]

    @classmethod
    def parse(cls, ko: bytes) -> ModuleObject:
        """Read an uncompressed ``.ko`` file.

        Raises ModuleError. Its origin is not checked: digests do that.
        """
        if len(ko) > _MAX_FILE:
            raise ModuleError(f"a module file of {len(ko)} bytes is larger than any that is accepted")
        try:
            elf = ElfImage.parse(ko)
            if elf.type != _ET_REL:
                raise ModuleError("the file is not a relocatable object, as modules are")
            name, vermagic = _identity(elf, ko)
            symbols = _symbols(elf, ko)
        except ImageError as error:
            raise ModuleError(f"the module file is malformed: {error.message}") from error
        sections = tuple(_section(section, ko) for section in elf.ordered)
        return cls(name, vermagic, sections, symbols, _relocations(elf, ko, len(symbols)))

    def section_index(self, name: str) -> int | None:
        """The index of the first section called ``name``, or None."""
        return next((i for i, section in enumerate(self.sections) if section.name == name), None)


def normalised(name: str) -> str:
    """A module's name as the kernel spells it: hyphens of file names are underscores."""
    return name.replace("-", "_")


def _identity(elf: ElfImage, ko: bytes) -> tuple[str, str]:
    """(name, vermagic) from the NUL-separated ``key=value`` strings of .modinfo."""
    values: dict[str, str] = {}
    for entry in bytes(elf.contents(ko, ".modinfo")).split(b"\0"):
        key, separator, value = entry.partition(b"=")
        if separator and key in (b"name", b"vermagic") and value.isascii():
            values.setdefault(key.decode("ascii"), value.decode("ascii"))
    name, vermagic = normalised(values.get("name", "")), values.get("vermagic", "").strip()
    if not _NAME.fullmatch(name):
        raise ModuleError("the module does not say its name")
    if not vermagic or len(vermagic) > _MAX_VERMAGIC or not vermagic.isprintable():
        raise ModuleError(f"the module {name} does not say for which kernel it was built")
    return name, vermagic


def _section(section: Section, ko: bytes) -> ModuleSection:
    size = 0 if section.type == SHT_NOBITS else section.size
    data = np.frombuffer(ko, np.uint8, size, section.offset if size else 0)
    return ModuleSection(section.name, section.size, section.flags, section.align, section.type, data)


def _symbols(elf: ElfImage, ko: bytes) -> tuple[ModuleSymbol, ...]:
    tables = [section for section in elf.ordered if section.type == SHT_SYMTAB]
    if len(tables) != 1:
        raise ModuleError(f"the module has {len(tables)} symbol tables")
    table = tables[0]
    if table.link >= len(elf.ordered) or elf.ordered[table.link].type in (0, SHT_NOBITS):
        raise ModuleError("the module's symbols have no names")
    if table.size % _SYMBOL.itemsize or table.size // _SYMBOL.itemsize > _MAX_SYMBOLS:
        raise ModuleError(f"a symbol table of {table.size} bytes is malformed")
    names = elf.ordered[table.link]
    strings = ko[names.offset : names.offset + names.size]
    raw = np.frombuffer(ko, _SYMBOL, table.size // _SYMBOL.itemsize, table.offset)
    homes = raw["section"]
    if ((homes >= len(elf.ordered)) & (homes < _RESERVED_INDEX)).any():
        raise ModuleError("a symbol lies in a section that does not exist")
    return tuple(
        ModuleSymbol(c_string(strings, name), home, value, size, info >> 4, info & 15)
        for name, info, _, home, value, size in raw.tolist()
    )


def _relocations(elf: ElfImage, ko: bytes, symbols: int) -> Mapping[int, ModuleRelocations]:
    """The relocations of every section that the kernel gives memory."""
    found: dict[int, ModuleRelocations] = {}
    for section in elf.ordered:
        if section.type != SHT_RELA:
            continue
        if section.info >= len(elf.ordered):
            raise ModuleError(f"{section.name} relocates a section that does not exist")
        target = elf.ordered[section.info]
        if not target.flags & SHF_ALLOC:
            continue
        if section.info in found or section.size % _RELA.itemsize:
            raise ModuleError(f"the relocations of {target.name} are malformed")
        found[section.info] = _table(section, target, ko, symbols)
    return MappingProxyType(found)


def _table(section: Section, target: Section, ko: bytes, symbols: int) -> ModuleRelocations:
    raw = np.frombuffer(ko, _RELA, section.size // _RELA.itemsize, section.offset if section.size else 0)
    kinds = raw["type"]
    widths = np.zeros(len(raw), np.uint64)
    known = np.zeros(len(raw), np.bool_)
    for kind, width in _WIDTHS.items():
        known |= kinds == kind
        widths[kinds == kind] = width
    if not known.all():
        raise ModuleError(f"{section.name} has a relocation of a type that modules do not have")
    if target.type == SHT_NOBITS and len(raw):
        raise ModuleError(f"{section.name} relocates a section without contents")
    # In this order: an offset near 2^64 must not wrap around.
    if (raw["offset"] > target.size).any() or (raw["offset"] + widths > target.size).any():
        raise ModuleError(f"{section.name} relocates a place outside of {target.name}")
    if (raw["symbol"] >= symbols).any():
        raise ModuleError(f"{section.name} refers to a symbol that does not exist")
    columns = (raw["offset"].astype(np.int64), kinds.astype(np.uint32), raw["symbol"].astype(np.uint32))
    addends = raw["addend"].astype(np.int64)
    for column in (*columns, addends):
        column.setflags(write=False)
    return ModuleRelocations(*columns, addends)
