# SPDX-License-Identifier: Apache-2.0
"""Return sites under each kind of return thunk."""

from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.replay import returns
from nova_vmi_attest.introspection.replay.features import RETHUNK
from nova_vmi_attest.introspection.replay.instructions import RET
from nova_vmi_attest.introspection.replay.patching import Mechanism, Patching, ReplayError

from .support import BASE, DATA, branch, patching, result, self_relative, u64

DEFAULT, OTHER, GUARDED = BASE + 0x1000, BASE + 0x1040, BASE + 0x1080
SYMBOLS = {"x86_return_thunk": DATA, "__x86_return_thunk": DEFAULT, "its_return_thunk": GUARDED}
IMAGE = branch(0xE9, BASE, DEFAULT).ljust(0x20, b"\x90") + branch(0xE9, BASE + 0x20, DEFAULT) + bytes(8)


def bench(thunk: int, *features: int, sites: tuple[int, ...] = (BASE, BASE + 0x20)) -> Patching:
    return patching(
        IMAGE,
        {".return_sites": self_relative(*sites)},
        symbols=SYMBOLS,
        memory={DATA: u64(thunk)},
        features=features,
    )


def test_without_thunks_returns_are_plain() -> None:
    made = bench(OTHER)
    assert result(made, returns.apply) == RET.ljust(0x20, b"\x90") + RET + bytes(8)
    assert set(made.owner[:5]) == {Mechanism.RETURN}


def test_the_default_thunk_changes_nothing() -> None:
    made = bench(DEFAULT, RETHUNK)
    assert result(made, returns.apply) == IMAGE
    assert not made.owner.any()


def test_another_thunk_is_jumped_to() -> None:
    made = result(bench(OTHER, RETHUNK), returns.apply)
    assert made[:5] == branch(0xE9, BASE, OTHER)
    assert made[0x20:0x25] == branch(0xE9, BASE + 0x20, OTHER)


def test_the_upper_half_of_a_line_needs_no_guard() -> None:
    made = result(bench(GUARDED, RETHUNK), returns.apply)
    assert made[:5] == branch(0xE9, BASE, GUARDED)
    assert made[0x20:0x25] == RET


def test_a_site_that_is_no_jump_is_left() -> None:
    assert result(bench(OTHER, RETHUNK, sites=(BASE + 5,)), returns.apply) == IMAGE


def test_a_thunk_out_of_reach_is_recorded() -> None:
    made = bench(1 << 40, RETHUNK)
    assert result(made, returns.apply) == IMAGE
    assert [(one.kind, one.value) for one in made.kernel.inputs().invalid] == [("return_thunk", 1 << 40)]


def test_an_unreadable_thunk_is_recorded_once() -> None:
    made = patching(
        IMAGE, {".return_sites": self_relative(BASE)}, symbols=SYMBOLS, memory={}, features=(RETHUNK,)
    )
    assert result(made, returns.apply) == IMAGE
    assert [one.kind for one in made.kernel.inputs().invalid] == ["return_thunk"]
    assert made.kernel.inputs().return_thunk is None


def test_a_site_outside_the_image_is_a_typed_error() -> None:
    with pytest.raises(ReplayError):
        returns.apply(bench(OTHER, RETHUNK, sites=(BASE + len(IMAGE) - 4,)))
