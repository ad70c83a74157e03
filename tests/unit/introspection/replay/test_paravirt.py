# SPDX-License-Identifier: Apache-2.0
"""Calls through pv_ops."""

from __future__ import annotations

import struct

import pytest

from nova_vmi_attest.introspection.replay import paravirt
from nova_vmi_attest.introspection.replay.instructions import nops
from nova_vmi_attest.introspection.replay.patching import Mechanism, Patching, ReplayError

from .support import BASE, DATA, branch, patching, result, u64

SYMBOLS = {"pv_ops": DATA, "_paravirt_nop": BASE + 0x80, "paravirt_BUG": BASE + 0x90}
IMAGE = b"\xff\x14\x25\x00\x00\x00\x00" + bytes(0x100)


def site(address: int = BASE, slot: int = 0, length: int = 7) -> bytes:
    return struct.pack("<QBB6x", address, slot, length)


def bench(table: bytes, *functions: int) -> Patching:
    slots = b"".join(u64(function) for function in functions)
    return patching(
        IMAGE, {".parainstructions": table}, symbols=SYMBOLS, memory={DATA: slots}, slots=len(functions)
    )


def test_a_function_is_called_directly_and_the_rest_is_nops() -> None:
    made = bench(site(), BASE + 0x40)
    assert result(made, paravirt.apply)[:7] == branch(0xE8, BASE, BASE + 0x40) + nops(2)
    assert set(made.owner[:7]) == {Mechanism.PARAVIRT}
    assert made.kernel.inputs().pv_ops == (BASE + 0x40,)


def test_a_slot_that_does_nothing_becomes_nops() -> None:
    assert result(bench(site(), BASE + 0x80), paravirt.apply)[:7] == nops(7)


def test_an_empty_slot_calls_the_trap() -> None:
    assert result(bench(site(), 0), paravirt.apply)[:5] == branch(0xE8, BASE, BASE + 0x90)


def test_each_slot_is_its_own_word() -> None:
    made = result(bench(site(slot=1) + site(BASE + 16), BASE + 0x40, BASE + 0x48), paravirt.apply)
    assert made[:5] == branch(0xE8, BASE, BASE + 0x48)
    assert made[16:21] == branch(0xE8, BASE + 16, BASE + 0x40)


def test_a_function_out_of_reach_is_recorded_and_leaves_the_site() -> None:
    made = bench(site(), 1 << 40)
    assert result(made, paravirt.apply) == IMAGE
    (invalid,) = made.kernel.inputs().invalid
    assert (invalid.kind, invalid.address, invalid.value) == ("pv_ops", DATA, 1 << 40)


def test_an_unreadable_table_of_functions_is_recorded() -> None:
    made = patching(IMAGE, {".parainstructions": site()}, symbols=SYMBOLS)
    assert result(made, paravirt.apply) == IMAGE
    assert made.kernel.inputs().invalid[0].value is None


@pytest.mark.parametrize(
    "table", [site(slot=9), site(BASE - 1), site(BASE + len(IMAGE) - 6), site(address=0), site(length=4)]
)
def test_a_malformed_table_is_a_typed_error(table: bytes) -> None:
    with pytest.raises(ReplayError):
        paravirt.apply(bench(table, BASE + 0x40))


def test_no_bytes_are_written_for_a_site_of_no_length() -> None:
    assert result(bench(site(length=0), BASE + 0x80), paravirt.apply) == IMAGE
