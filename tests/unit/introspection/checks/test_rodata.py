# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.checks.rodata import _within
from nova_vmi_attest.introspection.paging import Leaves

TOP = (1 << 64) - 0x1000


def leaves(places: list[int], size: int) -> Leaves:
    va = np.array(places, np.uint64)
    return Leaves(va, va, np.full(len(va), size, np.uint64), va)


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.integers(0, 40), max_size=12),
    st.sampled_from([0x1000, 0x200000]),
    st.lists(st.tuples(st.integers(0, 42), st.integers(-2, 2), st.booleans()), max_size=30),
)
def test_it_finds_the_addresses_that_a_mapping_holds(
    numbers: set[int], size: int, wanted: list[tuple[int, int, bool]]
) -> None:
    places = [number * (1 << 28) * (1 + number // 20) + (1 << 30) for number in sorted(numbers)]
    centres = [*places, *(place + size for place in places), 1 << 29]
    values = [max(centres[number % len(centres)] + delta, 0) for number, delta, _ in wanted]
    among = [chosen for _, _, chosen in wanted]
    found = _within(np.array(values, np.uint64), leaves(places, size), np.array(among, np.bool_))
    assert found.tolist() == [
        index
        for index, value in enumerate(values)
        if among[index] and any(place <= value < place + size for place in places)
    ]


def test_the_last_page_there_is_counts() -> None:
    values = np.array([0, TOP - 1, TOP, (1 << 64) - 1], np.uint64)
    assert _within(values, leaves([TOP], 0x1000), np.ones(4, np.bool_)).tolist() == [2, 3]
