# SPDX-License-Identifier: Apache-2.0
"""Walking x86-64 page tables in guest-physical memory, 4 or 5 levels.

Intel SDM volume 3A, section 4.5. The tables are the guest's: they may point to themselves, outside RAM, or
claim every address there is. A single translation reads at most five entries; a walk over a whole address
space visits at most :data:`TABLE_LIMIT` tables. Protection keys, SMEP and shadow stacks are not modelled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import GuestMemory, MemoryFault

PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
ACCESSED, DIRTY = 1 << 5, 1 << 6
NO_EXECUTE = 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000
UPPER_HALF = 1 << 63
PAGE = 0x1000
ENTRIES = 512
# 512 GiB of direct map in 4 KiB pages would need 262,144 tables; 2 MiB pages are the rule, 32 Ki are plenty.
TABLE_LIMIT = 1 << 15
ENTRY_LIMIT = 1 << 21  # present ones: a table that is entered over and over counts each time
# What is kept of one address space between passes: 16 MiB of tables, and some hundred KiB of spans.
KEPT_TABLES = 4096
KEPT_SPANS = 4096
KEPT_LEAVES = 1 << 19


Span = tuple[int, int | None, int]


class PagingError(AttestError):
    """The page tables cannot be walked: a table lies outside RAM, or there are more than the limit."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One mapping: ``size`` bytes at guest-virtual ``va`` to guest-physical ``gpa``.

    ``writable`` and ``user`` hold where every level grants them.
    """

    va: int
    gpa: int
    size: int
    writable: bool
    user: bool


@dataclass(frozen=True, slots=True)
class Leaves:
    """The same for many mappings, as arrays of equal length in ascending order of address."""

    va: NDArray[np.uint64]
    gpa: NDArray[np.uint64]
    size: NDArray[np.uint64]
    # PRESENT, WRITABLE and USER where every level grants them, NO_EXECUTE where any level sets it.
    flags: NDArray[np.uint64]

    def select(self, mask: NDArray[np.bool_]) -> Leaves:
        """Those that the mask chooses."""
        return Leaves(self.va[mask], self.gpa[mask], self.size[mask], self.flags[mask])

    def executable(self) -> Leaves:
        """Those that the CPU may fetch instructions from."""
        return self.select((self.flags & np.uint64(NO_EXECUTE)) == 0)

    def writable(self) -> Leaves:
        """Those that the kernel may write to."""
        return self.select((self.flags & np.uint64(WRITABLE)) != 0)


def canonical(address: int, levels: int) -> bool:
    """Whether a 64-bit address is one that the CPU accepts: the bits above the tables' are all alike."""
    unused = address >> (11 + 9 * levels)
    return unused in (0, (1 << (53 - 9 * levels)) - 1)


class AddressSpace:
    """The mappings below one top-level table. A table is read once and kept until :meth:`refresh`.

    What a walk over all tables found is kept longer, and used again once all of them were read anew and have
    the very same bytes; until the next :meth:`refresh` every translation then goes by these tables.

    :param root: guest-physical address of the top-level table.
    :param levels: 4 or 5.
    """

    def __init__(self, memory: GuestMemory, root: int, levels: int) -> None:
        self.memory = memory
        self.root = root & FRAME
        self.levels = levels
        self._tables: dict[int, bytes] = {}
        self._lowest: dict[int, tuple[int, int]] = {}
        self._walked: _Walk | None = None
        self._current = False
        self._spans: dict[tuple[int, int], tuple[Span, ...]] = {}
        self._kept_spans = 0

    def refresh(self) -> None:
        """Look at the tables again: what follows sees them as they are now."""
        self._forget_tables()
        self._current = False
        last = self._walked
        if last is not None and (len(last.tables) > KEPT_TABLES or len(last.leaves.va) > KEPT_LEAVES):
            self._walked = None

    def _from_walk(self, address: int) -> bytes | None:
        return self._walked.tables.get(address) if self._current and self._walked is not None else None

    def _table(self, address: int) -> bytes:
        held = self._from_walk(address) or self._tables.get(address)
        if held is None:
            held = self.memory.read(address, PAGE)
            if len(self._tables) >= KEPT_TABLES:
                self._tables.clear()
            self._tables[address] = held
        return held

    def _forget_tables(self) -> None:
        self._tables.clear()
        self._lowest.clear()

    def table(self, address: int) -> NDArray[np.uint64]:
        """The 512 entries of the table at a guest-physical address, which need not be one of this space.

        :raises PagingError: it is not RAM.
        """
        try:
            held = self._from_walk(address) or self.memory.page(address)
        except MemoryFault as fault:
            raise _not_ram(address) from fault
        return np.frombuffer(held, dtype="<u8")

    def leaf(self, va: int) -> Leaf | None:
        """The mapping that holds ``va``; None where nothing is mapped or a table is not RAM."""
        known = self._lowest.get(va >> 21)
        if known is not None:
            return _page(va, self._table(known[0]), known[1])
        if not canonical(va, self.levels):
            return None
        table, granted = self.root, WRITABLE | USER
        for level in range(self.levels - 1, -1, -1):
            shift = 12 + 9 * level
            try:
                held = self._table(table)
            except MemoryFault:
                return None
            if level == 0:
                self._lowest[va >> 21] = table, granted
                return _page(va, held, granted)
            at = (va >> shift & 511) * 8
            entry = int.from_bytes(held[at : at + 8], "little")
            if not entry & PRESENT:
                return None
            granted &= entry
            if entry & LARGE and level <= 2:
                size = 1 << shift
                gpa = entry & FRAME & ~(size - 1)
                return Leaf(va & ~(size - 1), gpa, size, bool(granted & WRITABLE), bool(granted & USER))
            table = entry & FRAME
        return None

    def translate(self, va: int) -> int | None:
        """Guest-physical address of ``va``, or None where it is not mapped. It need not be RAM."""
        leaf = self.leaf(va)
        return None if leaf is None else leaf.gpa + (va - leaf.va)

    def spans(self, va: int, length: int) -> Sequence[Span]:
        """Physically contiguous pieces of a virtual range: ``(va, gpa, length)``, in order and gapless.

        ``gpa`` is None for a piece that is not mapped. Work is one walk for each page of the range, whatever
        its size, so the caller bounds ``length``. Those of the kernel half are kept for as long as the tables
        do not change.
        """
        last = self._walked
        if va < UPPER_HALF or last is None or last.first > ENTRIES // 2:
            return tuple(self._resolve(va, length))
        if not self._current:
            with contextlib.suppress(PagingError):
                self.leaves(last.first)
        if not self._current:
            return tuple(self._resolve(va, length))
        found = self._spans.get((va, length))
        if found is None:
            found = tuple(self._resolve(va, length))
            if self._kept_spans + len(found) > KEPT_SPANS:
                self._forget_spans()
            if len(found) <= KEPT_SPANS:
                self._spans[va, length] = found
                self._kept_spans += len(found)
        return found

    def _forget_spans(self) -> None:
        self._spans.clear()
        self._kept_spans = 0

    def _resolve(self, va: int, length: int) -> Iterator[Span]:
        start, physical, size = va, None, 0
        end = va + length
        while va < end:
            leaf = self.leaf(va)
            step = PAGE - (va & (PAGE - 1)) if leaf is None else leaf.va + leaf.size - va
            step = min(step, end - va)
            here = None if leaf is None else leaf.gpa + va - leaf.va
            joined = here is None if physical is None else here == physical + size
            if size and joined:
                size += step
            else:
                if size:
                    yield start, physical, size
                start, physical, size = va, here, step
            va += step
        if size:
            yield start, physical, size

    def leaves(self, first: int = ENTRIES // 2) -> Leaves:
        """Every mapping from index ``first`` of the top-level table on, in ascending order of address.

        The walk goes level by level over whole arrays of tables: tables that point to themselves end at the
        lowest level. When no table changed since the last walk, its result is given again: the same object.

        :raises PagingError: a table is not RAM, or there are more than :data:`TABLE_LIMIT`
            or more than :data:`ENTRY_LIMIT` entries.
        """
        last = self._walked
        if last is not None and last.first == first and (self._current or self._unchanged(last)):
            if not self._current:
                self._forget_tables()
                self._current = True
            return last.leaves
        self._walked, self._current = None, False
        self._forget_spans()
        tables = np.array([self.root], np.uint64)
        bases = np.zeros(1, np.uint64)
        granted = np.full(1, PRESENT | WRITABLE | USER, np.uint64)
        denied = np.zeros(1, np.uint64)
        found: list[Leaves] = []
        read: dict[int, bytes] = {}
        visited = met = 0
        for level in range(self.levels - 1, -1, -1):
            visited += len(tables)
            if visited > TABLE_LIMIT:
                raise PagingError(f"more than {TABLE_LIMIT} page tables")
            if not len(tables):
                break
            entries = self._entries(tables.tolist(), read)
            keep = (entries & np.uint64(PRESENT)) != 0
            if level == self.levels - 1:
                keep[:, :first] = False
            met += int(np.count_nonzero(keep))
            if met > ENTRY_LIMIT:
                raise PagingError(f"more than {ENTRY_LIMIT} entries in page tables")
            row, column = np.nonzero(keep)
            chosen = entries[row, column]
            address = bases[row] | column.astype(np.uint64) << np.uint64(12 + 9 * level)
            if level == self.levels - 1:
                address |= _sign_bits(column, self.levels)
            allowed = granted[row] & chosen
            forbidden = denied[row] | (chosen & np.uint64(NO_EXECUTE))
            final = np.ones(len(chosen), bool) if level == 0 else np.zeros(len(chosen), bool)
            if 0 < level <= 2:
                final = (chosen & np.uint64(LARGE)) != 0
            found.append(_as_leaves(address[final], chosen[final], (allowed | forbidden)[final], level))
            tables = chosen[~final] & np.uint64(FRAME)
            bases, granted, denied = address[~final], allowed[~final], forbidden[~final]
        leaves = _sorted(found)
        self._forget_tables()
        self._walked = _Walk(first, read, leaves, leaves.executable())
        self._current = True
        return leaves

    def executable(self) -> Leaves:
        """Those of :meth:`leaves` that the CPU may fetch instructions from.

        :raises PagingError: as :meth:`leaves`.
        """
        leaves = self.leaves()
        walked = self._walked
        return leaves.executable() if walked is None else walked.executable

    def _entries(self, addresses: list[int], read: dict[int, bytes]) -> NDArray[np.uint64]:
        """The entries of tables, a row for each; ``read`` keeps what a table held when it was first met."""
        for at in addresses:
            if at in read:
                continue
            try:
                read[at] = self._table(at)
            except MemoryFault as fault:
                raise _not_ram(at) from fault
        return np.frombuffer(b"".join([read[at] for at in addresses]), "<u8").reshape(-1, ENTRIES)

    def _unchanged(self, last: _Walk) -> bool:
        read = self.memory.read
        try:
            return all(read(at, PAGE) == held for at, held in last.tables.items())
        except MemoryFault:
            return False

    def executable_leaves(self, start_index: int = ENTRIES // 2) -> Iterator[Leaf]:
        """Every mapping from that index of the top-level table on that the CPU may fetch instructions from.

        :raises PagingError: as :meth:`leaves`.
        """
        found = self.leaves(start_index).executable()
        for va, gpa, size, flags in zip(
            found.va.tolist(), found.gpa.tolist(), found.size.tolist(), found.flags.tolist(), strict=True
        ):
            yield Leaf(va, gpa, size, bool(flags & WRITABLE), bool(flags & USER))


@dataclass(frozen=True, slots=True)
class _Walk:
    """What one walk read, by the address of each table, and what came of it."""

    first: int
    tables: Mapping[int, bytes]
    leaves: Leaves
    executable: Leaves


def _not_ram(address: int) -> PagingError:
    return PagingError(f"page table at guest-physical {address:#x} is not RAM")


def _page(va: int, table: bytes, granted: int) -> Leaf | None:
    """The mapping of one 4 KiB page by a table of the lowest level."""
    at = (va >> 12 & 511) * 8
    entry = int.from_bytes(table[at : at + 8], "little")
    if not entry & PRESENT:
        return None
    granted &= entry
    return Leaf(va & ~(PAGE - 1), entry & FRAME, PAGE, bool(granted & WRITABLE), bool(granted & USER))


def _sign_bits(column: NDArray[np.int64], levels: int) -> NDArray[np.uint64]:
    high = np.uint64(((1 << 64) - 1) ^ ((1 << (12 + 9 * levels)) - 1))
    return np.where(column >= ENTRIES // 2, high, np.uint64(0))


def _as_leaves(
    address: NDArray[np.uint64], entry: NDArray[np.uint64], flags: NDArray[np.uint64], level: int
) -> Leaves:
    size = 1 << (12 + 9 * level)
    frames = entry & np.uint64(FRAME & ~(size - 1))
    return Leaves(address, frames, np.full(len(address), size, np.uint64), flags)


def _sorted(parts: list[Leaves]) -> Leaves:
    va = np.concatenate([part.va for part in parts])
    order = np.argsort(va, kind="stable")
    return Leaves(
        va[order],
        np.concatenate([part.gpa for part in parts])[order],
        np.concatenate([part.size for part in parts])[order],
        np.concatenate([part.flags for part in parts])[order],
    )
