# SPDX-License-Identifier: Apache-2.0
"""The shared patching context: places, bounds, owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay.inputs import MASK64, MAX_INVALID, signed
from nova_vmi_attest.introspection.replay.patching import (
    MAX_TABLE_BYTES,
    Mechanism,
    Patching,
    Region,
    ReplayError,
    Table,
)

from .support import BASE, DATA, as_bytes, patching

REGIONS = [Region("a", signed(BASE), 16, 0), Region("b", signed(BASE + 0x100), 8, 16, kept=False)]


def bench() -> Patching:
    return patching(bytes(24), {}, regions=REGIONS, memory={DATA: bytes(16)})


def test_places_are_found_in_each_region() -> None:
    addresses = np.array([signed(BASE), signed(BASE + 15), signed(BASE + 0x107)], np.int64)
    assert bench().locate(addresses, 1, "x").tolist() == [0, 15, 23]


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(BASE - 40, BASE + 0x140).map(signed))
def test_what_is_outside_is_refused(address: int) -> None:
    inside = any(r.address <= address and address + 4 <= r.address + r.size for r in REGIONS)
    try:
        bench().locate(np.array([address], np.int64), 4, "x")
    except ReplayError:
        assert not inside
    else:
        assert inside


def test_rows_that_change_nothing_keep_their_owner() -> None:
    made = bench()
    made.put_rows(np.array([0, 4]), np.array([[0, 0], [0, 1]], np.uint8), Mechanism.RETURN)
    assert made.owner.tolist() == [0] * 4 + [Mechanism.RETURN] * 2 + [0] * 18


def test_regions_are_told_apart() -> None:
    addresses = np.array([signed(BASE), signed(BASE + 0x100), 0], np.int64)
    assert bench().in_regions(addresses).tolist() == [True, True, False]
    assert bench().in_regions(addresses, kept=True).tolist() == [True, False, False]


def test_a_monstrous_table_is_refused() -> None:
    made = patching(bytes(8), {"t": bytes(MAX_TABLE_BYTES + 1)})
    with pytest.raises(ReplayError):
        made.table("t")
    assert made.table("other") is None


def test_a_table_of_relative_addresses_wraps_around_nothing() -> None:
    table = Table(signed(BASE), as_bytes(b"\xff\xff\xff\xff\x04\x00\x00\x00\x99"))
    assert table.self_relative().tolist() == [signed(BASE - 1), signed(BASE + 8)]


def test_invalid_inputs_are_bounded() -> None:
    kernel = bench().kernel
    for address in range(MAX_INVALID + 10):
        kernel.invalid("static_key", address, None, "")
    assert len(kernel.inputs().invalid) == MAX_INVALID


def test_keys_are_read_once_and_signed() -> None:
    made = patching(bytes(8), {}, memory={DATA: b"\xff\xff\xff\xff\x02\x00\x00\x00"})
    addresses = np.array([signed(DATA + 4), signed(DATA), signed(DATA + 4), 0], np.int64)
    values, readable = made.kernel.static_keys(addresses)
    assert values.tolist() == [2, -1, 2, 0]
    assert readable.tolist() == [True, True, True, False]
    assert made.kernel.inputs().static_keys == {DATA: -1, DATA + 4: 2}


def test_signed_addresses_round_trip() -> None:
    assert signed(MASK64) == -1
    assert signed(BASE) & MASK64 == BASE
