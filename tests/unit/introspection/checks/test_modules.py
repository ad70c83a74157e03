# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from nova_vmi_attest.introspection.checks.base import CheckContext
from nova_vmi_attest.introspection.checks.modules import Modules
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.structures import LiveModule

from .. import fakes

ADDRESS = 0xFFFFFFFFC0010F00
SIZE = 0x200  # across two pages


def test_a_description_is_taken_apart_again_where_any_byte_of_it_changed() -> None:
    memory = fakes.FakeMemory(1 << 20)
    for page, physical in ((0, 0x80000), (0x1000, 0x90000)):
        fakes.map_page(memory, (ADDRESS & ~0xFFF) + page, physical)
    guest = fakes.guest(memory, fakes.kernel({}, {("module", "sizeof"): SIZE}))
    taken: list[int] = []

    def module(address: int) -> LiveModule:
        taken.append(address)
        return LiveModule(str(guest.read(address + SIZE - 1, 1)), address, 0, ())

    state = SimpleNamespace(descriptions={})
    context = cast(
        CheckContext, SimpleNamespace(guest=guest, state=state, structures=SimpleNamespace(module=module))
    )
    first = Modules()._described(context, ADDRESS)
    assert Modules()._described(context, ADDRESS) is first
    assert len(taken) == 1
    memory.put(0x90000 + 0xFF, b"x")
    guest.refresh()
    assert Modules()._described(context, ADDRESS).name == "b'x'"
    assert len(taken) == 2
    memory.put(0x80F00, b"y")
    guest.refresh()
    assert Modules()._described(context, ADDRESS).name == "b'x'"
    assert len(taken) == 3
    with pytest.raises(GuestFault):
        Modules()._described(context, ADDRESS + 0x2000)
