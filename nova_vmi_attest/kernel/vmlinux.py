# SPDX-License-Identifier: Apache-2.0
"""One kernel build as its boot image describes it: contents, sections, symbols, types, relocations, names.

The image is laid out as it lies in memory: by physical address from ``_text``, which the kernel is linked to
have at :data:`LINK_BASE`. One :class:`Vmlinux` serves every guest that runs the build; nothing in it can be
written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nova_vmi_attest.kernel.btf import Btf
from nova_vmi_attest.kernel.elf import PT_LOAD, ElfImage, ImageError, Section
from nova_vmi_attest.kernel.image import unpack
from nova_vmi_attest.kernel.kallsyms import Kallsyms
from nova_vmi_attest.kernel.relocations import LINK_BASE, Relocations

__all__ = ["LINK_BASE", "Vmlinux"]

Bytes = npt.NDArray[np.uint8]

_PHYSICAL_BASE = 0x1000000  # CONFIG_PHYSICAL_START: where the load segments say that _text is
_MAX_IMAGE = 512 << 20
_MAX_BANNER = 512
_BANNER = re.compile(rb"Linux version ([0-9A-Za-z.+~_-]{1,64}) ")
_WIDEST = 8  # bytes that one relocation can change


@dataclass(frozen=True, slots=True, eq=False)
class Vmlinux:
    """A kernel build.

    ``image`` is the memory image from ``_text`` to the end of ``.bss`` (uint8, read-only, .bss zero),
    ``banner`` the bytes of ``linux_banner`` up to its NUL (they end in a newline), ``build_id`` lowercase
    hex, ``release`` the word after "Linux version".
    """

    image: Bytes
    sections: Mapping[str, Section]
    symbols: Kallsyms
    btf: Btf
    relocations: Relocations
    banner: bytes
    build_id: str
    release: str

    @classmethod
    def load(cls, image: bytes) -> Vmlinux:
        """Read a boot image (bzImage) or the ELF file and relocations out of one.

        :raises AttestError: ImageError, SymbolError or BtfError: the image is malformed, not of a generation
            that is read, or built without symbols or types. Whether it is a kernel that somebody approves is
            not checked.
        """
        data = unpack(image)
        elf = ElfImage.parse(data)
        contents = _lay_out(elf, data)
        symbols = Kallsyms.parse(elf.contents(data, ".rodata"))
        if symbols.get("_text") != LINK_BASE:
            raise ImageError(f"the kernel is not linked to {LINK_BASE:#x}")
        relocations = Relocations.parse(memoryview(data)[elf.end :])
        relocations.require_within(len(contents))
        banner, release = _banner(contents, symbols)
        return cls(
            contents,
            elf.sections,
            symbols,
            Btf.parse(elf.contents(data, ".BTF")),
            relocations,
            banner,
            elf.build_id(data),
            release,
        )

    def offset_of(self, symbol: str) -> int:
        """The offset of ``symbol`` from ``_text``.

        Raises SymbolError; ImageError when it is not in the image.
        """
        offset = self.symbols[symbol] - LINK_BASE
        if not 0 <= offset <= len(self.image):
            raise ImageError(f"{symbol} is not in the kernel's image")
        return offset

    def section_offset(self, name: str) -> tuple[int, int] | None:
        """(offset from ``_text``, size) of a section that lies in the image, or None."""
        section = self.sections.get(name)
        if section is None:
            return None
        offset = section.address - LINK_BASE
        if offset < 0 or offset + section.size > len(self.image):
            return None
        return offset, section.size

    def relocated(self, slide: int, start: int, end: int) -> Bytes:
        """A writable copy of ``image[start:end]`` after the boot code has moved it by ``slide`` bytes."""
        if not 0 <= start <= end <= len(self.image):
            raise ImageError(f"the range {start:#x}-{end:#x} is not inside the image")
        # Relocations may straddle the ends of the range: a wider window contains them whole.
        low, high = max(0, start - _WIDEST), min(len(self.image), end + _WIDEST)
        window = self.image[low:high].copy()
        self.relocations.apply_within(window, low, slide)
        return window[start - low : end - low]


def _lay_out(elf: ElfImage, data: bytes) -> Bytes:
    """The load segments by physical address.

    Zero pages of the result cost no memory until somebody reads them.
    """
    loads = [segment for segment in elf.segments if segment.type == PT_LOAD]
    size = max((s.physical + s.memory_size - _PHYSICAL_BASE for s in loads), default=0)
    if not 0 < size <= _MAX_IMAGE or min(s.physical for s in loads) != _PHYSICAL_BASE:
        raise ImageError("the load segments of the kernel are not where a kernel has them")
    contents = np.zeros(size, np.uint8)
    source = np.frombuffer(data, np.uint8)
    for segment in loads:
        at = segment.physical - _PHYSICAL_BASE
        contents[at : at + segment.file_size] = source[segment.offset : segment.offset + segment.file_size]
    contents.setflags(write=False)
    return contents


def _banner(contents: Bytes, symbols: Kallsyms) -> tuple[bytes, str]:
    at = symbols["linux_banner"] - LINK_BASE
    if not 0 <= at < len(contents):
        raise ImageError("the kernel's banner is not in its image")
    banner, end, _ = contents[at : at + _MAX_BANNER].tobytes().partition(b"\0")
    match = _BANNER.match(banner)
    if not end or match is None or not banner.isascii():
        raise ImageError("the kernel's banner does not read as one")
    return banner, match[1].decode("ascii")
