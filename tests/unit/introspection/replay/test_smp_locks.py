# SPDX-License-Identifier: Apache-2.0
"""Lock prefixes on one CPU and on several."""

from __future__ import annotations

from nova_vmi_attest.introspection.replay import smp_locks
from nova_vmi_attest.introspection.replay.inputs import SmpState, signed
from nova_vmi_attest.introspection.replay.patching import Patching, Region

from .support import BASE, DATA, patching, result, self_relative

IMAGE = b"\xf0\x01\xf0\x02\x55\x03"
COUNTS = {"__num_online_cpus": DATA, "nr_cpu_ids": DATA + 4}


def bench(online: int, possible: int, flag: int | None = None) -> Patching:
    counts = online.to_bytes(4, "little") + possible.to_bytes(4, "little") + bytes([flag or 0])
    symbols = COUNTS if flag is None else {**COUNTS, "uniproc_patched": DATA + 8}
    text = Region("text", signed(BASE), 2, 0)
    rest = Region("init", signed(BASE + 2), 4, 2, lockable=False)
    return patching(
        IMAGE,
        {".smp_locks": self_relative(BASE, BASE + 2, BASE + 4, BASE - 100)},
        symbols=symbols,
        memory={DATA: counts},
        regions=[text, rest],
    )


def test_on_one_cpu_prefixes_in_text_lose_their_effect() -> None:
    made = bench(1, 1)
    assert result(made, smp_locks.apply) == b"\x3e\x01" + IMAGE[2:]
    assert made.kernel.inputs().smp == SmpState(True, 1, 1)


def test_on_two_cpus_nothing_changes() -> None:
    assert result(bench(2, 2), smp_locks.apply) == IMAGE


def test_the_flag_of_the_kernel_counts_more_than_the_counts() -> None:
    assert result(bench(1, 4, flag=1), smp_locks.apply)[0] == 0x3E
    assert result(bench(1, 1, flag=0), smp_locks.apply) == IMAGE


def test_unreadable_counts_are_recorded_and_change_nothing() -> None:
    made = patching(IMAGE, {".smp_locks": self_relative(BASE)}, symbols=COUNTS)
    assert result(made, smp_locks.apply) == IMAGE
    assert {one.kind for one in made.kernel.inputs().invalid} == {"smp"}
