# SPDX-License-Identifier: Apache-2.0
"""The registry of guests: incarnations appear, end and are replaced."""

from __future__ import annotations

import uuid

from nova_vmi_attest.attester.guests import GuestRecord, GuestRegistry, GuestState

A, B = (uuid.UUID(int=number) for number in (1, 2))


def record(guest: uuid.UUID, incarnation: int = 1, state: GuestState = GuestState.RUNNING) -> GuestRecord:
    return GuestRecord(guest, f"guest-{guest.int}", incarnation, state)


def registry() -> tuple[GuestRegistry, list[uuid.UUID]]:
    forgotten: list[uuid.UUID] = []
    return GuestRegistry(forgotten.append), forgotten


def test_guests_appear_and_end() -> None:
    guests, forgotten = registry()
    assert guests.reconcile([record(B), record(A)]) == ((B, A), ())
    assert [item.guest for item in guests.snapshot()] == [A, B]
    assert guests.reconcile([record(A)]) == ((), (B,))
    assert forgotten == [B]
    assert [item.guest for item in guests.snapshot()] == [A]


def test_a_restarted_guest_is_another_one() -> None:
    guests, forgotten = registry()
    guests.reconcile([record(A, 1)])
    assert guests.reconcile([record(A, 2)]) == ((A,), (A,))
    assert forgotten == [A]
    assert guests.snapshot()[0].incarnation == 2


def test_a_change_of_state_is_no_new_guest() -> None:
    guests, forgotten = registry()
    guests.reconcile([record(A)])
    assert guests.reconcile([record(A, state=GuestState.PAUSED)]) == ((), ())
    assert forgotten == []
    assert guests.snapshot()[0].state is GuestState.PAUSED
