# SPDX-License-Identifier: Apache-2.0
"""Tables that the kernel sorts when it loads a module."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay.patching import ReplayError
from nova_vmi_attest.introspection.replay.sorting import sort_addresses, sort_exceptions

from .support import as_bytes


def table(rows: list[tuple[int, int, int]]) -> bytes:
    return b"".join(struct.pack("<iiI", p - 12 * i, t - 12 * i - 4, d) for i, (p, t, d) in enumerate(rows))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-99999, 99999), st.integers(-99999, 99999), st.integers(0, 2**32 - 1)),
        unique_by=lambda row: row[0],
    )
)
def test_exceptions_keep_what_they_point_to(rows: list[tuple[int, int, int]]) -> None:
    assert sort_exceptions(as_bytes(table(rows))).tobytes() == table(sorted(rows))


def test_addresses_ascend() -> None:
    data = np.array([3, 1, 2**64 - 1], "<u8").view(np.uint8)
    assert sort_addresses(data).view("<u8").tolist() == [1, 3, 2**64 - 1]


@pytest.mark.parametrize("sort", [sort_exceptions, sort_addresses])
def test_a_piece_of_an_entry_is_a_typed_error(sort: object) -> None:
    assert callable(sort)
    with pytest.raises(ReplayError):
        sort(np.zeros(13, np.uint8))
