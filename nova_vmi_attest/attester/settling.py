# SPDX-License-Identifier: Apache-2.0
"""Asks the verifiers for a challenge when something changed on this host: the next one may be a minute away.

A guest that appeared is not measurable at once: firmware and boot loader run first, and a kernel that starts.
So the agent tries for a while, at short intervals, until a pass succeeds or says that trying again is of no
use; then it asks. A try is an ordinary pass whose result stays here: what it learnt makes the pass of the
round that follows a warm one. A host whose guests have all settled does nothing.

A request is only that: verifiers bound how often they follow one, and what counts is the answer to their
challenge.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oslo_log import log

from nova_vmi_attest.attester.guests import Changes, GuestRecord
from nova_vmi_attest.evidence.measurement import Measurement, Unmeasured

LOG = log.getLogger(__name__)

# Seconds before the first try, the most between two, and after how many the guest is left to the rounds.
_FIRST, _LONGEST, _PATIENCE = 1.0, 4.0, 120.0
_GROWTH = 1.5

# Seconds between two tries while a known kernel starts: it is there in a moment.
_STARTING = 1.0

# Seconds between two requests; what happens meanwhile is in the next one.
_REQUESTS = 3.0

# Seconds for which the first request waits for what belongs to the same change: an end and a new start.
_GATHER = 0.5

# Trying again is of no use: a person has to do something.
_FINAL = frozenset({Unmeasured.ENCRYPTED, Unmeasured.INTERNAL})

APPEARED, LEFT, SETTLED = "appeared", "left", "settled"


@dataclass(slots=True)
class _Try:
    """A guest that is not settled: when it is tried next, and until when at all."""

    at: float
    until: float
    pause: float = _FIRST
    told: bool = False


class Settler:
    """Thread-safe. Between :meth:`start` and :meth:`stop` a thread of its own takes the turns.

    :param guests: the guests that this host answers for now.
    :param measure: measures some of them.
    :param request: asks the verifiers for a challenge, with the reason; may raise anything.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        guests: Callable[[], Sequence[GuestRecord]],
        measure: Callable[[Sequence[GuestRecord]], Sequence[Measurement]],
        request: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guests = guests
        self._measure = measure
        self._request = request
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: dict[uuid.UUID, _Try] = {}
        self._reasons: dict[str, None] = {}
        self._request_at = 0.0
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to take turns."""
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more turns; waits for the one that runs. Idempotent."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            # Longer only when the message bus is away; the process does not wait for it.
            self._thread.join(timeout=5)
            self._thread = None

    def changed(self, changes: Changes) -> None:
        """Guests appeared, left or run again. Returns at once."""
        with self._lock:
            for guest in changes.left:
                self._tries.pop(guest, None)
            for guest in changes.appeared:
                self._begin(guest)
            for guest in changes.resumed:
                if guest in self._tries:
                    self._begin(guest)
            if changes.left:
                self._want(LEFT)
            if changes.appeared:
                self._want(APPEARED)
        self._woken.set()

    def unsettle(self, guest: uuid.UUID) -> None:
        """What was measured of a guest no longer counts: its machine was reset. Returns at once.

        A guest that resets itself again before it settled is no news: else one that does nothing but that
        would have its host challenged without end.
        """
        with self._lock:
            if guest not in self._tries:
                self._want(APPEARED)
            self._begin(guest)
        self._woken.set()

    def observed(self, measurements: Iterable[Measurement]) -> None:
        """A round measured these: what it settled needs no try and no further request."""
        with self._lock:
            for measurement in measurements:
                if _settled(measurement):
                    self._tries.pop(measurement.guest, None)

    def turn(self) -> float | None:
        """Do what is due, and return the seconds until something else is; None when nothing is waiting."""
        now = self._clock()
        with self._lock:
            due = {guest: one for guest, one in self._tries.items() if one.at <= now}
        records = [record for record in self._guests() if record.guest in due] if due else []
        measurements = self._measure(records) if records else ()
        now = self._clock()
        with self._lock:
            self._account(due, measurements, now)
            reasons = ""
            if self._reasons and now >= self._request_at:
                reasons = ",".join(self._reasons)
                self._reasons.clear()
                self._request_at = now + _REQUESTS
        if reasons:
            self._request(reasons)
        with self._lock:
            times = [one.at for one in self._tries.values()]
            times += [self._request_at] if self._reasons else []
        return max(0.0, min(times) - self._clock()) if times else None

    def _account(self, due: dict[uuid.UUID, _Try], measurements: Sequence[Measurement], now: float) -> None:
        by_guest = {measurement.guest: measurement for measurement in measurements}
        for guest, one in due.items():
            if self._tries.get(guest) is not one:
                continue  # it left, was settled by a round, or began anew while it was measured
            measurement = by_guest.get(guest)
            if measurement is None or now >= one.until:
                del self._tries[guest]
            elif _settled(measurement):
                del self._tries[guest]
                self._want(SETTLED)
            else:
                starting = measurement.integrity.reason is Unmeasured.BOOTING
                if measurement.integrity.reason is Unmeasured.UNKNOWN_KERNEL and not one.told:
                    # That is a verdict, and yet it changes when a verifier that was away comes back.
                    one.told = True
                    self._want(SETTLED)
                one.pause = _STARTING if starting else min(one.pause * _GROWTH, _LONGEST)
                one.at = now + one.pause

    def _begin(self, guest: uuid.UUID) -> None:
        now = self._clock()
        self._tries[guest] = _Try(now + _FIRST, now + _PATIENCE)

    def _want(self, reason: str) -> None:
        if not self._reasons:
            self._request_at = max(self._request_at, self._clock() + _GATHER)
        self._reasons[reason] = None

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause: float | None = _LONGEST
            try:
                pause = self.turn()
            except Exception:
                LOG.exception("settling of guests failed unexpectedly")
            self._woken.wait(pause)
            self._woken.clear()


def _settled(measurement: Measurement) -> bool:
    reason = measurement.integrity.reason
    return reason is None or reason in _FINAL
