# SPDX-License-Identifier: Apache-2.0
"""When the agent tries, when it asks, and that it does neither without need."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Sequence

import pytest

from nova_vmi_attest.attester import settling
from nova_vmi_attest.attester.guests import Changes, GuestRecord, GuestState
from nova_vmi_attest.attester.settling import Settler
from nova_vmi_attest.evidence.measurement import (
    Integrity,
    Inventory,
    Measurement,
    Observation,
    Status,
    Unmeasured,
)
from nova_vmi_attest.introspection.measure import unmeasured

A, B = (uuid.UUID(int=number) for number in (1, 2))


class Host:
    """Guests that can be measured from a certain second on, and a clock that only this test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.guests: dict[uuid.UUID, float] = {}
        self.reason = Unmeasured.NO_KERNEL
        self.tried: list[float] = []
        self.requests: list[tuple[float, str]] = []
        self.settler = Settler(self.records, self.measure, self.request, lambda: self.now)

    def records(self) -> Sequence[GuestRecord]:
        return [GuestRecord(guest, "guest", 1, GuestState.RUNNING) for guest in self.guests]

    def measure(self, records: Sequence[GuestRecord]) -> Sequence[Measurement]:
        self.tried.append(self.now)
        return [
            measured(record.guest)
            if self.now >= self.guests[record.guest]
            else unmeasured(record.guest, self.reason, "not yet")
            for record in records
        ]

    def request(self, reason: str) -> None:
        self.requests.append((self.now, reason))

    def appear(self, guest: uuid.UUID, measurable_in: float) -> None:
        self.guests[guest] = self.now + measurable_in
        self.settler.changed(Changes(appeared=(guest,)))

    def leave(self, guest: uuid.UUID) -> None:
        del self.guests[guest]
        self.settler.changed(Changes(left=(guest,)))

    def run(self, seconds: float) -> None:
        """Turns as the thread would take them, for so long or until there is nothing to wait for."""
        end = self.now + seconds
        while self.now < end:
            pause = self.settler.turn()
            if pause is None:
                return
            self.now = min(end, self.now + max(pause, 0.001))


def measured(guest: uuid.UUID) -> Measurement:
    return Measurement(guest, Integrity(Status.MEASURED), Inventory(), Observation("stand_in", 0, 0))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_guest_is_announced_at_once_and_when_it_can_be_measured(host: Host) -> None:
    started = host.now
    host.appear(A, measurable_in=9)
    host.run(600)
    assert [reason for _, reason in host.requests] == ["appeared", "settled"]
    assert host.requests[0][0] - started < 1
    # The kernel of a guest is known to be up within this, which leaves the rest of ten seconds to the round.
    assert host.requests[1][0] - started - 9 <= settling._LONGEST + settling._GATHER
    assert len(host.tried) < 9


def test_a_kernel_that_starts_is_looked_for_each_second(host: Host) -> None:
    host.reason = Unmeasured.BOOTING
    host.appear(A, measurable_in=30)
    host.run(29)
    assert len(host.tried) == pytest.approx(28, abs=2)


def test_a_host_without_changes_does_nothing(host: Host) -> None:
    host.appear(A, measurable_in=1)
    host.run(600)
    tried = len(host.tried)
    assert host.settler.turn() is None
    host.now += 3600
    assert host.settler.turn() is None
    assert len(host.tried) == tried


@pytest.mark.parametrize("reason", [Unmeasured.ENCRYPTED, Unmeasured.INTERNAL])
def test_what_another_try_cannot_change_is_asked_for_at_once(host: Host, reason: Unmeasured) -> None:
    host.reason = reason
    host.appear(A, measurable_in=1e9)
    host.run(600)
    assert len(host.tried) == 1
    assert [said for _, said in host.requests] == ["appeared", "settled"]


def test_a_kernel_without_reference_is_said_once_and_its_reference_waited_for(host: Host) -> None:
    host.reason = Unmeasured.UNKNOWN_KERNEL
    host.appear(A, measurable_in=30)
    host.run(20)
    assert [said for _, said in host.requests] == ["appeared", "settled"]
    host.run(600)
    assert [said for _, said in host.requests] == ["appeared", "settled", "settled"]
    assert host.settler.turn() is None


def test_a_guest_without_linux_is_left_to_the_rounds_in_the_end(host: Host) -> None:
    host.appear(A, measurable_in=1e9)
    host.run(3600)
    assert host.settler.turn() is None
    assert host.tried[-1] - host.tried[0] <= settling._PATIENCE + settling._LONGEST
    assert [reason for _, reason in host.requests] == ["appeared"]


def test_a_round_that_measured_the_guest_spares_the_tries_and_the_request(host: Host) -> None:
    host.appear(A, measurable_in=1e9)
    host.run(2)
    tried = len(host.tried)
    host.settler.observed([measured(A)])
    host.run(600)
    assert (len(host.tried), [reason for _, reason in host.requests]) == (tried, ["appeared"])


def test_a_guest_that_starts_is_not_settled_by_the_round_that_found_it_starting(host: Host) -> None:
    host.appear(A, measurable_in=5)
    host.settler.observed([unmeasured(A, Unmeasured.BOOTING, "starting")])
    host.run(600)
    assert [reason for _, reason in host.requests] == ["appeared", "settled"]


def test_many_changes_are_few_requests(host: Host) -> None:
    for number in range(100):
        host.appear(uuid.UUID(int=number), measurable_in=number / 10)
        host.run(0.1)
        if number % 2:
            host.leave(uuid.UUID(int=number))
    host.run(600)
    times = [when for when, _ in host.requests]
    assert all(later - earlier >= settling._REQUESTS for earlier, later in itertools.pairwise(times))
    assert len(times) <= 10
    assert {word for _, reason in host.requests for word in reason.split(",")} == {
        "appeared",
        "left",
        "settled",
    }


def test_a_guest_that_left_is_said_and_not_tried(host: Host) -> None:
    host.appear(A, measurable_in=1e9)
    host.run(10)
    tried = len(host.tried)
    host.leave(A)
    host.run(600)
    assert len(host.tried) == tried
    assert host.requests[-1][1] == "left"


def test_a_reset_begins_anew(host: Host) -> None:
    host.appear(A, measurable_in=1)
    host.run(600)
    host.guests[A] = host.now + 6
    host.settler.unsettle(A)
    host.run(600)
    assert [reason for _, reason in host.requests][2:] == ["appeared", "settled"]


@pytest.mark.parametrize("every", [0.1, 1.5, 7.0])
def test_a_guest_that_resets_itself_without_end_is_no_news(host: Host, every: float) -> None:
    """Its owner would have the host measure and quote, and the verifiers appraise, every few seconds."""
    host.appear(A, measurable_in=1)
    host.run(600)
    host.guests[A] = host.now + 1e6
    before = len(host.requests)
    for _ in range(100):
        host.settler.unsettle(A)
        host.run(every)
        host.now += every
    assert [reason for _, reason in host.requests[before:]] == ["appeared"]


def test_a_reset_during_a_try_is_not_lost(host: Host) -> None:
    host.appear(A, measurable_in=0)
    genuine, again = host.settler._measure, []

    def reset_meanwhile(records: Sequence[GuestRecord]) -> Sequence[Measurement]:
        result = genuine(records)
        if not again:
            again.append(True)
            host.settler.unsettle(A)
            host.now += 5  # a slow pass: by its end the next try is due
        return result

    host.settler._measure = reset_meanwhile
    host.run(1.1)
    assert len(host.tried) == 1
    assert A in host.settler._tries
    host.run(10)
    assert len(host.tried) == 2


def test_a_guest_that_resumes_before_it_settled_gets_its_time_again(host: Host) -> None:
    host.appear(A, measurable_in=150)
    host.run(settling._PATIENCE - 10)
    host.settler.changed(Changes(resumed=(A,)))
    host.run(600)
    assert host.requests[-1][1] == "settled"
    requests = len(host.requests)
    host.settler.changed(Changes(resumed=(A,)))
    host.run(600)
    assert len(host.requests) == requests


def test_the_thread_waits_until_it_is_woken_and_stops(host: Host) -> None:
    heard = threading.Event()
    settler = Settler(list, lambda records: [], lambda reason: heard.set())
    settler.start()
    settler.changed(Changes(left=(A,)))
    assert heard.wait(10)
    thread = settler._thread
    assert thread is not None
    settler.stop()
    settler.stop()
    assert not thread.is_alive()


def test_a_request_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def fail(reason: str) -> None:
        heard.set()
        raise OSError("no bus")

    settler = Settler(list, lambda records: [], fail)
    settler.start()
    settler.changed(Changes(left=(A,)))
    assert heard.wait(10)
    thread = settler._thread
    settler.stop()
    assert thread is not None
    assert not thread.is_alive()
    assert "no bus" in caplog.text
