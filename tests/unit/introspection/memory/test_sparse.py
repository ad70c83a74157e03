# SPDX-License-Identifier: Apache-2.0
"""What exists of a sparse file is told exactly, and asking changes nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from nova_vmi_attest.introspection.memory.base import Bytes
from nova_vmi_attest.introspection.memory.sparse import (
    data_extents,
    has_no_hole,
    is_resident,
    tells_residency,
)

MIB = 1 << 20
SIZE = 16 * MIB
PAGE = 4096


@pytest.fixture
def sparse() -> Iterator[int]:
    """A memfd of 16 MiB, of which two pages at 4 MiB and one at 12 MiB hold data."""
    descriptor = os.memfd_create("sparse")
    os.ftruncate(descriptor, SIZE)
    os.pwrite(descriptor, b"a" * 2 * PAGE, 4 * MIB)
    os.pwrite(descriptor, b"b", 12 * MIB)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def mapped(sparse: int) -> Bytes:
    return np.frombuffer(mmap.mmap(sparse, SIZE, mmap.MAP_SHARED, mmap.PROT_READ), dtype=np.uint8)


def test_runs_of_data(sparse: int) -> None:
    assert data_extents(sparse, SIZE) == [(4 * MIB, 4 * MIB + 2 * PAGE), (12 * MIB, 12 * MIB + PAGE)]
    assert data_extents(sparse, 5 * MIB) == [(4 * MIB, 4 * MIB + 2 * PAGE)]
    assert data_extents(sparse, 4 * MIB) == []


def test_more_runs_than_are_told_apart(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.introspection.memory.sparse.MAX_EXTENTS", 1)
    assert data_extents(sparse, SIZE) == [(4 * MIB, 4 * MIB + 2 * PAGE), (12 * MIB, SIZE)]


@pytest.mark.parametrize(
    ("start", "length", "exists"),
    [
        (4 * MIB, 2 * PAGE, True),
        (4 * MIB + PAGE - 1, 2, True),
        (4 * MIB, 2 * PAGE + 1, False),
        (4 * MIB - 1, 1, False),
        (12 * MIB, 1, True),
        (0, PAGE, False),
        (SIZE - 1, 1, False),
    ],
)
def test_holes_are_seen_both_ways(sparse: int, mapped: Bytes, start: int, length: int, exists: bool) -> None:
    before = os.fstat(sparse).st_blocks
    assert has_no_hole(sparse, start, length) is exists
    assert is_resident(mapped, start, length) is exists
    assert os.fstat(sparse).st_blocks == before


def test_a_page_that_was_cut_off_is_no_more_resident(sparse: int, mapped: Bytes) -> None:
    assert mapped[12 * MIB] == ord("b")
    assert is_resident(mapped, 12 * MIB, 1)
    os.ftruncate(sparse, 8 * MIB)
    assert not is_resident(mapped, 12 * MIB, 1)
    assert not has_no_hole(sparse, 12 * MIB, 1)
    assert not has_no_hole(sparse, 8 * MIB - PAGE, 2 * PAGE)


def test_what_the_kernel_does_not_tell_is_not_believed(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tells_residency(sparse)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert not tells_residency(sparse)
