# SPDX-License-Identifier: Apache-2.0
"""What a range of guest memory must hold, kept as its difference from a reference that all guests share.

A kernel's text differs from its build in a few per cent of its 64-bit words. An :class:`Expectation` keeps
only those (10 bytes each), so that any number of guests share one image, and comparing costs about as much
as comparing two arrays once.

**Why the comparison is exact.** Let D be the words where the expected bytes differ from the reference. For
live memory L, it tests (1) that the number of words where L differs from the reference is the size of D,
and (2) that L equals the expected value at every word of D. If both hold, every word of D differs from the
reference in L, by (2), so by (1) no other word does: there L equals the reference, which is the
expectation. If L is as expected, both hold. When a test fails for a chunk of memory, the chunk is compared
byte by byte against the expected bytes.

Live memory may change meanwhile; each word is then judged by what it held when it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]

WORD = 8
# 256 KiB each of live memory and of the reference stay in cache while both tests look at them; word numbers
# within a chunk fit into 16 bits.
CHUNK_WORDS = 1 << 15


class ExpectationError(AttestError):
    """Arrays or ranges that do not fit together: a defect of the caller, never of the guest."""


class Expectation:
    """The bytes that must be found, relative to ``reference``. Immutable; safe to share between threads.

    :param reference: 1-D uint8, kept and never written. Best contiguous and aligned to 8 bytes.
    :param expected: uint8 of the same length, not kept.
    :param ignored: ascending, disjoint ``(start, end)`` byte ranges in which nothing is ever reported.
    :raises ExpectationError: the arguments do not fit together.
    """

    def __init__(self, reference: Bytes, expected: Bytes, ignored: Sequence[tuple[int, int]] = ()) -> None:
        _require_bytes(reference)
        _require_bytes(expected)
        if len(reference) != len(expected):
            raise ExpectationError(f"{len(expected)} expected bytes for a reference of {len(reference)}")
        self._reference = reference
        self.ignored = tuple(ignored)
        ranges = list(_complement(self.ignored, len(reference)))
        self._chunks: list[_Chunk] = []
        self._words = _as_words(reference)
        self._edges = np.concatenate([np.zeros(0, np.int64), *(_ragged(start, end) for start, end in ranges)])
        self._edge_values = expected[self._edges]
        self._index, self._values = self._differences(_as_words(expected), ranges)
        for array in (self._edges, self._edge_values, self._index, self._values):
            array.setflags(write=False)

    def __len__(self) -> int:
        """How many bytes the range has, ignored ones included."""
        return len(self._reference)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that this object holds besides the shared reference."""
        held = (self._edges, self._edge_values, self._index, self._values)
        return sum(array.nbytes for array in held)

    @property
    def compared(self) -> int:
        """How many bytes :meth:`mismatches` compares: all but the ignored ones."""
        return len(self) - sum(end - start for start, end in self.ignored)

    def expected(self, start: int, end: int) -> Bytes:
        """A copy of the expected bytes ``start`` .. ``end``. Bytes of ignored ranges are those of the
        reference.

        :raises ExpectationError: the range is not inside this one.
        """
        if not 0 <= start <= end <= len(self):
            raise ExpectationError(f"bytes {start} to {end} of {len(self)}")
        first, last = start // WORD, min(-(-end // WORD), len(self._words))
        window = self._reference[first * WORD : max(last * WORD, end)].copy()
        words = window[: max(last - first, 0) * WORD].view(np.uint64)
        for chunk in self._chunks:
            if chunk.start < last and first < chunk.end:
                places = self._index[chunk.low : chunk.high].astype(np.int64) + (chunk.start - first)
                inside = (places >= 0) & (places < len(words))
                words[places[inside]] = self._values[chunk.low : chunk.high][inside]
        edges = slice(*np.searchsorted(self._edges, (first * WORD, first * WORD + len(window))))
        window[self._edges[edges] - first * WORD] = self._edge_values[edges]
        return window[start - first * WORD : end - first * WORD]

    def mismatches(self, live: Bytes) -> Offsets:
        """Offsets of the bytes of ``live`` that are not as expected, ascending. Empty: all of them are.

        :raises ExpectationError: ``live`` is not as long as the reference.
        """
        _require_bytes(live)
        if len(live) != len(self):
            raise ExpectationError(f"{len(live)} live bytes for a reference of {len(self)}")
        words, found = _as_words(live), []
        for chunk in self._chunks:
            here = words[chunk.start : chunk.end]
            changed = np.count_nonzero(here != self._words[chunk.start : chunk.end])
            if changed == chunk.high - chunk.low:
                # Every index is inside; "clip" only spares the check of that.
                patched = here.take(self._index[chunk.low : chunk.high], mode="clip")
                if (patched == self._values[chunk.low : chunk.high]).all():
                    continue
            found.append(self._bytes_of(here, chunk))
        if len(self._edges):
            found.append(self._edges[live[self._edges] != self._edge_values])
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _bytes_of(self, live: NDArray[np.uint64], chunk: _Chunk) -> Offsets:
        wanted = self._words[chunk.start : chunk.end].copy()
        wanted[self._index[chunk.low : chunk.high]] = self._values[chunk.low : chunk.high]
        differ = np.ascontiguousarray(live).view(np.uint8) != wanted.view(np.uint8)
        return np.flatnonzero(differ) + chunk.start * WORD

    def _differences(
        self, expected: NDArray[np.uint64], ranges: list[tuple[int, int]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
        """Fill the list of chunks; where in its chunk each word lies that expected and reference differ in,
        and the expected words.
        """
        places, values, total = [np.zeros(0, np.uint16)], [np.zeros(0, np.uint64)], 0
        for first, last in ranges:
            for start in range(-(-first // WORD), last // WORD, CHUNK_WORDS):
                end = min(start + CHUNK_WORDS, last // WORD)
                differ = np.flatnonzero(expected[start:end] != self._words[start:end])
                self._chunks.append(_Chunk(start, end, total, total + len(differ)))
                places.append(differ.astype(np.uint16))
                values.append(expected[start:end][differ])
                total += len(differ)
        return np.concatenate(places), np.concatenate(values)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Words ``start`` to ``end`` of the range; the differences ``low`` to ``high`` are theirs."""

    start: int
    end: int
    low: int
    high: int


def _require_bytes(array: Bytes) -> None:
    if array.ndim != 1 or array.dtype != np.uint8:
        raise ExpectationError(f"a 1-D array of bytes is wanted, not {array.ndim}-D {array.dtype}")


def _as_words(array: Bytes) -> NDArray[np.uint64]:
    """The whole 64-bit words of ``array``, without a copy where it is contiguous (aligned or not)."""
    return np.ascontiguousarray(array[: len(array) // WORD * WORD]).view(np.uint64)


def _complement(ignored: tuple[tuple[int, int], ...], size: int) -> Iterator[tuple[int, int]]:
    """The byte ranges of 0 .. ``size`` that are not ignored."""
    at = 0
    for start, end in ignored:
        if not at <= start <= end <= size:
            raise ExpectationError(f"ignored range {start} to {end} is not ascending inside {size} bytes")
        if start > at:
            yield at, start
        at = end
    if at < size:
        yield at, size


def _ragged(start: int, end: int) -> Offsets:
    """The bytes of a range that do not belong to a whole word of it."""
    first, last = -(-start // WORD) * WORD, end // WORD * WORD
    if first >= last:
        return np.arange(start, end, dtype=np.int64)
    return np.concatenate([np.arange(start, first), np.arange(last, end)]).astype(np.int64)
