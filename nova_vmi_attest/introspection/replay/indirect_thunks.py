# SPDX-License-Identifier: Apache-2.0
"""Thunks for indirect branches, on CPUs where a branch in the lower half of a cache line can be misled
(ITS).

Where the CPU needs it and retpolines are off, the kernel does not write such a branch into the site but
leads it to a thunk of its own in the upper half of a line. Thunks are carved, in the order of the sites,
out of pages that are allocated for the kernel and for each module: everything is determined but where a
page lies. That is taken from the first site of the page that stays in memory; the address and the bytes
that must be there are recorded, and whoever validates the inputs has to compare them with memory.

Source: arch/x86/kernel/alternative.c (its_allocate_thunk, cpu_wants_indirect_its_thunk_at,
__emit_trampoline).
"""

from __future__ import annotations

import numpy as np

from nova_vmi_attest.kernel.vmlinux import LINK_BASE, Vmlinux

from .alternatives import TWELVE
from .features import ALWAYS
from .inputs import MASK64, LiveKernel, ThunkPage, signed
from .instructions import CALL, INT3, JMP32
from .layout import MODULES_END, MODULES_START
from .patching import Patching, Table

PAGE, LINE = 4096, 64
UPPER_HALF = 0x20
ESCAPE, PREFIX = 0x0F, 0x2E
MAX_PAGES = 1024
PROLOGUE = 64  # the feature is tested in the first bytes of the function


def feature(vmlinux: Vmlinux) -> int | None:
    """The number of X86_FEATURE_INDIRECT_THUNK_ITS, which differs between releases; None without the
    mitigation.

    its_init_mod() tests it with an alternative, whose entry in the image names the number.
    """
    function = vmlinux.symbols.get("its_init_mod")
    place = vmlinux.section_offset(".altinstructions")
    if function is None or place is None or vmlinux.symbols.get("its_page") is None:
        return None
    offset, size = place
    table = Table(signed(LINK_BASE + offset), vmlinux.image[offset : offset + size])
    places, entries = table.records(TWELVE)
    sites = places + entries["site"]
    inside = (sites >= signed(function)) & (sites < signed(function) + PROLOGUE)
    numbers = {int(number) & 0x7FFF for number in entries["feature"][inside]} - {ALWAYS}
    return numbers.pop() if len(numbers) == 1 else None


class Thunks:
    """Allocates thunks as the kernel did."""

    def __init__(self, patching: Patching) -> None:
        self._patching = patching
        self._kernel: LiveKernel = patching.kernel
        self._page: bytearray | None = None
        self._address: int | None = None
        self._offset = 0
        self._count = 0

    def branch(self, site: int, opcode: int, condition: int, length: int, register: int) -> bytes | None:
        """The bytes of a guarded site; None while the page of its thunk is unknown.

        Called for the sites in the order of their table, whether they stay in memory or not.
        """
        offset = self._allocate(register)
        if self._address is None:
            self._address = self._find_page(site, length, offset)
        if self._address is None:
            return None
        distance = (self._address + offset - (site + length)).to_bytes(8, "little", signed=True)
        if opcode == ESCAPE:
            return bytes([ESCAPE, 0x80 | condition]) + distance[:4]
        return (bytes([PREFIX]) if length == 6 else b"") + bytes([opcode]) + distance[:4]

    def finish(self) -> None:
        """Record the last page."""
        if self._page is not None and self._address is not None:
            self._kernel.thunk_page(ThunkPage(self._address & MASK64, bytes(self._page)))

    def _allocate(self, register: int) -> int:
        """The offset of a new thunk in the current page."""
        size = 3 + register // 8
        if self._page is None or self._offset + size - 1 >= PAGE:
            self.finish()
            self._page, self._address = bytearray([INT3]) * PAGE, None
            self._offset, self._count = LINE // 2, self._count + 1
        if (self._offset + size - 1) % LINE < LINE // 2:
            self._offset = ((self._offset - 1) | (LINE - 1)) + 1 + LINE // 2
        offset = self._offset
        self._offset += size
        code = (b"\x41" if register >= 8 else b"") + bytes([0xFF, 0xE0 | register & 7, INT3])
        self._page[offset : offset + size] = code
        return offset

    def _find_page(self, site: int, length: int, offset: int) -> int | None:
        """Where the live site says that the page is, when that is a place where the kernel allocates such
        pages.
        """
        if self._count > MAX_PAGES or not self._patching.in_regions(np.array([site]), kept=True)[0]:
            return None
        live = self._kernel.read(site, length)
        if live is None or live[-5] not in (CALL, JMP32, 0x80 | live[-5] & 0x0F):
            return None
        address = site + length + int.from_bytes(live[-4:], "little", signed=True) - offset
        if address % PAGE or not MODULES_START <= address & MASK64 < MODULES_END:
            self._kernel.invalid("its_page", site, address & MASK64, "not a page of the module region")
            return None
        return address
