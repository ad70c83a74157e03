# SPDX-License-Identifier: Apache-2.0
"""Thunks for indirect branches: their layout in pages, and whose word is taken for where those are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay.indirect_thunks import Thunks
from nova_vmi_attest.introspection.replay.inputs import signed
from nova_vmi_attest.introspection.replay.patching import Patching

from .support import BASE, branch, patching

CALL, JMP, JCC = 0xE8, 0xE9, 0x0F
PAGE = 0xFFFFFFFFC0002000
FIRST = 32  # where the first thunk of a page lies


def bench(live: bytes) -> Patching:
    return patching(bytes(64), {}, memory={BASE: live})


@pytest.mark.parametrize(
    ("opcode", "condition", "length", "register", "expected"),
    [
        (CALL, 0, 5, 0, branch(0xE8, BASE, PAGE + FIRST)),
        (JMP, 0, 5, 3, branch(0xE9, BASE, PAGE + FIRST)),
        (CALL, 0, 6, 11, b"\x2e" + branch(0xE8, BASE + 1, PAGE + FIRST)),
        (JCC, 4, 6, 0, b"\x0f" + branch(0x84, BASE + 1, PAGE + FIRST)),
    ],
)
def test_the_first_site_gives_the_page(
    opcode: int, condition: int, length: int, register: int, expected: bytes
) -> None:
    made = bench(expected)
    thunks = Thunks(made)
    assert thunks.branch(signed(BASE), opcode, condition, length, register) == expected
    thunks.finish()
    (page,) = made.kernel.inputs().thunk_pages
    code = (b"\x41" if register >= 8 else b"") + bytes([0xFF, 0xE0 | register & 7, 0xCC])
    assert page.address == PAGE
    assert page.expected == (b"\xcc" * FIRST + code).ljust(4096, b"\xcc")


@pytest.mark.parametrize(
    "live",
    [
        b"",
        b"\x90" * 5,
        branch(0xE8, BASE, PAGE + FIRST + 1),  # not page-aligned
        branch(0xE8, BASE, BASE + 0x1000 + FIRST),  # not in the module region
    ],
)
def test_a_site_that_leads_nowhere_legal_stays_unexplained(live: bytes) -> None:
    made = bench(live)
    thunks = Thunks(made)
    assert thunks.branch(signed(BASE), CALL, 0, 5, 0) is None
    thunks.finish()
    assert made.kernel.inputs().thunk_pages == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=300))
def test_thunks_end_in_the_upper_half_of_a_line(registers: list[int]) -> None:
    made = bench(branch(0xE8, BASE, PAGE + FIRST))
    thunks = Thunks(made)
    ends = []
    for register in registers:
        data = thunks.branch(signed(BASE), CALL, 0, 5, register)
        assert data is not None
        target = BASE + 5 + int.from_bytes(data[1:], "little", signed=True)
        ends.append(target + 2 + register // 8)
    assert all(end & 32 for end in ends)
    assert all(a < b for a, b in itertools.pairwise(ends))
