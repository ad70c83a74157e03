# SPDX-License-Identifier: Apache-2.0
"""The guests of this host, each in an explicit state.

A guest is one *incarnation* of a domain: the same uuid with a new libvirt id (a restart) is another guest,
whose memory is opened anew and about which nothing learnt before is believed. The registry decides nothing
about trust; it says what has to be measured. A guest that moves from host to host is measured where its
vCPUs run and nowhere else.
"""

from __future__ import annotations

import enum
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class GuestState(enum.StrEnum):
    """Where a guest is in its life, as far as this host is concerned."""

    RUNNING = "running"  # its vCPUs may run: measured in every round
    PAUSED = "paused"  # memory is there and stands still: measured as well
    CRASHED = "crashed"  # its kernel panicked, and memory is kept as it was: measured as well
    FILLING = "filling"  # it runs here while its memory still comes from another host: reported, not read
    AWAY = "away"  # a domain whose vCPUs do not run here yet, or no longer: another host's, or nobody's


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """One incarnation: ``incarnation`` is libvirt's domain id, which is never reused while libvirtd runs."""

    guest: uuid.UUID
    name: str
    incarnation: int
    state: GuestState


@dataclass(frozen=True, slots=True)
class Changes:
    """What one look at libvirt found changed. A restarted guest is in both ``appeared`` and ``left``.

    :param appeared: guests that this host answers for from now on.
    :param left: guests that it no longer answers for.
    :param resumed: guests that it answered for before, and that run now and did not, or not with all memory.
    """

    appeared: tuple[uuid.UUID, ...] = ()
    left: tuple[uuid.UUID, ...] = ()
    resumed: tuple[uuid.UUID, ...] = ()


class GuestRegistry:
    """Thread-safe. ``on_forget`` is called for each incarnation that ended."""

    def __init__(self, on_forget: Callable[[uuid.UUID], None]) -> None:
        self._lock = threading.Lock()
        self._guests: dict[uuid.UUID, GuestRecord] = {}
        self._on_forget = on_forget

    def snapshot(self) -> tuple[GuestRecord, ...]:
        """The guests that this host answers for now, in the order of their uuids."""
        with self._lock:
            here = [record for record in self._guests.values() if record.state is not GuestState.AWAY]
        return tuple(sorted(here, key=lambda record: record.guest.bytes))

    def reconcile(self, present: Iterable[GuestRecord]) -> Changes:
        """Make the registry equal to ``present``, and say what that changed."""
        records = {record.guest: record for record in present}
        with self._lock:
            old, self._guests = self._guests, records
        for guest, record in old.items():
            if guest not in records or records[guest].incarnation != record.incarnation:
                self._on_forget(guest)
        before = {(guest, record.incarnation): record.state for guest, record in _here(old)}
        now = {(guest, record.incarnation): record.state for guest, record in _here(records)}
        return Changes(
            appeared=tuple(one[0] for one in now if one not in before),
            left=tuple(one[0] for one in before if one not in now),
            resumed=tuple(
                one[0]
                for one, state in now.items()
                if state is GuestState.RUNNING and before.get(one, state) is not state
            ),
        )


def _here(records: dict[uuid.UUID, GuestRecord]) -> list[tuple[uuid.UUID, GuestRecord]]:
    return [item for item in records.items() if item[1].state is not GuestState.AWAY]
