# SPDX-License-Identifier: Apache-2.0
"""Typed access to a live kernel whose place in memory is known.

Everything that is read here was written by the guest. A read of an address that is not mapped, or not backed
by RAM, is a :class:`GuestFault`; so is a structure that does not end within its bound. Every read goes
through the kernel's own top-level page table, as the CPU's would, and never through arithmetic.

Within one pass a page is read once and kept, so that the fields of one structure are of one moment; call
:meth:`Guest.refresh` to see the present again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.locate import Located
from nova_vmi_attest.introspection.memory.base import Bytes, GuestMemory, MemoryFault
from nova_vmi_attest.introspection.paging import PAGE, AddressSpace
from nova_vmi_attest.kernel.vmlinux import Vmlinux

WORD = (1 << 64) - 1
READ_LIMIT = 1 << 20
VIEW_LIMIT = 1 << 28
PLACES_LIMIT = 1 << 16
QUAD = struct.Struct("<Q")
COPY_BELOW = 1 << 16  # copying less than this costs less than making sure that it can be mapped
XARRAY_DEPTH = 11  # 64 bits of index, 6 bits a level
XARRAY_SLOTS = 64


class GuestFault(AttestError):  # noqa: N818 - a fault of an address is what it is
    """The guest's memory does not hold what a healthy kernel's would.

    ``address`` is guest-virtual: the place that is not mapped, or where a structure stopped making sense.
    """

    def __init__(self, address: int, what: str = "not mapped to RAM") -> None:
        super().__init__(f"guest-virtual {address & WORD:#x}: {what}")
        self.address = address & WORD


class Guest:
    """A located kernel of one guest. Not thread-safe; cheap to build."""

    def __init__(self, memory: GuestMemory, vmlinux: Vmlinux, located: Located) -> None:
        self.memory = memory
        self.vmlinux = vmlinux
        self.located = located
        self.slide = located.slide
        self.physical_base = located.physical_base
        root = located.physical_base + vmlinux.offset_of("init_top_pgt")
        self.space = AddressSpace(memory, root, located.levels)
        self._places: dict[int, int] = {}  # number of a virtual page to guest-physical address
        self._symbols: dict[str, int] = {}
        self._known: dict[str, bool] = {}
        self._offsets: dict[tuple[str, str], int] = {}

    def refresh(self) -> None:
        """Forget what was read: what follows sees the guest as it is now."""
        self._places.clear()
        self.memory.forget()
        self.space.refresh()

    def page(self, va: int) -> bytes:
        """The 4 KiB page that holds ``va``.

        :raises GuestFault: it is not mapped to RAM.
        """
        physical = self._places.get(va >> 12)
        if physical is None:
            physical = self.space.translate(va & ~(PAGE - 1))
            if physical is None:
                raise GuestFault(va)
            if len(self._places) >= PLACES_LIMIT:
                self._places.clear()
            self._places[va >> 12] = physical
        try:
            return self.memory.page(physical)
        except MemoryFault as fault:
            raise GuestFault(va) from fault

    def read(self, va: int, length: int) -> bytes:
        """``length`` bytes, at most 1 MiB.

        :raises GuestFault: a byte of it is not mapped to RAM, or the length is out of bounds.
        """
        if not 0 <= length <= READ_LIMIT or not 0 <= va <= WORD - length:
            raise GuestFault(va, f"a read of {length:#x} bytes is out of bounds")
        start = va & (PAGE - 1)
        if start + length <= PAGE:
            page = self.memory.kept.get(self._places.get(va >> 12, -1)) or self.page(va)
            return page[start : start + length]
        parts = [self.page(va)[start:]]
        at, left = va - start + PAGE, length - (PAGE - start)
        while left > 0:
            parts.append(self.page(at)[:left])
            at, left = at + PAGE, left - PAGE
        return b"".join(parts)

    def view(self, va: int, length: int) -> Bytes:
        """The same for bulk comparison, up to 256 MiB: without a copy where the range is contiguous in RAM.

        :raises GuestFault: as :meth:`read`.
        """
        parts = self.pieces(va, length)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def pieces(self, va: int, length: int) -> list[Bytes]:
        """The same as its pieces that are contiguous in RAM, in order: that spares the copy.

        :raises GuestFault: as :meth:`read`.
        """
        if not 0 <= length <= VIEW_LIMIT or not 0 <= va <= WORD - length:
            raise GuestFault(va, f"a view of {length:#x} bytes is out of bounds")
        parts: list[Bytes] = []
        for start, physical, size in self.space.spans(va, length):
            if physical is None:
                raise GuestFault(start)
            try:
                if size < COPY_BELOW:
                    parts.append(np.frombuffer(self.memory.read(physical, size), np.uint8))
                else:
                    parts.append(self.memory.view(physical, size))
            except MemoryFault as fault:
                raise GuestFault(start) from fault
        return parts

    def u64(self, va: int) -> int:
        """An unsigned 64-bit integer."""
        at = va & (PAGE - 1)
        if at <= PAGE - 8 and 0 <= va <= WORD:
            page = self.memory.kept.get(self._places.get(va >> 12, -1)) or self.page(va)
            number: int = QUAD.unpack_from(page, at)[0]
            return number
        return int.from_bytes(self.read(va, 8), "little")

    def u32(self, va: int) -> int:
        """An unsigned 32-bit integer."""
        return int.from_bytes(self.read(va, 4), "little")

    def s32(self, va: int) -> int:
        """A signed 32-bit integer."""
        return int.from_bytes(self.read(va, 4), "little", signed=True)

    def cstr(self, va: int, limit: int) -> bytes:
        """The bytes up to a NUL, or the first ``limit`` where there is none: never a fault for its end."""
        out = b""
        while len(out) < limit:
            step = min(PAGE - (va & (PAGE - 1)), limit - len(out))
            piece = self.read(va, step)
            end = piece.find(b"\0")
            if end >= 0:
                return out + piece[:end]
            out, va = out + piece, va + step
        return out

    def symbol(self, name: str) -> int:
        """Running address of a symbol of the kernel image. Per-CPU symbols are offsets and are not moved.

        :raises SymbolError: the reference kernel has no such symbol.
        """
        found = self._symbols.get(name)
        if found is None:
            address = self.vmlinux.symbols[name]
            found = self._symbols[name] = address if address < 1 << 32 else address + self.slide
        return found

    def has_symbol(self, name: str) -> bool:
        """Whether the reference kernel has a symbol."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self.vmlinux.symbols.get(name) is not None
        return found

    def link(self, va: int) -> int:
        """Link-time address of a running address of the kernel image."""
        return (va - self.slide) & WORD

    def offset(self, struct: str, path: str) -> int:
        """Byte offset of a member, from the reference kernel's BTF.

        :raises BtfError: the reference kernel has no such member.
        """
        found = self._offsets.get((struct, path))
        if found is None:
            found = self._offsets[struct, path] = self.vmlinux.btf.offset(struct, path)
        return found

    def list_entries(self, head: int, member_offset: int, limit: int) -> Iterator[int]:
        """Objects on a ``struct list_head``, in order.

        :raises GuestFault: it does not come back to ``head`` within ``limit`` entries.
        """
        entry, seen = self.u64(head), 0
        while entry != head:
            seen += 1
            if seen > limit:
                raise GuestFault(head, f"list does not end within {limit} entries")
            yield (entry - member_offset) & WORD
            entry = self.u64(entry)

    def rbtree(self, node: int, limit: int) -> Iterator[int]:
        """Nodes of a red-black tree below ``node`` (``struct rb_node``), in no particular order.

        :raises GuestFault: a node shows up twice, or there are more than ``limit``.
        """
        right, left = self.offset("rb_node", "rb_right"), self.offset("rb_node", "rb_left")
        waiting, seen = [node], {0}
        while waiting:
            here = waiting.pop()
            if here == 0:
                continue
            if here in seen or len(seen) > limit:
                raise GuestFault(here, f"tree loops, or has more than {limit} nodes")
            seen.add(here)
            yield here
            waiting += [self.u64(here + right), self.u64(here + left)]

    def xarray(self, head: int, limit: int) -> dict[int, int]:
        """Index to entry of an xarray or IDR, given the value of its ``xa_head`` (lib/xarray.c).

        An inner node is tagged with low bits ``10`` and holds 64 slots; its shift shrinks towards the leaves.

        :raises GuestFault: a node does not fit below its parent, or there are more than ``limit`` entries.
        """
        shift_at, slots_at = self.offset("xa_node", "shift"), self.offset("xa_node", "slots")
        found: dict[int, int] = {}
        waiting, visited = [(head, 0, 6 * XARRAY_DEPTH)], 0
        while waiting:
            entry, base, above = waiting.pop()
            if not (entry & 3 == 2 and entry > 4096):
                if entry:
                    found[base] = entry
                continue
            node, visited = (entry - 2) & WORD, visited + 1
            shift = self.read(node + shift_at, 1)[0]
            if shift >= above or shift % 6 or visited > limit or len(found) > limit:
                raise GuestFault(node, "xarray node does not fit its parent, or there are too many")
            slots = np.frombuffer(self.read(node + slots_at, 8 * XARRAY_SLOTS), "<u8")
            waiting += [(int(slots[i]), base + (int(i) << shift), shift) for i in np.nonzero(slots)[0]]
        return found
