# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from nova_vmi_attest.evidence.measurement import CheckResult, Outcome
from nova_vmi_attest.introspection.checks import processes
from nova_vmi_attest.introspection.checks.base import CheckContext, PassFacts
from nova_vmi_attest.introspection.checks.processes import ATTEMPTS, Processes
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.structures import Task

IDLE = 1


class FakeStructures:
    """Views that a test sets; ``turns`` changes them from reading to reading."""

    def __init__(self) -> None:
        self.listed = [IDLE, 2, 3]
        self.numbered = {2, 3}
        self.related = {IDLE, 2, 3}
        self.running = {IDLE}
        self.births: dict[int, list[int]] = {}
        self.faults = 0

    def tasks(self) -> list[int]:
        if self.faults:
            self.faults -= 1
            raise GuestFault(0x10)
        return list(self.listed)

    def leaders(self) -> set[int]:
        return set(self.numbered)

    def relatives(self) -> set[int]:
        return set(self.related)

    def runnable(self) -> set[int]:
        return set(self.running)

    def born(self, task: int) -> int:
        births = self.births.get(task, [7])
        return births.pop(0) if len(births) > 1 else births[0]

    def task(self, address: int) -> Task:
        return Task(address, f"task{address}", 0, "/bin/true")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SETTLE", 0.0)


def run(structures: FakeStructures) -> tuple[CheckResult, PassFacts]:
    facts = PassFacts()
    guest = SimpleNamespace(refresh=lambda: None)
    context = cast(CheckContext, SimpleNamespace(structures=structures, facts=facts, guest=guest))
    return Processes().run(context), facts


def test_views_that_agree_pass_and_give_the_inventory() -> None:
    result, facts = run(FakeStructures())
    assert result.outcome is Outcome.PASSED
    assert [process.pid for process in facts.processes] == [2, 3]


@pytest.mark.parametrize("view", ["numbered", "related", "running"])
def test_whoever_is_on_another_view_only_is_hidden_and_in_the_inventory(view: str) -> None:
    structures = FakeStructures()
    getattr(structures, view).add(9)
    result, facts = run(structures)
    assert result.outcome is Outcome.FAILED
    assert [(one.symbol, "task list" in one.detail) for one in result.findings] == [("process 9", True)]
    assert 9 in [process.pid for process in facts.processes]


def test_a_process_without_a_number_is_hidden() -> None:
    structures = FakeStructures()
    structures.numbered.discard(3)
    result, _ = run(structures)
    assert [(one.symbol, "process numbers" in one.detail) for one in result.findings] == [("process 3", True)]


def test_another_process_in_the_same_place_is_not_the_same() -> None:
    structures = FakeStructures()
    structures.numbered.add(9)
    structures.births[9] = list(range(ATTEMPTS))
    assert run(structures)[0].outcome is Outcome.PASSED


def test_a_list_that_led_astray_once_is_read_again() -> None:
    structures = FakeStructures()
    structures.faults = 2
    assert run(structures)[0].outcome is Outcome.PASSED


def test_a_list_that_always_leads_astray_is_incomplete() -> None:
    structures = FakeStructures()
    structures.faults = ATTEMPTS
    result, _ = run(structures)
    assert result.outcome is Outcome.INCOMPLETE
    assert "0x10" in result.detail
