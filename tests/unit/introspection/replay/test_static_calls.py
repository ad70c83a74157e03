# SPDX-License-Identifier: Apache-2.0
"""Static call sites and trampolines in every state of their key."""

from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.replay import static_calls
from nova_vmi_attest.introspection.replay.features import RETHUNK
from nova_vmi_attest.introspection.replay.inputs import TwoForms
from nova_vmi_attest.introspection.replay.instructions import NOP5, RET
from nova_vmi_attest.introspection.replay.patching import Mechanism, Patching, ReplayError

from .support import BASE, DATA, TABLES, branch, patching, result, s32, u64

TAIL, INIT = 1, 2
ZERO, THUNK, FUNCTION, RETURN = BASE + 0x1000, BASE + 0x1040, BASE + 0x1080, BASE + 0x10C0
SYMBOLS = {
    "__static_call_return0": ZERO,
    "__static_call_return": RETURN,
    "x86_return_thunk": DATA + 0x100,
    "__static_call_text_start": BASE + 0x40,
    "__static_call_text_end": BASE + 0x48,
    "__SCT__named": BASE + 0x40,
    "__SCK__named": DATA + 8,
}
IMAGE = branch(0xE8, BASE, BASE + 0x40) + bytes(0x60)


def entry(flags: int = 0, site: int = BASE, key: int = DATA) -> bytes:
    return s32(site - TABLES) + s32(key + flags - TABLES - 4)


def bench(table: bytes, function: int, *features: int, live: bytes = b"", image: bytes = IMAGE) -> Patching:
    memory = {DATA: u64(function) * 2, DATA + 0x100: u64(THUNK)}
    if live:
        memory[BASE] = live
    return patching(image, {".static_call_sites": table}, symbols=SYMBOLS, memory=memory, features=features)


@pytest.mark.parametrize(
    ("flags", "function", "patched"),
    [
        (0, FUNCTION, branch(0xE8, BASE, FUNCTION)),
        (INIT, FUNCTION, branch(0xE8, BASE, FUNCTION)),
        (TAIL, FUNCTION, branch(0xE9, BASE, FUNCTION)),
        (0, 0, NOP5),
        (TAIL, 0, RET),
        (0, ZERO, b"\x2e\x2e\x2e\x31\xc0"),
        (TAIL, ZERO, branch(0xE9, BASE, ZERO)),
    ],
)
def test_a_site_follows_its_key(flags: int, function: int, patched: bytes) -> None:
    made = bench(entry(flags), function)
    assert result(made, static_calls.apply)[:5] == patched
    assert made.kernel.inputs().static_calls == {DATA: function}


def test_a_key_may_be_named_by_its_trampoline() -> None:
    made = bench(entry(key=BASE + 0x40), FUNCTION)
    assert result(made, static_calls.apply)[:5] == branch(0xE8, BASE, FUNCTION)
    assert set(made.kernel.inputs().static_calls) == {DATA + 8}


@pytest.mark.parametrize("live", [RET, branch(0xE9, BASE, THUNK)])
def test_of_two_legal_returns_the_live_one_is_taken(live: bytes) -> None:
    made = bench(entry(TAIL), 0, RETHUNK, live=live)
    assert result(made, static_calls.apply)[:5] == live
    assert made.kernel.inputs().two_forms == (TwoForms(BASE, live),)


@pytest.mark.parametrize("live", [branch(0xE9, BASE, FUNCTION), bytes(5), b""])
def test_any_other_return_is_not_explained(live: bytes) -> None:
    made = bench(entry(TAIL), 0, RETHUNK, live=live)
    assert result(made, static_calls.apply)[:5] == RET
    assert made.kernel.inputs().two_forms == ()


def test_without_thunks_a_jump_to_one_is_not_explained() -> None:
    made = bench(entry(TAIL), 0, live=branch(0xE9, BASE, THUNK))
    assert result(made, static_calls.apply)[:5] == RET


@pytest.mark.parametrize(
    ("function", "features", "target"),
    [(FUNCTION, (), FUNCTION), (0, (), RETURN), (0, (RETHUNK,), THUNK)],
)
def test_a_conditional_tail_call_keeps_its_condition(
    function: int, features: tuple[int, ...], target: int
) -> None:
    image = b"\x0f\x84" + s32(0x100) + bytes(0x60)
    made = result(bench(entry(TAIL), function, *features, image=image), static_calls.apply)
    assert made[:6] == b"\x0f\x84" + s32(target - BASE - 6)


@pytest.mark.parametrize("flags", [0, TAIL])
@pytest.mark.parametrize("image", [IMAGE, b"\x0f\x84" + s32(0x100) + bytes(0x60)])
def test_a_function_out_of_reach_is_recorded_and_leaves_the_site(flags: int, image: bytes) -> None:
    made = bench(entry(flags), 0x4141414141414141, image=image)
    assert result(made, static_calls.apply) == image
    (invalid,) = made.kernel.inputs().invalid
    assert (invalid.kind, invalid.address, invalid.value) == ("static_call", DATA, 0x4141414141414141)


def test_an_unreadable_key_is_recorded() -> None:
    made = bench(entry(key=DATA + 0x8000), FUNCTION)
    assert result(made, static_calls.apply) == IMAGE
    assert made.kernel.inputs().invalid[0].value is None


def test_a_trampoline_is_a_tail_call_of_its_own() -> None:
    made = patching(
        IMAGE,
        {},
        symbols=SYMBOLS,
        memory={DATA + 8: u64(FUNCTION)},
        trampolines=[(BASE + 0x40, DATA + 8)],
    )
    assert result(made, static_calls.apply)[0x40:0x45] == branch(0xE9, BASE + 0x40, FUNCTION)
    assert set(made.owner[0x40:0x45]) <= {Mechanism.NONE, Mechanism.TRAMPOLINE}


def test_a_site_outside_the_image_is_not_written() -> None:
    assert result(bench(entry(site=BASE - 0x100), FUNCTION), static_calls.apply) == IMAGE


def test_a_site_that_ends_outside_is_a_typed_error() -> None:
    with pytest.raises(ReplayError):
        static_calls.apply(bench(entry(site=BASE + len(IMAGE) - 4), FUNCTION))
