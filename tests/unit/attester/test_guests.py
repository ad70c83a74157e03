# SPDX-License-Identifier: Apache-2.0
"""The registry of guests: incarnations appear, end, are replaced, and move from host to host."""

from __future__ import annotations

import uuid

import pytest

from nova_vmi_attest.attester.guests import Changes, GuestRecord, GuestRegistry, GuestState

A, B = (uuid.UUID(int=number) for number in (1, 2))
AWAY, CRASHED, FILLING, PAUSED, RUNNING = (
    GuestState.AWAY, GuestState.CRASHED, GuestState.FILLING, GuestState.PAUSED, GuestState.RUNNING,
)  # fmt: skip


def record(guest: uuid.UUID, incarnation: int = 1, state: GuestState = RUNNING) -> GuestRecord:
    return GuestRecord(guest, f"guest-{guest.int}", incarnation, state)


def registry() -> tuple[GuestRegistry, list[uuid.UUID]]:
    forgotten: list[uuid.UUID] = []
    return GuestRegistry(forgotten.append), forgotten


def test_guests_appear_and_end() -> None:
    guests, forgotten = registry()
    assert guests.reconcile([record(B), record(A)]) == Changes(appeared=(B, A))
    assert [item.guest for item in guests.snapshot()] == [A, B]
    assert guests.reconcile([record(A)]) == Changes(left=(B,))
    assert forgotten == [B]
    assert [item.guest for item in guests.snapshot()] == [A]
    assert guests.reconcile([record(A)]) == Changes()


def test_a_restarted_guest_is_another_one() -> None:
    guests, forgotten = registry()
    guests.reconcile([record(A, 1)])
    assert guests.reconcile([record(A, 2)]) == Changes(appeared=(A,), left=(A,))
    assert forgotten == [A]
    assert guests.snapshot()[0].incarnation == 2


@pytest.mark.parametrize("state", [PAUSED, CRASHED])
def test_a_guest_that_stands_still_is_no_new_one_and_its_memory_stays_known(state: GuestState) -> None:
    guests, forgotten = registry()
    guests.reconcile([record(A)])
    assert guests.reconcile([record(A, state=state)]) == Changes()
    assert guests.snapshot()[0].state is state
    assert guests.reconcile([record(A)]) == Changes(resumed=(A,))
    assert forgotten == []


def test_during_a_migration_each_moment_has_one_host_at_most() -> None:
    (source, source_forgot), (destination, destination_forgot) = registry(), registry()

    def both(at_source: GuestState | None, at_destination: GuestState | None) -> list[Changes]:
        changes = [
            side.reconcile([record(A, incarnation, state)] if state else [])
            for side, incarnation, state in ((source, 5, at_source), (destination, 9, at_destination))
        ]
        assert len(source.snapshot()) + len(destination.snapshot()) <= 1
        return changes

    assert both(RUNNING, None) == [Changes(appeared=(A,)), Changes()]
    assert both(RUNNING, AWAY) == [Changes(), Changes()]
    assert both(AWAY, AWAY) == [Changes(left=(A,)), Changes()]
    assert source_forgot == []  # it may fail and run on here
    assert both(AWAY, RUNNING) == [Changes(), Changes(appeared=(A,))]
    assert both(None, RUNNING) == [Changes(), Changes()]
    assert (source_forgot, destination_forgot) == ([A], [])


def test_a_migration_that_fails_brings_the_guest_back() -> None:
    guests, forgotten = registry()
    guests.reconcile([record(A)])
    guests.reconcile([record(A, state=AWAY)])
    assert guests.reconcile([record(A)]) == Changes(appeared=(A,))
    assert forgotten == []


def test_a_guest_of_post_copy_is_reported_before_it_can_be_measured() -> None:
    guests, _ = registry()
    guests.reconcile([record(A, state=AWAY)])
    assert guests.reconcile([record(A, state=FILLING)]) == Changes(appeared=(A,))
    assert [item.state for item in guests.snapshot()] == [FILLING]
    assert guests.reconcile([record(A)]) == Changes(resumed=(A,))
