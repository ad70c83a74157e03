# SPDX-License-Identifier: Apache-2.0
"""Expected memory as a difference: always the same answer as comparing every byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nova_vmi_attest.introspection import expectation
from nova_vmi_attest.introspection.expectation import Expectation, ExpectationError

Bytes = NDArray[np.uint8]


def naive(expected: Bytes, live: Bytes, ignored: list[tuple[int, int]]) -> list[int]:
    skipped = {at for start, end in ignored for at in range(start, end)}
    return [at for at in range(len(live)) if live[at] != expected[at] and at not in skipped]


def shifted(data: Bytes, by: int) -> Bytes:
    """The same bytes at an address that is ``by`` bytes off a word."""
    room = np.zeros(len(data) + 16, np.uint8)
    start = -room.ctypes.data % 8 + by
    room[start : start + len(data)] = data
    return room[start : start + len(data)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_agrees_with_a_comparison_of_every_byte(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 300))
    reference = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    places = st.lists(st.integers(0, max(size - 1, 0)), max_size=20)
    expected = reference.copy()
    if size:
        expected[data.draw(places)] ^= 0x5A
    live = expected.copy()
    if size:
        live[data.draw(places)] ^= data.draw(st.sampled_from([0x5A, 1]))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
    ignored = list(zip(cuts[::2], cuts[1::2], strict=False))
    old, expectation.CHUNK_WORDS = expectation.CHUNK_WORDS, data.draw(st.integers(1, 8))
    try:
        made = Expectation(reference, expected, ignored)
    finally:
        expectation.CHUNK_WORDS = old
    assert made.mismatches(shifted(live, data.draw(st.integers(0, 7)))).tolist() == naive(
        expected, live, ignored
    )
    assert made.compared == size - sum(end - start for start, end in ignored)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 99))
def test_the_expected_bytes_can_be_had_back(data: bytes, start: int, end: int, place: int) -> None:
    reference = np.frombuffer(data, np.uint8)
    expected = reference.copy()
    expected[place:] ^= 0xFF
    made = Expectation(reference, expected)
    start, end = min(start, len(data)), min(max(start, end), len(data))
    start = min(start, end)
    assert made.expected(start, end).tobytes() == expected[start:end].tobytes()


def test_a_byte_that_went_back_to_the_reference_is_seen() -> None:
    reference = np.zeros(64, np.uint8)
    expected = reference.copy()
    expected[[3, 40]] = 7
    made = Expectation(reference, expected)
    assert made.mismatches(expected).tolist() == []
    assert made.mismatches(reference).tolist() == [3, 40]


def test_one_change_does_not_make_up_for_another() -> None:
    """The number of changed words stays the same: only their values tell."""
    reference = np.zeros(64, np.uint8)
    expected = reference.copy()
    expected[3] = 7
    live = reference.copy()
    live[50] = 7
    assert Expectation(reference, expected).mismatches(live).tolist() == [3, 50]


def test_ignored_bytes_inside_a_word_do_not_hide_their_neighbours() -> None:
    reference = np.zeros(24, np.uint8)
    made = Expectation(reference, reference, [(10, 12)])
    live = reference.copy()
    live[9:13] = 1
    assert made.mismatches(live).tolist() == [9, 12]


def test_only_differences_are_held() -> None:
    reference = np.zeros(1 << 20, np.uint8)
    expected = reference.copy()
    expected[:: 1 << 12] = 1
    assert Expectation(reference, expected).nbytes == 256 * 10


def test_memory_that_is_not_contiguous_is_compared_too() -> None:
    live = np.zeros((64, 2), np.uint8)[:, 0]
    assert Expectation(np.zeros(64, np.uint8), np.zeros(64, np.uint8)).mismatches(live).tolist() == []


@pytest.mark.parametrize("ignored", [[(5, 4)], [(0, 65)], [(8, 16), (12, 20)], [(-1, 3)]])
def test_ranges_that_make_no_sense_are_refused(ignored: list[tuple[int, int]]) -> None:
    with pytest.raises(ExpectationError):
        Expectation(np.zeros(64, np.uint8), np.zeros(64, np.uint8), ignored)


def test_arrays_that_do_not_fit_are_refused() -> None:
    made = Expectation(np.zeros(64, np.uint8), np.zeros(64, np.uint8))
    with pytest.raises(ExpectationError):
        made.mismatches(np.zeros(63, np.uint8))
    with pytest.raises(ExpectationError):
        Expectation(np.zeros(64, np.uint8), np.zeros(63, np.uint8))
    with pytest.raises(ExpectationError):
        made.mismatches(np.zeros((8, 8), np.uint8))
    with pytest.raises(ExpectationError):
        made.expected(60, 65)
