# SPDX-License-Identifier: Apache-2.0
"""Keeps the verifiers' table of Nova's servers in step with Nova: all of them once, then what changed.

Every interval one of the verifiers, whichever takes the turn, asks Nova for the servers that changed since
the last time, deleted ones too. All servers are listed when nothing is known and once a day; those that such
a list does not have are asked for one by one before they count as gone, because a cell may have been down, or
they moved from page to page. In between, hints (see :mod:`.nova_events`) name servers to ask for at once.

Cost: what changed in a minute is one request, seldom more. A full list is one request for 1,000 servers,
which takes Nova some seconds: 300 requests a day for 10,000 hosts of 30 servers. Hints cost at most 8
requests for servers a second, or one for all changes every 5 seconds, however many there are.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable

from oslo_log import log

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.records.servers import Servers
from nova_vmi_attest.verifier.marks import Marks
from nova_vmi_attest.verifier.nova import Nova, NovaServer
from nova_vmi_attest.verifier.placement import LEARNT, SETTLED, Placements

LOG = log.getLogger(__name__)

_TURN = "placement.turn"
_LISTED = "placement.listed"

_TICK = 1.0
_DAY = 86400
# Seconds by which two questions for changes overlap: clocks differ, and who was in flight has settled since.
_OVERLAP = 120 + SETTLED
# How many servers that a full list did not have are asked for one by one after it.
_CONFIRMED = 1000
# Hints that are followed one by one; more of them are one question for all changes, so often at most.
_ONE_BY_ONE = 8
_MOST_HINTS = 256
_CHANGES_EVERY = 5.0


class Reconciler:
    """A background part of the verifier. Hints may come from any thread, at any time.

    :param every: seconds between two questions for changes.
    :param history_days: how long a deleted server is remembered.
    """

    def __init__(
        self, database: Database, nova: Nova, placements: Placements, every: int, history_days: int
    ) -> None:
        self._servers = Servers(database)
        self._marks = Marks(database)
        self._nova = nova
        self._placements = placements
        self._every = every
        self._history = history_days * _DAY
        self._lock = threading.Lock()
        self._hints: set[uuid.UUID] = set()
        self._asked_at = float("-inf")
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False

    def start(self) -> None:
        """Begin; returns at once, whether Nova can be reached or not."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="placement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, soon: a list that is under way is left at its next page."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(10)

    def hint(self, guest: uuid.UUID) -> None:
        """Somebody says that this server changed. Beyond a bound, hints are one and the same hint."""
        with self._lock:
            if len(self._hints) < _MOST_HINTS:
                self._hints.add(guest)

    def run_once(self, now: int) -> None:
        """Do what is due.

        :raises AttestError: when Nova does not answer, or the database refuses.
        """
        if self._marks.take_turn(_TURN, self._every, now):
            self._reconcile(now)
        self._follow(now)

    def _run(self) -> None:
        while not self._stopped.wait(_TICK):
            try:
                self.run_once(int(time.time()))
            except AttestError as error:
                LOG.log(log.DEBUG if self._failing else log.ERROR, "Nova's servers are not known: %s", error)
                self._failing = True
            except Exception:
                LOG.exception("learning of Nova's servers failed unexpectedly")
            else:
                if self._failing:
                    LOG.info("Nova's servers are known again")
                self._failing = False

    def _reconcile(self, now: int) -> None:
        learnt, listed = self._marks.get(LEARNT), self._marks.get(_LISTED)
        if learnt is None or listed is None or not 0 <= now - listed.position < _DAY:
            self._list_all(now)
        else:
            self._ask_for_changes(learnt.position, now)

    def _list_all(self, now: int) -> None:
        count = self._learn(self._nova.servers(), now)
        if self._stopped.is_set():
            return
        for guest in self._servers.not_seen_since(now, _CONFIRMED):
            if self._stopped.is_set():
                return
            self._placements.ask(guest)
        self._servers.forget_deleted(now - self._history)
        self._marks.set(_LISTED, now, now)
        self._marks.set(LEARNT, now, now)
        LOG.info("Nova has %d servers", count)

    def _ask_for_changes(self, since: int, now: int) -> None:
        count = self._learn(self._nova.servers(changed_since=min(since, now) - _OVERLAP), now)
        if not self._stopped.is_set():
            self._marks.set(LEARNT, now, now)
            LOG.debug("%d of Nova's servers changed lately", count)

    def _learn(self, pages: Iterable[tuple[NovaServer, ...]], now: int) -> int:
        count = 0
        for page in pages:
            self._placements.learn(page, now)
            count += len(page)
            if self._stopped.is_set():
                break
        return count

    def _follow(self, now: int) -> None:
        """Follow the hints: a few one by one, many by one question for all changes."""
        with self._lock:
            hints = self._hints
            if len(hints) > _ONE_BY_ONE and time.monotonic() - self._asked_at < _CHANGES_EVERY:
                return
            self._hints = set()
        if len(hints) > _ONE_BY_ONE:
            self._asked_at = time.monotonic()
            learnt = self._marks.get(LEARNT)
            if learnt is not None:
                self._ask_for_changes(learnt.position, now)
            return
        for guest in hints:
            self._placements.ask(guest)
