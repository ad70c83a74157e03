# SPDX-License-Identifier: Apache-2.0
"""NOPs, lengths of instructions, and branches."""

from __future__ import annotations

import numpy as np
import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay import instructions
from nova_vmi_attest.introspection.replay.instructions import branches, nops, optimize_nops


@pytest.mark.parametrize("length", range(1, 33))
def test_a_filling_of_nops_decodes_as_the_fewest_nops(length: int) -> None:
    decoded = [(one.mnemonic, one.size) for one in Cs(CS_ARCH_X86, CS_MODE_64).disasm(nops(length), 0)]
    assert sum(size for _, size in decoded) == length
    assert {name for name, _ in decoded} <= {"nop", "xchg"}
    assert len(decoded) == -(-length // 8)


def test_runs_of_nops_are_merged_between_instructions() -> None:
    assert optimize_nops(b"\x90\x90\x90\xc3\x90\x90") == b"\x0f\x1f\x00\xc3\x66\x90"


def test_a_single_nop_stays() -> None:
    assert optimize_nops(b"\xc3\x90\xc3\x90\x90") == b"\xc3\x90\xc3\x66\x90"


def test_the_bytes_of_an_operand_are_no_nops() -> None:
    move = b"\xb8\x90\x90\x90\x90"  # mov $0x90909090, %eax
    assert optimize_nops(move + b"\x90\x90") == move + b"\x66\x90"


def test_the_walk_ends_at_bytes_that_are_no_code() -> None:
    assert optimize_nops(b"\x06\x90\x90") == b"\x06\x90\x90"


def test_a_code_without_an_instruction_has_no_length() -> None:
    assert instructions.instruction_length(b"\x06") is None
    assert instructions.instruction_length(b"\x0f\x1f\x44\x00\x00") == 5


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_optimising_keeps_length_and_other_bytes(code: bytes) -> None:
    optimised = optimize_nops(code)
    assert len(optimised) == len(code)
    changed = [i for i in range(len(code)) if optimised[i] != code[i]]
    assert all(code[i] == 0x90 for i in changed)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_branch_reaches_its_target_or_says_that_it_cannot(site: int, target: int) -> None:
    rows, reachable = branches(b"\xe8", np.array([site], np.int64), np.array([target], np.int64))
    distance = int.from_bytes(rows[0, 1:].tobytes(), "little", signed=True)
    assert bool(reachable[0]) == ((site + 5 + distance - target) % (1 << 64) == 0)
