# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from nova_vmi_attest.introspection.checks.control import STATIC_CALLS


def legal(key: str, target: str) -> bool:
    return any(keys.fullmatch(key) and targets.fullmatch(target) for keys, targets in STATIC_CALLS)


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("cond_resched", "__cond_resched"),
        ("preempt_schedule_notrace", ""),
        ("irqentry_exit_cond_resched", ""),
        ("pv_sched_clock", "kvm_sched_clock_read"),
        ("x86_pmu_handle_irq", "intel_pmu_handle_irq"),
        ("tp_func_sched_switch", "trace_event_raw_event_sched_switch"),
    ],
)
def test_what_the_kernel_installs_is_legal(key: str, target: str) -> None:
    assert legal(key, target)


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("cond_resched", "commit_creds"),
        ("pv_sched_clock", ""),
        ("pv_sched_clock", "native_sched_clock_evil"),
        ("tp_func_sched_switch", ""),
        ("tp_func_sched_switch", "set_memory_x"),
        ("unknown_call", "__cond_resched"),
    ],
)
def test_anything_else_is_not(key: str, target: str) -> None:
    assert not legal(key, target)
