# SPDX-License-Identifier: Apache-2.0
"""Section addresses that a guest gives for a module."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay.layout import (
    MODULES_END,
    MODULES_START,
    PERCPU,
    SectionAddressError,
    place,
)

from .modules import ALLOC, EXEC, WRITE, module, section

TEXT = MODULES_START + 0x1000
MODULE = module(
    section(".text", b"\xc3" * 100, ALLOC | EXEC),
    section(".data", bytes(64), ALLOC | WRITE, align=32),
    section(".init.text", b"\xc3" * 10, ALLOC | EXEC),
    section(PERCPU, bytes(8), ALLOC | WRITE),
    section(".symtab", bytes(24), 0),
)


def test_sections_come_by_address() -> None:
    found = place(MODULE, {".data": TEXT + 0x1000, ".text": TEXT, ".init.text": TEXT + 0x2000, PERCPU: 64})
    assert [(one.section.name, one.address) for one in found] == [
        (".text", TEXT),
        (".data", TEXT + 0x1000),
        (".init.text", TEXT + 0x2000),
    ]
    assert [one.kept for one in found] == [True, True, False]
    assert found[0].executable
    assert found[1].writable


def test_the_symbol_table_is_no_section_of_interest() -> None:
    assert len(place(MODULE, {".text": TEXT, ".symtab": 1})) == 1


@pytest.mark.parametrize(
    "addresses",
    [
        {},  # code without an address
        {".data": TEXT},
        {".text": TEXT, ".other": TEXT + 0x1000},
        {".text": TEXT, "x" * 10000: TEXT},
        {".text": MODULES_START - 16},
        {".text": MODULES_END - 99},
        {".text": 0},
        {".text": 1 << 70},
        {".text": -16},
        {".text": TEXT, ".data": TEXT + 0x1008},  # unaligned
        {".text": TEXT, ".data": TEXT + 96},  # inside the code
        {".text": TEXT, ".init.text": TEXT},
        {".text": TEXT, PERCPU: 1 << 40},
    ],
)
def test_addresses_that_cannot_be_are_a_typed_error(addresses: dict[str, int]) -> None:
    with pytest.raises(SectionAddressError):
        place(MODULE, addresses)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([".text", ".data", ".init.text", PERCPU]) | st.text(max_size=4),
        st.integers(0, (1 << 64) - 1) | st.integers(MODULES_START, MODULES_START + 0x4000),
    )
)
def test_accepted_addresses_are_disjoint_and_in_the_region(addresses: dict[str, int]) -> None:
    try:
        found = place(MODULE, addresses)
    except SectionAddressError:
        return
    ends = [MODULES_START] + [one.end for one in found]
    assert all(end <= one.address for end, one in zip(ends, found, strict=False))
    assert ends[-1] <= MODULES_END
