# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.gather import APART, Gather
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.paging import PAGE

from . import fakes
from .fakes import KERNEL, FakeMemory

NEAR, FAR = KERNEL + 0x10000, KERNEL + 0x10000 + 4 * APART


@pytest.mark.parametrize("width", [4, 8])
def test_values_come_in_the_order_of_their_addresses(width: int) -> None:
    memory = FakeMemory(1 << 20)
    fakes.map_page(memory, NEAR, 0x80000)
    fakes.map_page(memory, FAR, 0x90000)
    wanted = [FAR + 8, NEAR + 64, NEAR, FAR]
    for number, physical in enumerate((0x90008, 0x80040, 0x80000, 0x90000)):
        memory.word(physical, number + 1)
    guest = fakes.guest(memory, fakes.kernel({}))
    assert Gather(wanted, width).read(guest).tolist() == [1, 2, 3, 4]


def test_nothing_to_gather_reads_nothing() -> None:
    memory = FakeMemory(1 << 20)
    assert Gather((), 8).read(fakes.guest(memory, fakes.kernel({}))).tolist() == []
    assert memory.bytes_read == 0


def test_what_is_not_mapped_is_a_fault() -> None:
    memory = FakeMemory(1 << 20)
    fakes.map_page(memory, NEAR, 0x80000)
    with pytest.raises(GuestFault):
        Gather([NEAR, NEAR + PAGE], 8).read(fakes.guest(memory, fakes.kernel({})))


@pytest.mark.parametrize("width", [4, 8])
def test_a_hole_between_values_does_not_matter(width: int) -> None:
    memory = FakeMemory(1 << 20)
    fakes.map_page(memory, NEAR, 0x80000)
    fakes.map_page(memory, NEAR + 2 * PAGE, 0x90000)
    memory.word(0x80010, 1)
    memory.word(0x90000, 2)
    wanted = [NEAR + 2 * PAGE, NEAR + 16]
    assert Gather(wanted, width).read(fakes.guest(memory, fakes.kernel({}))).tolist() == [2, 1]


def test_values_need_not_be_aligned() -> None:
    memory = FakeMemory(1 << 20)
    fakes.map_page(memory, NEAR, 0x80000)
    fakes.map_page(memory, NEAR + PAGE, 0xA0000)
    memory.put(0x80003, bytes(range(1, 9)))
    memory.put(0x80000 + PAGE - 2, b"ab")
    memory.put(0xA0000, b"cd")
    found = Gather([NEAR + 3, NEAR + PAGE - 2], 4).read(fakes.guest(memory, fakes.kernel({})))
    assert found.tolist() == [0x04030201, int.from_bytes(b"abcd", "little")]
