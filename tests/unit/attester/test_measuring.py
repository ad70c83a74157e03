# SPDX-License-Identifier: Apache-2.0
"""Which memory is open for which incarnation, and that none is closed while it is read."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from nova_vmi_attest.attester import measuring
from nova_vmi_attest.attester.guests import GuestRecord, GuestState
from nova_vmi_attest.attester.lifecycle import HypervisorError
from nova_vmi_attest.attester.measuring import GuestMeasurer
from nova_vmi_attest.evidence.measurement import Unmeasured
from nova_vmi_attest.introspection.measure import unmeasured
from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestMemory,
    MemoryRange,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.select import Choice

GUEST = uuid.UUID(int=7)


class Memory(GuestMemory):
    """Empty memory that knows whether it was closed."""

    name = "stand_in"

    def __init__(self) -> None:
        super().__init__([MemoryRange(0, 4096, 0)])
        self.closed = False

    def read(self, address: int, length: int) -> bytes:
        return bytes(length)

    def close(self) -> None:
        self.closed = True


@dataclass
class Host:
    """What the measurer is given: memories in the order they were opened, and a pass that can be held up."""

    opened: list[Memory] = field(default_factory=list)
    error: Exception | None = None
    reading: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    reason: Unmeasured = Unmeasured.BOOTING
    closed_while_read: bool = False

    def open(self, domain: object, reader: str) -> Memory:
        if self.error is not None:
            raise self.error
        self.opened.append(Memory())
        return self.opened[-1]

    def measure(self, guest: uuid.UUID, memory: Memory, reader: str) -> Any:
        self.reading.set()
        self.go_on.wait(10)
        self.closed_while_read |= memory.closed
        return unmeasured(guest, self.reason, "stand-in")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    host.go_on.set()
    monkeypatch.setattr(measuring, "parse_domain", lambda xml: xml)
    monkeypatch.setattr(measuring, "choose", lambda domain, reader: Choice("stand_in", "the only one"))
    monkeypatch.setattr(measuring, "open_memory", host.open)
    return host


class NoReferences:
    def candidates(self) -> tuple[()]:
        return ()

    def missing(self, banner: bytes) -> None:
        raise AssertionError(banner)

    def fetch_missing(self) -> bool:
        return False


def measurer(host: Host, live_xml: Any = str, clock: Callable[[], float] = time.monotonic) -> GuestMeasurer:
    made = GuestMeasurer(live_xml, NoReferences(), "", 2, clock)  # type: ignore[arg-type]
    made._measurer.measure = host.measure  # type: ignore[method-assign, assignment]
    return made


def record(incarnation: int = 1, state: GuestState = GuestState.RUNNING) -> GuestRecord:
    return GuestRecord(GUEST, "guest", incarnation, state)


def test_memory_stays_open_between_rounds(host: Host) -> None:
    guests = measurer(host)
    for _ in range(2):
        guests.measure_all([record()])
    assert [memory.closed for memory in host.opened] == [False]
    guests.close()
    assert host.opened[0].closed


def test_a_new_incarnation_is_opened_anew_and_the_old_one_closed(host: Host) -> None:
    guests = measurer(host)
    for incarnation in (1, 2):
        guests.measure_all([record(incarnation)])
    assert [memory.closed for memory in host.opened] == [True, False]


def test_memory_is_not_closed_while_it_is_read(host: Host) -> None:
    guests = measurer(host)
    host.go_on.clear()
    reader = threading.Thread(target=guests.measure_all, args=([record()],))
    reader.start()
    assert host.reading.wait(10)
    closer = threading.Thread(target=guests.forget, args=(GUEST,))
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert not host.opened[0].closed
    host.go_on.set()
    reader.join(10)
    closer.join(10)
    assert host.opened[0].closed
    assert not host.closed_while_read


@pytest.mark.parametrize("reason", [Unmeasured.GONE, Unmeasured.UNREADABLE])
def test_memory_of_an_ended_guest_is_let_go(host: Host, reason: Unmeasured) -> None:
    host.reason = reason
    measurer(host).measure_all([record()])
    assert host.opened[0].closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EncryptedMemory("SEV"), Unmeasured.ENCRYPTED),
        (UnsupportedLayout("dimm"), Unmeasured.UNSUPPORTED),
        (ReaderError("no permission\x1b[2J"), Unmeasured.UNREADABLE),
        (ZeroDivisionError("a defect"), Unmeasured.INTERNAL),
    ],
)
def test_one_guest_that_cannot_be_opened_stops_no_round(
    host: Host, error: Exception, reason: Unmeasured
) -> None:
    host.error = error
    (measurement,) = measurer(host).measure_all([record()])
    assert measurement.integrity.reason is reason
    assert measurement.integrity.detail.isprintable()


def test_a_guest_that_libvirt_no_longer_knows_is_gone(host: Host) -> None:
    def gone(guest: uuid.UUID) -> str:
        raise HypervisorError("no such domain")

    (measurement,) = measurer(host, gone).measure_all([record()])
    assert measurement.integrity.reason is Unmeasured.GONE


def test_memory_that_is_still_on_its_way_is_not_read(host: Host) -> None:
    (measurement,) = measurer(host).measure_all([record(state=GuestState.FILLING)])
    assert measurement.integrity.reason is Unmeasured.UNSUPPORTED
    assert "post-copy" in measurement.integrity.detail
    assert host.opened == []


@pytest.mark.parametrize("state", [GuestState.PAUSED, GuestState.CRASHED])
def test_memory_that_stands_still_is_read(host: Host, state: GuestState) -> None:
    measurer(host).measure_all([record(state=state)])
    assert len(host.opened) == 1


def test_the_remains_of_a_kernel_are_not_measured_after_a_reset(host: Host) -> None:
    now = 100.0
    guests = measurer(host, clock=lambda: now)
    guests.measure_all([record()])
    guests.reset(GUEST)
    assert host.opened[0].closed
    (measurement,) = guests.measure_all([record()])
    assert (measurement.integrity.reason, len(host.opened)) == (Unmeasured.BOOTING, 1)
    now += measuring._REMAINS
    guests.measure_all([record()])
    assert len(host.opened) == 2
    # One that ended after its reset leaves nothing behind, and a new incarnation does not wait for it.
    assert guests._reset == {}
