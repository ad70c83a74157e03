# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import Outcome, Status, Unmeasured
from nova_vmi_attest.introspection import measure
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.locate import Located
from nova_vmi_attest.introspection.measure import CheckError, Measurer, in_order, installed_checks, passed
from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.kernel.reference import Reference

from . import fakes
from .fakes import KERNEL, FakeMemory

GUEST = uuid.UUID(int=1)
BANNER = b"Linux version 6.66 (nobody) #1\n"


class Provider:
    def __init__(self, *references: Reference) -> None:
        self.references = references
        self.asked: list[bytes] = []

    def candidates(self) -> Sequence[Reference]:
        return self.references

    def missing(self, banner: bytes) -> None:
        self.asked.append(banner)


class Named(Check):
    def __init__(self, name: str, *needs: str, finds: str = "") -> None:
        self.name, self.needs, self.finds = name, needs, finds  # type: ignore[misc]

    def examine(self, context: CheckContext, findings: Findings) -> None:
        if self.finds:
            findings.add(self.finds, "odd")


class Failing(FakeMemory):
    def __init__(self, error: AttestError) -> None:
        super().__init__(1 << 20)
        self.error = error

    def begin_pass(self) -> None:
        raise self.error


def measurer(provider: Provider | None = None, *checks: Check, now: Sequence[float] = (0.0,) * 9) -> Measurer:
    times = iter(now)
    return Measurer(provider or Provider(), checks, lambda: next(times))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GuestGone("gone"), Unmeasured.GONE),
        (ReaderError("broken"), Unmeasured.UNREADABLE),
        (EncryptedMemory("sealed"), Unmeasured.ENCRYPTED),
        (UnsupportedLayout("odd"), Unmeasured.UNSUPPORTED),
    ],
)
def test_a_reader_that_fails_is_a_reason(error: AttestError, reason: Unmeasured) -> None:
    measurement = measurer().measure(GUEST, Failing(error), "fake")
    assert measurement.integrity.status is Status.UNMEASURED
    assert measurement.integrity.reason is reason
    assert measurement.integrity.detail == error.message
    assert not passed(measurement)


def test_empty_and_random_memory_hold_no_kernel() -> None:
    noise = random.Random(7).randbytes(4 << 20)
    for content in (b"", noise):
        measurement = measurer().measure(GUEST, FakeMemory(4 << 20, content), "fake")
        assert measurement.integrity.reason is Unmeasured.NO_KERNEL
        assert measurement.observation.reader == "fake"
        assert measurement.observation.bytes_read >= 4 << 20


def test_an_unknown_kernel_is_asked_for_and_searched_for_seldom() -> None:
    memory, provider = FakeMemory(4 << 20), Provider()
    memory.put(0x3000, BANNER + b"\0")
    subject = measurer(provider, now=(0.0, 1.0, measure.SEARCH_FIRST + 1))
    reads = []
    for _ in range(3):
        measurement = subject.measure(GUEST, memory, "fake")
        assert measurement.integrity.reason is Unmeasured.UNKNOWN_KERNEL
        assert measurement.integrity.detail == BANNER.decode().rstrip()
        reads.append(measurement.observation.bytes_read)
    assert provider.asked == [BANNER] * 3
    assert reads[1] < 1 << 20 <= reads[2]


def prepared(phase: int = 3) -> tuple[FakeMemory, Reference]:
    """A guest whose kernel is two variables, and its reference."""
    memory = FakeMemory(1 << 20)
    fakes.map_page(memory, KERNEL + 0x20000, 0x80000)
    memory.word(0x80000, phase)
    memory.word(0x80008, 1)
    vmlinux = fakes.kernel({"system_state": KERNEL + 0x20000, "jiffies_64": KERNEL + 0x20008})
    vmlinux.release, vmlinux.build_id = "6.66", "ab" * 20  # type: ignore[misc]
    reference = SimpleNamespace(manifest_digest="f" * 64, vmlinux=vmlinux)
    return memory, cast(Reference, reference)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every search finds the kernel at guest-physical 0; says how often that was asked."""
    searches: list[int] = []

    def find(memory: object, references: Sequence[object]) -> Located:
        searches.append(len(references))
        return Located(0, 0, 0, 4)

    class State:
        def __init__(self, reference: Reference, build: object, located: Located, memory: FakeMemory) -> None:
            self.reference, self.located, self.ticks, self.ticked = reference, located, None, 0.0
            self.guest = fakes.guest(memory, reference.vmlinux)
            self.structures = None

        def begin_pass(self, memory: FakeMemory) -> None:
            self.guest.refresh()

    monkeypatch.setattr(measure, "find_kernel", find)
    monkeypatch.setattr(measure, "BootState", State)
    monkeypatch.setattr(measure, "still_there", lambda memory, vmlinux, located: True)
    monkeypatch.setattr(measure, "entered_by_trampoline", lambda memory, vmlinux, located: True)
    return searches


def test_a_measured_guest_has_one_result_a_check(found: list[int]) -> None:
    memory, reference = prepared()
    subject = measurer(Provider(reference), Named("b", "a"), Named("a"))
    measurement = subject.measure(GUEST, memory, "fake")
    assert measurement.integrity.status is Status.MEASURED
    assert [(one.check, one.outcome) for one in measurement.integrity.checks] == [
        ("a", Outcome.PASSED),
        ("b", Outcome.PASSED),
    ]
    assert measurement.integrity.kernel is not None
    assert measurement.integrity.kernel.release == "6.66"
    assert passed(measurement)


def test_a_finding_is_stated_and_not_judged(found: list[int]) -> None:
    memory, reference = prepared()
    measurement = measurer(Provider(reference), Named("a", finds="init_task")).measure(GUEST, memory, "fake")
    assert measurement.integrity.status is Status.MEASURED
    assert measurement.integrity.checks[0].findings[0].symbol == "init_task"
    assert not passed(measurement)


@pytest.mark.parametrize("phase", [0, 1, 2, 4, 6])
def test_a_kernel_that_starts_or_stops_is_not_measured(found: list[int], phase: int) -> None:
    memory, reference = prepared(phase)
    measurement = measurer(Provider(reference), Named("a")).measure(GUEST, memory, "fake")
    assert measurement.integrity.reason is Unmeasured.BOOTING
    assert not measurement.integrity.checks


def test_a_warm_pass_searches_only_when_time_stands_still(found: list[int]) -> None:
    memory, reference = prepared()
    subject = measurer(Provider(reference), Named("a"), now=(1.0, 2.0, 2.5, 3.5, 4.0))
    for ticks, searches in ((1, 1), (2, 1), (3, 1), (3, 1), (3, 2), (4, 2)):
        memory.word(0x80008, ticks)
        assert passed(subject.measure(GUEST, memory, "fake"))
        assert len(found) == searches
    subject.forget(GUEST)
    assert passed(subject.measure(GUEST, memory, "fake"))
    assert len(found) == 3


def test_checks_run_after_those_that_they_need() -> None:
    order = [check.name for check in in_order([Named("c", "a", "b"), Named("b", "a"), Named("a")])]
    assert order == ["a", "b", "c"]


@pytest.mark.parametrize("checks", [[Named("a", "b")], [Named("a", "b"), Named("b", "a")]])
def test_checks_that_cannot_be_ordered_are_refused(checks: list[Check]) -> None:
    with pytest.raises(CheckError):
        in_order(checks)


def test_the_installed_checks_are_all_there() -> None:
    names = [check.name for check in installed_checks()]
    assert sorted(names) == [
        "control",
        "executable_pages",
        "hooks",
        "idt",
        "modules",
        "page_tables",
        "processes",
        "rodata",
        "text",
    ]
    assert names.index("modules") < names.index("control")
