# SPDX-License-Identifier: Apache-2.0
"""The parts of a 64-bit little-endian x86 ELF file that a kernel build is read from.

Everything is bounded before it is believed: a header that points outside the file, or that counts more than a
kernel could hold, is an :class:`ImageError`. Section contents are not interpreted here.

Source: System V ABI, chapters 4 (object files) and 5 (program loading); elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nova_vmi_attest.errors import AttestError

MAGIC = b"\x7fELF"
SHT_SYMTAB = 2
SHT_RELA = 4
SHT_NOBITS = 8
SHT_NOTE = 7
PT_LOAD = 1

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_IDENT = MAGIC + b"\x02\x01\x01"  # 64-bit, little-endian, version 1
_MACHINE_X86_64 = 62
_MAX_SECTIONS = 0xFF00  # SHN_LORESERVE: extended numbering is not used by kernels or their modules
_MAX_SEGMENTS = 256
_MAX_NAME = 512
_NT_GNU_BUILD_ID = 3


class ImageError(AttestError):
    """A kernel image, or an ELF file of a kernel, is malformed or not of a kind that is understood."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header. ``offset`` and ``size`` lie inside the file unless ``type`` is SHT_NOBITS."""

    name: str
    address: int
    offset: int
    size: int
    type: int
    flags: int
    link: int = 0
    info: int = 0
    align: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header; ``file_size`` bytes at ``offset`` lie inside the file."""

    type: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """The headers of an ELF file.

    ``ordered`` are the sections by index, ``sections`` the same by name (the first of a name), ``end`` the
    offset of the first byte that neither a section nor a header table accounts for: there a boot image keeps
    its relocations.
    """

    type: int
    ordered: tuple[Section, ...]
    sections: Mapping[str, Section]
    segments: tuple[Segment, ...]
    end: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> ElfImage:
        """Read the headers of ``data``. Raises ImageError. Trusts nothing in it."""
        view = memoryview(data)
        if len(view) < _HEADER.size or bytes(view[:7]) != _IDENT:
            raise ImageError("this is not a 64-bit little-endian ELF file")
        _, kind, machine, _, _, segments_at, sections_at, *counts = _HEADER.unpack_from(view)
        _, _, segment_size, segments, section_size, sections, names = counts
        if machine != _MACHINE_X86_64:
            raise ImageError(f"ELF machine {machine} is not x86-64")
        _require_table(view, "section", sections_at, sections, section_size, _SECTION.size, _MAX_SECTIONS)
        _require_table(view, "program", segments_at, segments, segment_size, _SEGMENT.size, _MAX_SEGMENTS)
        ordered = _sections(view, sections_at, sections, names)
        by_name: dict[str, Section] = {}
        for section in ordered:
            by_name.setdefault(section.name, section)
        ends = [s.offset + s.size for s in ordered if s.type != SHT_NOBITS]
        tables = [sections_at + sections * section_size, segments_at + segments * segment_size]
        end = max([_HEADER.size, *tables, *ends])
        return cls(kind, ordered, MappingProxyType(by_name), _segments(view, segments_at, segments), end)

    def contents(self, data: bytes | memoryview, name: str) -> memoryview:
        """The bytes of section ``name`` in ``data``, the file parsed. Raises ImageError."""
        section = self.sections.get(name)
        if section is None or section.type == SHT_NOBITS:
            raise ImageError(f"the ELF file has no contents for a section {name}")
        return memoryview(data)[section.offset : section.offset + section.size]

    def build_id(self, data: bytes | memoryview) -> str:
        """The GNU build id (lowercase hex) in a note section of ``data``; ImageError when there is none."""
        for section in self.ordered:
            if section.type == SHT_NOTE:
                found = _build_id(bytes(memoryview(data)[section.offset : section.offset + section.size]))
                if found:
                    return found
        raise ImageError(
            "the ELF file has no GNU build id", "use a kernel built with --build-id, as distributions do"
        )


def c_string(data: bytes | memoryview, offset: int, limit: int = _MAX_NAME) -> str:
    """The ASCII string at ``offset``; ImageError when no NUL follows within ``limit`` bytes."""
    if not 0 <= offset < len(data):
        raise ImageError(f"string offset {offset} is outside its table of {len(data)} bytes")
    text, separator, _ = bytes(data[offset : offset + limit]).partition(b"\0")
    if not separator:
        raise ImageError(f"the string at offset {offset} does not end")
    if not text.isascii():
        raise ImageError(f"the string at offset {offset} is not ASCII")
    return text.decode("ascii")


def _require_table(
    view: memoryview, what: str, offset: int, count: int, size: int, expected: int, limit: int
) -> None:
    if not count:
        return
    if size != expected or count > limit or offset + count * size > len(view):
        raise ImageError(
            f"the {what} header table ({count} entries of {size} bytes at {offset}) is malformed"
        )


def _sections(view: memoryview, at: int, count: int, names_index: int) -> tuple[Section, ...]:
    if not count:
        return ()
    raw = [_SECTION.unpack_from(view, at + i * _SECTION.size) for i in range(count)]
    for _, kind, _, _, offset, size, _, _, _, _ in raw:
        if kind not in (0, SHT_NOBITS) and offset + size > len(view):
            raise ImageError(
                f"a section of {size} bytes at {offset} reaches beyond the file's {len(view)} bytes"
            )
    if names_index >= count or raw[names_index][1] in (0, SHT_NOBITS):
        raise ImageError("the section names have no table")
    names_at, names_size = raw[names_index][4:6]
    names = view[names_at : names_at + names_size]
    return tuple(
        Section(
            c_string(names, name), address, offset, size if kind else 0, kind, flags, link, info, align, index
        )
        for index, (name, kind, flags, address, offset, size, link, info, align, _) in enumerate(raw)
    )


def _segments(view: memoryview, at: int, count: int) -> tuple[Segment, ...]:
    found = []
    for i in range(count):
        header = _SEGMENT.unpack_from(view, at + i * _SEGMENT.size)
        kind, _, offset, virtual, physical, file_size, memory_size, _ = header
        if offset + file_size > len(view) or file_size > memory_size:
            if kind == PT_LOAD:
                raise ImageError(f"a load segment of {file_size} bytes at {offset} reaches beyond the file")
            continue
        found.append(Segment(kind, offset, virtual, physical, file_size, memory_size))
    return tuple(found)


def _build_id(notes: bytes) -> str:
    """The first GNU build id in a note section, or "" (notes that overrun the section end the search)."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        value_at = name_at + (name_size + 3 & ~3)
        at = value_at + (size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0" and 8 <= size <= 64:
            value = notes[value_at : value_at + size]
            return value.hex() if len(value) == size else ""
    return ""
