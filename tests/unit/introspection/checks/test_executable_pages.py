# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from nova_vmi_attest.introspection.checks import executable_pages
from nova_vmi_attest.introspection.checks.executable_pages import _covered, _not_filler, _runs
from nova_vmi_attest.introspection.paging import PAGE, Leaves
from nova_vmi_attest.introspection.structures import Extent

from .. import fakes

BASE = 0xFFFFFFFFC0000000


def pages(*places: int, size: int = PAGE) -> Leaves:
    va = np.array([BASE + place for place in places], np.uint64)
    zero = np.zeros(len(places), np.uint64)
    return Leaves(va, zero, zero + np.uint64(size), zero)


def test_only_what_lies_wholly_inside_is_explained() -> None:
    found = pages(0, PAGE, 2 * PAGE, 8 * PAGE)
    assert _covered(found, [Extent("text", BASE + PAGE, 2 * PAGE)]).tolist() == [False, True, True, False]
    assert _covered(pages(0, size=0x200000), [Extent("text", BASE, PAGE)]).tolist() == [False]
    assert not _covered(found, []).any()


def test_neighbouring_pages_are_one_run() -> None:
    assert _runs(pages(0, PAGE, 4 * PAGE)) == [(BASE, 2 * PAGE), (BASE + 4 * PAGE, PAGE)]


@pytest.mark.parametrize("shift", [0, 4])
def test_words_that_are_not_filler_are_found_across_pages(
    shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable_pages, "PACK_SIZE", 3 * PAGE)
    memory = fakes.FakeMemory(1 << 20)
    for page in range(4):
        fakes.map_page(memory, BASE + page * PAGE, 0x80000 - page * 2 * PAGE)
        memory.put(0x80000 - page * 2 * PAGE, b"\xcc" * PAGE)
    memory.put(0x80000 + 16 + shift, b"\x90")
    memory.put(0x80000 - 4 * PAGE + 7 + shift, b"\x90")
    guest = fakes.guest(memory, fakes.kernel({}))
    assert _not_filler(guest, BASE + shift).tolist() == [2, 2 * PAGE // 8]
