# SPDX-License-Identifier: Apache-2.0
"""Guest memory that was written to a file: the ELF core of ``virsh dump --memory-only``, or raw RAM.

The ELF core says itself which guest-physical addresses it holds: every PT_LOAD segment has ``p_paddr`` bytes
of RAM at ``p_offset`` (QEMU's dump/dump.c; elf(5), with PN_XNUM for more than 65,534 segments). A raw image
is the RAM of the guest from its first byte to its last, as a RAM file is, and needs to be told the machine
type.

The file is hostile: counts, offsets and overlaps are checked before anything is read through them. Bytes of a
segment beyond ``p_filesz`` are not RAM: QEMU writes none.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from nova_vmi_attest.introspection.memory.base import MemoryRange, ReaderError, Suitability
from nova_vmi_attest.introspection.memory.domain import DomainMemory
from nova_vmi_attest.introspection.memory.layout import (
    LEGACY_END,
    LEGACY_START,
    PAGE,
    guest_ranges,
    machine_family,
)
from nova_vmi_attest.introspection.memory.ram_file import RamFile, RamFileMemory

MAX_SEGMENTS = 1 << 16
MAX_ADDRESS = 1 << 52
OUTSIDE_LEGACY = (MemoryRange(0, LEGACY_START, 0), MemoryRange(LEGACY_END, MAX_ADDRESS, LEGACY_END))

_ELF_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELFCLASS64, _ELFDATA2LSB, _ET_CORE, _EM_X86_64 = 2, 1, 4, 62
_PT_LOAD, _PN_XNUM = 1, 0xFFFF


class DumpError(ReaderError):
    """The dump is not one that can be read: malformed, cut, or of another machine."""


class DumpMemory(RamFileMemory):
    """Reads a dump. Its bytes do not change, and no guest runs behind it."""

    name = "dump"

    @classmethod
    def suitability(cls, domain: DomainMemory) -> Suitability:
        """Fits a domain that the caller has a dump of, and no other."""
        if domain.dump:
            return Suitability(200, "a dump of the guest is given")
        return Suitability(0, "there is no dump of the guest")

    @classmethod
    def open(cls, domain: DomainMemory) -> DumpMemory:
        """Open ``domain.dump``.

        :raises ReaderError: as :meth:`of_file` and :meth:`~.domain.DomainMemory.ranges`.
        """
        if not domain.dump:
            raise DumpError(f"there is no dump of guest {domain.uuid}")
        domain.ranges()
        return cls.of_file(domain.dump, domain.machine, domain.size)

    @classmethod
    def of_file(
        cls, path: str | os.PathLike[str], machine: str = "pc", size: int | None = None
    ) -> DumpMemory:
        """Open an ELF core or a raw image.

        :param machine: machine type of the guest.
        :param size: bytes of RAM of the guest. Without it, a raw image is taken for a core if the guest made
            it look like one, and the firmware and device memory that a core holds count as RAM.
        :raises DumpError: it cannot be read as either.
        :raises UnsupportedLayout: a raw image of a machine whose layout is not known.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise DumpError(f"dump {os.fspath(path)!r} cannot be opened: {error}") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DumpError(f"dump {os.fspath(path)!r} is not a regular file")
            # The first page of a raw image is the guest's own: what it says counts only if nothing else does.
            if found.st_size != size and os.pread(descriptor, 4, 0) == _ELF_MAGIC:
                allowed = OUTSIDE_LEGACY if size is None else guest_ranges(machine_family(machine), size)
                ranges: Sequence[MemoryRange] = core_ranges(descriptor, found.st_size, allowed)
            elif size in (None, found.st_size):
                ranges = guest_ranges(machine_family(machine), found.st_size)
            else:
                raise DumpError(
                    f"dump {os.fspath(path)!r} is no ELF core, and has not the {size} bytes of raw RAM"
                )
            return cls(ranges, [RamFile(descriptor, found.st_size)])
        except OSError as error:
            os.close(descriptor)
            raise DumpError(f"dump {os.fspath(path)!r} cannot be read: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise


def core_ranges(
    descriptor: int, size: int, allowed: Sequence[MemoryRange] = OUTSIDE_LEGACY
) -> tuple[MemoryRange, ...]:
    """The RAM in an ELF core of ``size`` bytes; offsets are into the file.

    Only ``allowed`` addresses count: QEMU also writes its firmware and the RAM of devices. ``allowed`` has
    few ranges.

    :raises DumpError: it is malformed, cut, not of an x86-64 machine, or its segments overlap.
    """
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise DumpError("the ELF core is cut within its header")
    ident, kind, machine, _, _, table, sections, _, _, entry, count, section_entry, _, _ = _HEADER.unpack(
        header
    )
    if ident[4] != _ELFCLASS64 or ident[5] != _ELFDATA2LSB or kind != _ET_CORE or machine != _EM_X86_64:
        raise DumpError("the file is not an ELF core of an x86-64 machine")
    if count == _PN_XNUM:
        count = _extended_count(descriptor, sections, section_entry)
    if entry != _SEGMENT.size or not 0 < count <= MAX_SEGMENTS or table + count * entry > size:
        raise DumpError(f"the ELF core's table of {count} segments is malformed or too long")
    headers = os.pread(descriptor, count * entry, table)
    if len(headers) != count * entry:
        raise DumpError("the ELF core is cut within its segment table")
    ranges: list[MemoryRange] = []
    for kind, _, offset, _, address, stored, _, _ in _SEGMENT.iter_unpack(headers):
        if kind == _PT_LOAD and stored:
            if address % PAGE or stored % PAGE or address + stored > MAX_ADDRESS:
                raise DumpError("a segment of the ELF core does not hold whole pages of memory")
            if offset + stored > size:
                raise DumpError("the ELF core is cut within its memory")
            ranges += _within(MemoryRange(address, address + stored, offset), allowed)
    return _joined(ranges)


def _extended_count(descriptor: int, sections: int, entry: int) -> int:
    """The number of segments when it does not fit: ``sh_info`` of the first section (elf(5), PN_XNUM)."""
    data = b"" if sections > MAX_ADDRESS else os.pread(descriptor, _SECTION.size, sections)
    if entry != _SECTION.size or len(data) < _SECTION.size or not sections:
        raise DumpError("the ELF core's number of segments cannot be told")
    return int(_SECTION.unpack(data)[7])


def _within(ram: MemoryRange, allowed: Sequence[MemoryRange]) -> list[MemoryRange]:
    """The parts of ``ram`` at addresses of ``allowed``."""
    parts = []
    for other in allowed:
        first, last = max(ram.start, other.start), min(ram.end, other.end)
        if first < last:
            parts.append(MemoryRange(first, last, ram.offset + first - ram.start))
    return parts


def _joined(ranges: list[MemoryRange]) -> tuple[MemoryRange, ...]:
    """In ascending order, with neighbours joined where their bytes follow each other too."""
    joined: list[MemoryRange] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if joined and part.start < joined[-1].end:
            raise DumpError("segments of the ELF core overlap")
        last = joined[-1] if joined else None
        if last and last.end == part.start and last.offset + last.end - last.start == part.offset:
            joined[-1] = MemoryRange(last.start, part.end, last.offset)
        else:
            joined.append(part)
    if not joined:
        raise DumpError("the ELF core holds no memory")
    return tuple(joined)
