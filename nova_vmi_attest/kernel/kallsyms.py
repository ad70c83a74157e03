# SPDX-License-Identifier: Apache-2.0
"""The kernel's own symbol table, read out of its ``.rodata``.

A kernel keeps every symbol in a compressed table: names are strings of tokens, and one byte stands for a
token. The table has no header, so it is found by evidence: the 256 tokens (each digit is always a token by
itself) confirmed by the index that follows them, then a base address and a count whose names end exactly
where the markers that can be computed from them stand. A wrong guess cannot satisfy that. Another
generation's order is one more layout.

Source: scripts/kallsyms.c (write_src), kernel/kallsyms.c (kallsyms_expand_symbol, kallsyms_sym_address).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nova_vmi_attest.errors import AttestError

Addresses = npt.NDArray[np.uint64]

_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
_MAX_TOKEN_TABLE = 1 << 16  # the index that follows holds 16-bit offsets
_MAX_PLACES = 1024
_MAX_SYMBOLS = 2_000_000
_MAX_EXPANDED = 128 << 20
_MAX_STEPS = 6_000_000  # names walked over in all guesses together
_NAMES_PER_MARKER = 256
_KERNEL_MAP = 0xFFFFFFFF80000000
_MODULES = 0xFFFFFFFFC0000000


class SymbolError(AttestError):
    """A kernel has no symbol of that name or at that address, or its symbol table cannot be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Kallsyms:
    """All symbols of one kernel, in the order in which it keeps them (by address, per-CPU symbols first).

    Names live in one blob, so that a table costs about 50 bytes a symbol. ``starts`` are all addresses,
    ascending, duplicates included; link-time, with per-CPU symbols as offsets into the per-CPU area.
    """

    starts: Addresses
    _blob: bytes
    _bounds: npt.NDArray[np.uint32]
    _addresses: Addresses
    _by_name: npt.NDArray[np.uint32]
    _by_address: npt.NDArray[np.uint32]

    @classmethod
    def parse(cls, rodata: bytes | bytearray | memoryview | npt.NDArray[np.uint8]) -> Kallsyms:
        """Find and decode the table in the bytes of ``.rodata`` (which begins on a page).

        Raises SymbolError.
        """
        data = bytes(rodata)
        table = _find_tokens(data)
        for layout in _LAYOUTS:
            found = layout(data, table)
            if found is not None:
                blob, bounds, addresses = _expand(data, table, found)
                return _index(cls, blob, bounds, addresses)
        raise SymbolError(
            "the kernel's symbol table has a layout that is not known", "the layout of Linux 6.1 is read"
        )

    def __len__(self) -> int:
        return len(self._addresses)

    def __getitem__(self, name: str) -> int:
        """The link-time address of ``name`` (the first of several). Raises SymbolError."""
        address = self.get(name)
        if address is None:
            raise SymbolError(f"the kernel has no symbol {name}")
        return address

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> int | None:
        """The link-time address of ``name`` (the first of several), or None."""
        wanted = name.encode("utf-8", "surrogatepass")
        order = self._by_name
        at = bisect_left(order, wanted, key=self._raw_name)
        if at == len(order) or self._raw_name(order[at]) != wanted:
            return None
        return int(self._addresses[order[at]])

    def at(self, address: int) -> tuple[str, int]:
        """The symbol that covers ``address``, as (name, offset into it). Raises SymbolError below the first.

        Of several names of one address the first that the kernel keeps is given; how long a symbol is, is not
        known.
        """
        if not 0 <= address < 1 << 64:
            raise SymbolError(f"{address:#x} is not an address")
        after = int(np.searchsorted(self.starts, np.uint64(address), side="right"))
        if after == 0:
            raise SymbolError(f"no symbol lies at or below {address:#x}")
        start = self.starts[after - 1]
        first = int(np.searchsorted(self.starts, start, side="left"))
        return self._name(self._by_address[first]), address - int(start)

    def names_at(self, address: int) -> tuple[str, ...]:
        """Every name of exactly ``address``, in the kernel's order; empty when there is none."""
        if not 0 <= address < 1 << 64:
            return ()
        first = int(np.searchsorted(self.starts, np.uint64(address), side="left"))
        after = int(np.searchsorted(self.starts, np.uint64(address), side="right"))
        return tuple(self._name(index) for index in self._by_address[first:after])

    def items(self) -> Iterator[tuple[str, int]]:
        """Every name once with its (first) address, by name."""
        previous = None
        for index in self._by_name:
            name = self._name(index)
            if name != previous:
                yield name, int(self._addresses[index])
            previous = name

    def _raw_name(self, index: np.uint32) -> bytes:
        # The first character is the type of the symbol (as in nm), not part of its name.
        return self._blob[self._bounds[index] + 1 : self._bounds[index + 1]]

    def _name(self, index: np.uint32) -> str:
        return self._raw_name(index).decode("ascii")


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """The token table: where it starts in .rodata, and each token's start and length there."""

    start: int
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Names:
    """A guess that proved right: the start and length (in tokens) of every name, and the addresses."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    addresses: Addresses


def _find_tokens(data: bytes) -> _Tokens:
    at = data.find(_DIGITS)
    for _ in range(_MAX_PLACES):
        if at < 0:
            break
        table = _tokens_around(data, at)
        if table is not None:
            return table
        at = data.find(_DIGITS, at + 1)
    raise SymbolError("the kernel has no symbol table", "kernels are built with CONFIG_KALLSYMS")


def _tokens_around(data: bytes, digits: int) -> _Tokens | None:
    """The table whose token for "0" is at ``digits``, if the index that must follow it agrees."""
    start = digits
    floor = max(0, digits - _MAX_TOKEN_TABLE)
    for _ in range(ord("0")):
        start = data.rfind(b"\0", floor, start - 1) + 1
        if start <= floor:
            return None
    window = np.frombuffer(data, np.uint8, min(_MAX_TOKEN_TABLE, len(data) - start), start)
    ends = np.flatnonzero(window == 0)[:256]
    if len(ends) < 256:
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    index = starts.astype("<u2").tobytes()
    after = start + int(ends[-1]) + 1
    if data.find(index, after, after + 64 + len(index)) < 0:
        return None
    return _Tokens(start, starts + start, ends - starts)


def _offsets_first(data: bytes, table: _Tokens) -> _Names | None:
    """Up to 6.3: offsets s32[n] | base u64 | n u64 | names | markers u32[] | (order) | tokens | index.

    Every part is aligned to 8 bytes. An offset is an address of its own (per-CPU) or, negative, base - 1 -
    offset.
    """
    words = np.frombuffer(data, "<u8", table.start // 8)
    if len(words) < 2:
        return None
    bases, counts = words[:-1], words[1:]
    plausible = (bases >= _KERNEL_MAP) & (bases < _MODULES) & (bases & 0xFFF == 0)
    plausible &= (counts > 0) & (counts <= _MAX_SYMBOLS)
    steps = 0
    for place in np.flatnonzero(plausible).tolist():
        base, count = int(bases[place]), int(counts[place])
        names_at = place * 8 + 16
        offsets_at = place * 8 - _aligned(count * 4)
        if offsets_at < 0 or names_at + 2 * count > table.start:
            continue
        steps += count
        if steps > _MAX_STEPS:
            break
        walked = _walk(data, names_at, count, table.start)
        if walked is None:
            continue
        starts, lengths, end = walked
        marked, sizes = starts[::_NAMES_PER_MARKER], lengths[::_NAMES_PER_MARKER]
        markers = (marked - (1 + (sizes > 0x7F)) - names_at).astype("<u4")
        markers_at = _aligned(end)
        markers_end = markers_at + 4 * len(markers)
        # Between markers and tokens later releases of 6.1 keep the order by name, three bytes a symbol.
        gap = table.start - _aligned(markers_end)
        if gap not in (0, _aligned(3 * count)) or data[markers_at:markers_end] != markers.tobytes():
            continue
        offsets = np.frombuffer(data, "<i4", count, offsets_at).astype(np.int64)
        relative = np.uint64(base) + (-1 - offsets).astype(np.uint64)
        return _Names(starts, lengths, np.where(offsets >= 0, offsets.astype(np.uint64), relative))
    return None


_LAYOUTS: tuple[Callable[[bytes, _Tokens], _Names | None], ...] = (_offsets_first,)


def _aligned(offset: int) -> int:
    return offset + 7 & ~7


def _walk(
    data: bytes, at: int, count: int, limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int] | None:
    """Step over ``count`` names: (token starts, token counts, end); None when they pass ``limit``.

    A name is its length, one byte or two (low seven bits with bit 7 set, then the rest), and that many
    tokens.
    """
    starts, lengths = array("q"), array("q")
    for _ in range(count):
        if at + 1 >= limit:
            return None
        length = data[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        if not length:
            return None
        starts.append(at)
        lengths.append(length)
        at += length
    if at > limit:
        return None
    return np.frombuffer(starts, np.int64), np.frombuffer(lengths, np.int64), at


def _expand(data: bytes, table: _Tokens, names: _Names) -> tuple[bytes, npt.NDArray[np.uint32], Addresses]:
    """Replace tokens by their text: (all texts joined, the bounds of each in it, addresses)."""
    raw = np.frombuffer(data, np.uint8)
    tokens = raw[_ranges(names.starts, names.lengths)]
    sizes = table.lengths[tokens]
    if int(sizes.sum()) > _MAX_EXPANDED:
        raise SymbolError("the kernel's symbol names are larger than any kernel's")
    first_tokens = np.cumsum(names.lengths) - names.lengths
    text_sizes = np.add.reduceat(sizes, first_tokens)
    blob = raw[_ranges(table.starts[tokens], sizes)]
    if (text_sizes < 2).any() or (blob < 0x21).any() or (blob > 0x7E).any():
        raise SymbolError("the kernel's symbol table holds names that are not names")
    bounds = np.zeros(len(text_sizes) + 1, np.uint32)
    np.cumsum(text_sizes, out=bounds[1:])
    return blob.tobytes(), bounds, names.addresses


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The concatenation of range(start, start + length) for each pair."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _index(
    kind: type[Kallsyms], blob: bytes, bounds: npt.NDArray[np.uint32], addresses: Addresses
) -> Kallsyms:
    limits = bounds.tolist()
    names = [blob[limits[i] + 1 : limits[i + 1]] for i in range(len(addresses))]
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), np.uint32)
    by_address = np.argsort(addresses, kind="stable").astype(np.uint32)
    starts = addresses[by_address]
    for values in (starts, bounds, addresses, by_name, by_address):
        values.setflags(write=False)
    return kind(starts, blob, bounds, addresses, by_name, by_address)
