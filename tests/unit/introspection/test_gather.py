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
