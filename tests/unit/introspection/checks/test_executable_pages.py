# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from nova_vmi_attest.introspection.checks import executable_pages
from nova_vmi_attest.introspection.checks.base import CheckContext, Findings
from nova_vmi_attest.introspection.checks.executable_pages import (
    ExecutablePages,
    _covered,
    _not_filler,
    _runs,
)
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
def test_words_that_are_not_filler_are_found_across_pages(shift: int) -> None:
    memory = fakes.FakeMemory(1 << 20)
    for page in range(4):
        fakes.map_page(memory, BASE + page * PAGE, 0x80000 - page * 2 * PAGE)
        memory.put(0x80000 - page * 2 * PAGE, b"\xcc" * PAGE)
    memory.put(0x80000 + 16 + shift, b"\x90")
    memory.put(0x80000 - 4 * PAGE + 7 + shift, b"\x90")
    guest = fakes.guest(memory, fakes.kernel({}))
    assert _not_filler(guest, BASE + shift, 3 * PAGE).tolist() == [2, 2 * PAGE // 8]


def test_a_pack_is_looked_at_over_the_pages_of_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable_pages, "PACK_SIZE", PAGE)
    memory = fakes.FakeMemory(1 << 20)
    # The symbol's page, the pack's description and then its two pages, one for each node.
    for page, physical in enumerate((0x80000, 0x90000, 0xA0000)):
        fakes.map_page(memory, BASE + page * PAGE, physical)
        memory.put(physical, (b"\0" if page == 0 else b"\xcc") * PAGE)
    head, pack = BASE + 0x100, BASE + 0x200
    memory.word(0x80100, pack)
    memory.word(0x80200, head)
    memory.word(0x80210, BASE + PAGE)
    memory.word(0x80000, 2)
    memory.put(0xA0000 + 64, b"\x90")
    offsets = {
        ("bpf_prog_pack", "list"): 0,
        ("bpf_prog_pack", "ptr"): 0x10,
        ("bpf_prog_pack", "bitmap"): 0x18,
    }
    guest = fakes.guest(memory, fakes.kernel({"pack_list": head, "nr_node_ids": BASE}, offsets))
    structures = SimpleNamespace(offset=guest.offset)
    context = cast(CheckContext, SimpleNamespace(guest=guest, structures=structures))
    findings = Findings("executable_pages")
    extents = ExecutablePages()._packs(context, findings)
    assert extents == [Extent("bpf", BASE + PAGE, 2 * PAGE)]
    (finding,) = findings.result().findings
    assert finding.offset == PAGE + 64
