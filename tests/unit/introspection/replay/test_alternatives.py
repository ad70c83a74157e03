# SPDX-License-Identifier: Apache-2.0
"""Alternatives: conditions, order, moved branches, NOPs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay import alternatives
from nova_vmi_attest.introspection.replay.alternatives import move
from nova_vmi_attest.introspection.replay.patching import Mechanism, Patching, ReplayError

from .support import BASE, TABLES, branch, patching, result, s32

FEATURE, OTHER, INVERTED = 77, 78, 0x8000
OLD, NEW, NEWER = b"\x31\xc0\x31\xdb\x31\xd2", b"\x48\x89\xd8", b"\x48\x89\xf8\x48\x89\xd0"
IMAGE = OLD + bytes(0x40 - len(OLD)) + NEW + bytes(0x40 - len(NEW)) + NEWER + bytes(8)


def entries(*rows: tuple[int, int, int, int, int]) -> bytes:
    """(site, replacement, feature word, site length, replacement length), offsets from BASE."""
    packed = b""
    for i, (site, new, feature, length, size) in enumerate(rows):
        place = TABLES + 12 * i
        packed += s32(BASE + site - place) + s32(BASE + new - place - 4)
        packed += struct.pack("<HBB", feature, length, size)
    return packed


def bench(table: bytes, *features: int, image: bytes = IMAGE) -> Patching:
    return patching(image, {".altinstructions": table}, features=features)


def test_a_feature_brings_its_replacement_and_merged_nops() -> None:
    made = bench(entries((0, 0x40, FEATURE, 6, 3)), FEATURE)
    assert result(made, alternatives.apply)[:6] == NEW + b"\x0f\x1f\x00"
    assert set(made.owner[:6]) == {Mechanism.ALTERNATIVE}


def test_without_the_feature_the_site_stays() -> None:
    assert result(bench(entries((0, 0x40, FEATURE, 6, 3))), alternatives.apply) == IMAGE


def test_an_inverted_entry_applies_without_the_feature() -> None:
    made = bench(entries((0, 0x40, FEATURE | INVERTED, 6, 3)))
    assert result(made, alternatives.apply)[:3] == NEW


def test_later_entries_win() -> None:
    made = bench(entries((0, 0x40, FEATURE, 6, 3), (0, 0x80, OTHER, 6, 6)), FEATURE, OTHER)
    assert result(made, alternatives.apply)[:6] == NEWER


def test_nops_of_a_site_that_is_not_replaced_are_merged_too() -> None:
    image = b"\x90" * 6 + bytes(0x60)
    made = result(bench(entries((0, 0x40, FEATURE, 6, 3)), image=image), alternatives.apply)
    assert made[:6] == bytes.fromhex("660f1f440000")


def test_an_empty_replacement_makes_nops() -> None:
    made = bench(entries((0, len(IMAGE), FEATURE, 6, 0)), FEATURE)
    assert result(made, alternatives.apply)[:6] == bytes.fromhex("660f1f440000")


@pytest.mark.parametrize(
    ("code", "site", "moved"),
    [
        (branch(0xE8, 0x1000, 0x5000), 0x2000, branch(0xE8, 0x2000, 0x5000)),
        (branch(0xE9, 0x1000, 0x5000), 0x2000, branch(0xE9, 0x2000, 0x5000)),
        (branch(0xE9, 0x1000, 0x2010), 0x2000, bytes.fromhex("eb0e 0f1f00")),
        (branch(0xE9, 0x1000, 0x2081), 0x2000, bytes.fromhex("eb7f 0f1f00")),
        (branch(0xE9, 0x1000, 0x2082), 0x2000, branch(0xE9, 0x2000, 0x2082)),
        (branch(0xE9, 0x1000, 0x1FF0), 0x2000, branch(0xE9, 0x2000, 0x1FF0)),  # backwards: never short
        (b"\xe8\x00\x00\x00", 0x2000, b"\xe8\x00\x00\x00"),
    ],
)
def test_a_moved_branch_keeps_its_target(code: bytes, site: int, moved: bytes) -> None:
    assert move(code, 0x1000, site) == moved


@pytest.mark.parametrize(
    "table",
    [
        entries((-1, 0x40, FEATURE, 6, 3)),
        entries((0, -1, FEATURE, 6, 3)),
        entries((0, len(IMAGE) - 1, FEATURE, 6, 3)),
        entries((0, 0x40, FEATURE, 3, 6)),  # replacement longer than the site: another layout
        entries((0, 0x40, FEATURE, 255, 3)),
        entries((0, 0x40, FEATURE, 6, 3))[:-1],
    ],
)
def test_a_table_that_makes_no_sense_is_a_typed_error(table: bytes) -> None:
    with pytest.raises(ReplayError):
        alternatives.apply(bench(table, FEATURE))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_arbitrary_tables_give_a_result_or_a_typed_error(table: bytes) -> None:
    made = bench(table, FEATURE)
    try:
        alternatives.apply(made)
    except ReplayError:
        return
    assert len(made.image) == len(IMAGE)
