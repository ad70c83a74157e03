# SPDX-License-Identifier: Apache-2.0
"""The guests of this host, each in an explicit state.

A guest is one *incarnation* of a domain: the same uuid with a new libvirt id (a restart) is another guest,
whose memory is opened anew and about which nothing learnt before is believed. The registry decides nothing
about trust; it says what has to be measured.
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


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """One incarnation: ``incarnation`` is libvirt's domain id, which is never reused while libvirtd runs."""

    guest: uuid.UUID
    name: str
    incarnation: int
    state: GuestState


class GuestRegistry:
    """Thread-safe. ``on_forget`` is called for each incarnation that ended."""

    def __init__(self, on_forget: Callable[[uuid.UUID], None]) -> None:
        self._lock = threading.Lock()
        self._guests: dict[uuid.UUID, GuestRecord] = {}
        self._on_forget = on_forget

    def snapshot(self) -> tuple[GuestRecord, ...]:
        """The guests to measure now, in the order of their uuids."""
        with self._lock:
            return tuple(sorted(self._guests.values(), key=lambda record: record.guest.bytes))

    def reconcile(
        self, present: Iterable[GuestRecord]
    ) -> tuple[tuple[uuid.UUID, ...], tuple[uuid.UUID, ...]]:
        """Make the registry equal to ``present``; returns the guests that appeared and those that ended.

        A restarted guest is in both: its old incarnation ended and a new one appeared.
        """
        records = {record.guest: record for record in present}
        with self._lock:
            old, self._guests = self._guests, records
        ended = tuple(
            guest
            for guest, record in old.items()
            if guest not in records or records[guest].incarnation != record.incarnation
        )
        for guest in ended:
            self._on_forget(guest)
        return tuple(guest for guest in records if guest not in old or guest in ended), ended
