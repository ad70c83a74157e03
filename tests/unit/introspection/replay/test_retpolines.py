# SPDX-License-Identifier: Apache-2.0
"""Calls of the indirect thunks, with and without retpolines."""

from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.replay import retpolines
from nova_vmi_attest.introspection.replay.features import RETPOLINE, RETPOLINE_LFENCE
from nova_vmi_attest.introspection.replay.patching import Patching, ReplayError
from nova_vmi_attest.introspection.replay.retpolines import REGISTERS, indirect_branch

from .support import BASE, branch, patching, result, s32, self_relative

THUNKS = {f"__x86_indirect_thunk_{name}": BASE + 0x1000 + 32 * i for i, name in enumerate(REGISTERS)}


def bench(code: bytes, *features: int, site: int = BASE) -> Patching:
    return patching(
        code + bytes(8), {".retpoline_sites": self_relative(site)}, symbols=THUNKS, features=features
    )


def thunk(register: int) -> int:
    return BASE + 0x1000 + 32 * register


@pytest.mark.parametrize(
    ("code", "patched"),
    [
        (branch(0xE8, BASE, thunk(0)), "ffd0 0f1f00"),  # call *%rax
        (branch(0xE9, BASE, thunk(2)), "ffe2 cc 6690"),  # jmp *%rdx
        (b"\x2e" + branch(0xE8, BASE + 1, thunk(11)), "41ffd3 0f1f00"),  # call *%r11
        (b"\x2e" + branch(0xE9, BASE + 1, thunk(8)), "41ffe0 cc 6690"),  # jmp *%r8
        (b"\x0f\x84" + s32(thunk(1) - BASE - 6), "7504 ffe1 cc 90"),  # jne over jmp *%rcx
        (b"\x0f\x85" + s32(thunk(9) - BASE - 6), "7404 41ffe1 cc"),  # je over jmp *%r9
    ],
)
def test_without_retpolines_the_branch_is_plain(code: bytes, patched: str) -> None:
    assert result(bench(code), retpolines.apply)[: len(code)] == bytes.fromhex(patched)


@pytest.mark.parametrize(
    ("code", "patched"),
    [
        (branch(0xE8, BASE, thunk(0)), "0faee8 ffd0"),
        (branch(0xE9, BASE, thunk(0)), "0faee8 ffe0"),
        (b"\x2e" + branch(0xE8, BASE + 1, thunk(11)), "0faee8 41ffd3"),
    ],
)
def test_with_lfence_the_branch_waits(code: bytes, patched: str) -> None:
    made = bench(code, RETPOLINE, RETPOLINE_LFENCE)
    assert result(made, retpolines.apply)[: len(code)] == bytes.fromhex(patched)


def test_a_form_that_does_not_fit_leaves_the_site() -> None:
    code = b"\x0f\x84" + s32(thunk(1) - BASE - 6)
    assert result(bench(code, RETPOLINE_LFENCE), retpolines.apply)[: len(code)] == code
    assert indirect_branch(0x0F, 4, 6, 1, lfence=True) is None


def test_with_retpolines_nothing_changes() -> None:
    code = branch(0xE8, BASE, thunk(0))
    assert result(bench(code, RETPOLINE), retpolines.apply)[:5] == code


def test_a_site_that_leads_elsewhere_is_left() -> None:
    code = branch(0xE8, BASE, thunk(0) + 1)
    assert result(bench(code), retpolines.apply)[:5] == code


@pytest.mark.parametrize("site", [BASE - 1, BASE + 9, BASE + 0x10000])
def test_a_site_outside_the_image_is_a_typed_error(site: int) -> None:
    with pytest.raises(ReplayError):
        retpolines.apply(bench(branch(0xE8, BASE, thunk(0)), site=site))
