# SPDX-License-Identifier: Apache-2.0
"""Static branches in every state of their key."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay import jump_labels
from nova_vmi_attest.introspection.replay.inputs import signed
from nova_vmi_attest.introspection.replay.instructions import NOP5
from nova_vmi_attest.introspection.replay.patching import Patching, Region, ReplayError

from .support import BASE, DATA, TABLES, branch, patching, result, s32

LONG, SHORT, TARGET = BASE, BASE + 5, BASE + 0x20
IMAGE = NOP5 + b"\x66\x90" + bytes(0x30)
LIKELY, INIT = 1, 2


def entry(site: int, flags: int = 0, key: int = DATA, target: int = TARGET, position: int = 0) -> bytes:
    place = TABLES + 16 * position
    return s32(site - place) + s32(target - place - 4) + struct.pack("<q", key + flags - place - 8)


def bench(table: bytes, enabled: int) -> Patching:
    return patching(IMAGE, {"__jump_table": table}, memory={DATA: s32(enabled)})


@pytest.mark.parametrize("enabled", [1, 2, -1])
@pytest.mark.parametrize("flags", [0, INIT])
def test_an_enabled_unlikely_branch_jumps(enabled: int, flags: int) -> None:
    made = bench(entry(LONG, flags) + entry(SHORT, flags, position=1), enabled)
    patched = result(made, jump_labels.apply)
    assert patched[:5] == branch(0xE9, LONG, TARGET)
    assert patched[5:7] == bytes([0xEB, TARGET - SHORT - 2])
    assert made.kernel.inputs().static_keys == {DATA: enabled}


def test_a_disabled_unlikely_branch_is_a_nop() -> None:
    assert result(bench(entry(LONG) + entry(SHORT, position=1), 0), jump_labels.apply) == IMAGE


def test_a_likely_branch_is_the_other_way_round() -> None:
    assert result(bench(entry(LONG, LIKELY), 1), jump_labels.apply) == IMAGE
    assert result(bench(entry(LONG, LIKELY), 0), jump_labels.apply)[:5] == branch(0xE9, LONG, TARGET)


def test_a_jump_that_the_compiler_left_becomes_a_nop() -> None:
    image = branch(0xE9, LONG, TARGET) + bytes([0xEB, TARGET - SHORT - 2]) + bytes(0x30)
    made = patching(image, {"__jump_table": entry(LONG) + entry(SHORT, position=1)}, memory={DATA: bytes(4)})
    assert result(made, jump_labels.apply) == IMAGE


def test_an_unreadable_key_is_recorded_and_leaves_its_branches() -> None:
    made = bench(entry(LONG, key=DATA + 0x100000), 1)
    assert result(made, jump_labels.apply) == IMAGE
    (invalid,) = made.kernel.inputs().invalid
    assert (invalid.kind, invalid.address, invalid.value) == ("static_key", DATA + 0x100000, None)


def test_code_that_is_freed_is_left_and_its_key_not_read() -> None:
    regions = [Region("init", signed(BASE), len(IMAGE), 0, kept=False)]
    made = patching(IMAGE, {"__jump_table": entry(LONG, key=DATA + 0x100000)}, regions=regions)
    assert result(made, jump_labels.apply) == IMAGE
    assert made.kernel.inputs().invalid == ()


def test_a_short_branch_to_a_far_target_is_a_typed_error() -> None:
    with pytest.raises(ReplayError):
        jump_labels.apply(bench(entry(SHORT, target=BASE + 0x1000), 1))


def test_a_site_at_the_very_end_is_a_typed_error() -> None:
    with pytest.raises(ReplayError):
        jump_labels.apply(bench(entry(BASE + len(IMAGE) - 1), 1))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=96))
def test_arbitrary_tables_give_a_result_or_a_typed_error(table: bytes) -> None:
    made = bench(table, 1)
    try:
        jump_labels.apply(made)
    except ReplayError:
        return
    assert len(made.image) == len(IMAGE)
