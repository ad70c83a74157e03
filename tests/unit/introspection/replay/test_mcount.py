# SPDX-License-Identifier: Apache-2.0
"""Function entries."""

from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.replay import mcount
from nova_vmi_attest.introspection.replay.instructions import NOP5
from nova_vmi_attest.introspection.replay.patching import Mechanism, ReplayError

from .support import BASE, branch, patching, result, u64

IMAGE = branch(0xE8, BASE, BASE + 0x100) + NOP5 + b"\x55" * 5


def test_calls_become_nops_and_the_rest_stays() -> None:
    made = patching(IMAGE, {"__mcount_loc": u64(BASE) + u64(BASE + 5) + u64(BASE + 10) + u64(0)})
    assert result(made, mcount.apply) == NOP5 * 2 + b"\x55" * 5
    assert made.owner.tolist() == [Mechanism.MCOUNT] * 5 + [0] * 10


@pytest.mark.parametrize("address", [BASE - 1, BASE + 11, 1, 1 << 63])
def test_an_entry_outside_the_image_is_a_typed_error(address: int) -> None:
    with pytest.raises(ReplayError):
        mcount.apply(patching(IMAGE, {"__mcount_loc": u64(address)}))
