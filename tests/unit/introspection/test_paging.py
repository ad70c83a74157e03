# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection import paging
from nova_vmi_attest.introspection.paging import (
    LARGE,
    NO_EXECUTE,
    PAGE,
    PRESENT,
    USER,
    WRITABLE,
    AddressSpace,
    PagingError,
    canonical,
)

from .fakes import KERNEL, ROOT, FakeMemory, map_page

SIZE = 1 << 20


@pytest.mark.parametrize("levels", [4, 5])
def test_a_page_is_found_by_four_or_five_levels(levels: int) -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL + 0x3000, 0x42000, levels=levels)
    space = AddressSpace(memory, ROOT, levels)
    assert space.translate(KERNEL + 0x3123) == 0x42123
    assert space.translate(KERNEL + 0x4000) is None
    assert [(leaf.va, leaf.gpa, leaf.size) for leaf in space.executable_leaves()] == [
        (KERNEL + 0x3000, 0x42000, PAGE)
    ]


def test_what_any_level_denies_is_denied() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000, PRESENT)
    map_page(memory, KERNEL + PAGE, 0x43000, PRESENT | WRITABLE | USER)
    map_page(memory, KERNEL + 2 * PAGE, 0x44000, PRESENT | NO_EXECUTE)
    leaves = AddressSpace(memory, ROOT, 4).leaves()
    assert leaves.va.tolist() == [KERNEL, KERNEL + PAGE, KERNEL + 2 * PAGE]
    assert leaves.writable().va.tolist() == [KERNEL + PAGE]
    assert leaves.executable().va.tolist() == [KERNEL, KERNEL + PAGE]


def test_a_large_page_ends_the_walk() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    # The entry of level 1 lies in the third table that was made: pgd, pud, pmd.
    memory.word(ROOT + 2 * PAGE + (KERNEL >> 21 & 511) * 8, 0x0060_0000 | PRESENT | LARGE)
    space = AddressSpace(memory, ROOT, 4)
    assert space.translate(KERNEL + 0x12345) == 0x600000 + 0x12345
    assert space.leaves().size.tolist() == [0x200000]


def test_spans_join_what_is_contiguous_and_name_what_is_not_mapped() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    map_page(memory, KERNEL + PAGE, 0x43000)
    map_page(memory, KERNEL + 3 * PAGE, 0x10000)
    spans = list(AddressSpace(memory, ROOT, 4).spans(KERNEL + 0x10, 4 * PAGE - 0x10))
    assert spans == [
        (KERNEL + 0x10, 0x42010, 2 * PAGE - 0x10),
        (KERNEL + 2 * PAGE, None, PAGE),
        (KERNEL + 3 * PAGE, 0x10000, PAGE),
    ]


def test_a_table_that_points_to_itself_ends() -> None:
    memory = FakeMemory(SIZE)
    memory.word(ROOT + 511 * 8, ROOT | PRESENT | WRITABLE)
    space = AddressSpace(memory, ROOT, 4)
    assert space.translate((1 << 64) - PAGE) == ROOT
    assert space.leaves().gpa.tolist() == [ROOT]


def test_a_table_full_of_itself_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "TABLE_LIMIT", 1024)
    memory = FakeMemory(SIZE)
    memory.put(ROOT, np.full(512, ROOT | PRESENT, "<u8").tobytes())
    with pytest.raises(PagingError, match="more than"):
        AddressSpace(memory, ROOT, 4).leaves()


def test_few_tables_that_are_entered_over_and_over_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "ENTRY_LIMIT", 1000)
    memory = FakeMemory(SIZE)
    for table in range(3):
        below = ROOT + (table + 1) * PAGE | PRESENT
        memory.put(ROOT + table * PAGE + 511 * 8, below.to_bytes(8, "little"))
    memory.put(ROOT + 3 * PAGE, np.full(512, 0x7000 | PRESENT, "<u8").tobytes())
    memory.put(ROOT + 2 * PAGE, np.full(3, ROOT + 3 * PAGE | PRESENT, "<u8").tobytes())
    with pytest.raises(PagingError, match="entries"):
        AddressSpace(memory, ROOT, 4).leaves()


def test_a_table_outside_ram_is_an_error_of_the_walk_and_no_mapping() -> None:
    memory = FakeMemory(SIZE)
    memory.word(ROOT + 511 * 8, 0x000F_FFFF_FFFF_F000 | PRESENT)
    space = AddressSpace(memory, ROOT, 4)
    assert space.translate(KERNEL) is None
    with pytest.raises(PagingError, match="not RAM"):
        space.leaves()


def test_a_second_walk_sees_what_changed() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    space = AddressSpace(memory, ROOT, 4)
    first = space.leaves()
    space.refresh()
    assert space.leaves() is first
    map_page(memory, KERNEL + PAGE, 0x43000)
    space.refresh()
    assert len(space.leaves().va) == 2


@pytest.mark.parametrize("walked", [False, True])
def test_spans_are_kept_only_while_no_table_changes(walked: bool) -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    map_page(memory, KERNEL + PAGE, 0x43000)
    space = AddressSpace(memory, ROOT, 4)
    if walked:
        space.leaves()
    for physical in (0x44000, 0x45000, 0x43000):
        map_page(memory, KERNEL + PAGE, physical)
        space.refresh()
        joined = physical == 0x43000
        apart = ((KERNEL, 0x42000, PAGE), (KERNEL + PAGE, physical, PAGE))
        wanted = ((KERNEL, 0x42000, 2 * PAGE),) if joined else apart
        assert space.spans(KERNEL, 2 * PAGE) == wanted
        space.refresh()
        assert space.spans(KERNEL, 2 * PAGE) == wanted
        assert space.translate(KERNEL + PAGE) == physical


def test_after_a_walk_every_translation_goes_by_the_tables_that_it_read() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    space = AddressSpace(memory, ROOT, 4)
    space.leaves()
    map_page(memory, KERNEL, 0x43000)
    assert space.translate(KERNEL) == 0x42000
    assert space.spans(KERNEL, PAGE) == ((KERNEL, 0x42000, PAGE),)
    space.refresh()
    assert space.spans(KERNEL, PAGE) == ((KERNEL, 0x43000, PAGE),)
    assert space.executable().gpa.tolist() == [0x43000]


def test_spans_outlive_a_table_that_leaves_ram() -> None:
    memory = FakeMemory(SIZE)
    map_page(memory, KERNEL, 0x42000)
    space = AddressSpace(memory, ROOT, 4)
    space.leaves()
    memory.word(ROOT + 300 * 8, 0x000F_FFFF_FFFF_F000 | PRESENT)
    map_page(memory, KERNEL, 0x43000)
    space.refresh()
    assert space.spans(KERNEL, PAGE) == ((KERNEL, 0x43000, PAGE),)
    with pytest.raises(PagingError, match="not RAM"):
        space.leaves()


def test_what_is_kept_of_spans_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "KEPT_SPANS", 3)
    memory = FakeMemory(SIZE)
    for page in range(8):
        map_page(memory, KERNEL + page * PAGE, 0x80000 - page * PAGE)
    space = AddressSpace(memory, ROOT, 4)
    space.leaves()
    for pages in (1, 2, 8, 3, 1):
        assert len(space.spans(KERNEL, pages * PAGE)) == pages
        assert sum(map(len, space._spans.values())) <= 3


def test_canonical_addresses() -> None:
    assert canonical(KERNEL, 4)
    assert canonical(KERNEL, 5)
    assert not canonical(0xFF11_0000_0000_0000, 4)
    assert canonical(0xFF11_0000_0000_0000, 5)
    assert not canonical(1 << 64, 4)
    assert not canonical(-1, 4)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=64, max_size=4096), st.integers(0, (1 << 64) - 1), st.sampled_from([4, 5]))
def test_random_tables_give_a_result_or_a_typed_error(content: bytes, va: int, levels: int) -> None:
    memory = FakeMemory(SIZE, content * (SIZE // len(content)))
    space = AddressSpace(memory, ROOT, levels)
    physical = space.translate(va)
    assert physical is None or 0 <= physical < 1 << 52
    assert sum(length for _, _, length in space.spans(va & ~0xFFF, 3 * PAGE)) == 3 * PAGE
    with suppress(PagingError):
        assert len(space.leaves(504).va) <= paging.TABLE_LIMIT * 512
