# SPDX-License-Identifier: Apache-2.0
"""What Nova places on which host, from the table that all verifiers share, and a look at Nova itself when a
host's evidence disagrees with it.

Only Nova's API is believed; what fills the table is in :mod:`.reconcile`. A look costs at most 26 requests,
answers within seconds or not at all, and is rationed: per host, because one that keeps showing guests of
others must not make us ask for ever, and altogether, because Nova must not be asked by all hosts at once.

Cost: an appraisal reads the rows of one host (by index) and those of the guests that it shows (by key), some
milliseconds. With 10,000 hosts of 30 guests the table has 300,000 rows; 10,000 appraisals a minute are some
170 such reads a second for the database, spread over the verifiers.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from oslo_log import log

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.records.servers import Server, Servers
from nova_vmi_attest.verifier.marks import Marks
from nova_vmi_attest.verifier.nova import Nova, NovaServer
from nova_vmi_attest.verifier.openstack import NotFoundError, OpenStackError
from nova_vmi_attest.verifier.placed import Placed
from nova_vmi_attest.verifier.rate import Ration

LOG = log.getLogger(__name__)

K = TypeVar("K")

# The mark that says until when all changes in Nova are known.
LEARNT = "placement.learnt"

# Seconds for which a server must have been as it is before its host must show it: guests take a moment to
# appear in evidence, and to end.
SETTLED = 15
# libvirt's numbers, as Nova hands them on: running and paused domains exist, the others do not.
_RUNNING, _PAUSED = 1, 3
_RUNS_IN = frozenset({"active", "paused", "rescued", "resized"})
# Statuses in which a second host may show the server.
_MOVING = frozenset({"MIGRATING", "RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE", "REBUILD"})

# One look: servers asked for one by one (two requests each at most), and pages of the host's servers.
_ONE_BY_ONE = 12
_PAGES = 2
# Looks of one host that may follow each other at once, and seconds after which another one is allowed.
_LOOKS, _LOOK_EVERY = 4, 10.0
# Looks at the same time: who finds no place decides on what is known.
_AT_ONCE = 4
# Seconds for which it is remembered that Nova has no such server, and of how many.
_FOREIGN_FOR = 300
_MOST_FOREIGN = 4096
_MOST_HOSTS = 100_000


class Placements:
    """Thread-safe.

    :param lifetime: seconds after which what was learnt no longer counts.
    """

    def __init__(
        self, database: Database, nova: Nova, lifetime: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._servers = Servers(database)
        self._marks = Marks(database)
        self._nova = nova
        self._lifetime = lifetime
        self._clock = clock
        self._looks = Ration(_LOOKS, _LOOK_EVERY)
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._foreign: dict[uuid.UUID, int] = {}
        self._looked: dict[str, int] = {}

    def on(self, host: str, shown: Collection[uuid.UUID], now: int) -> Placed:
        """What Nova last said about a host and the guests that it shows.

        :raises DatabaseError: when the database refuses.
        """
        here = {server.guest: server for server in self._servers.on_host(host)}
        known = self._servers.known(frozenset(shown) - here.keys())
        moving = {guest for guest, server in known.items() if server.allowed_host == host}
        with self._lock:
            asked = {guest for guest in shown if self._foreign.get(guest, 0) > now - _FOREIGN_FOR}
        alive = {guest for guest, server in known.items() if server.deleted_at is None}
        return Placed(
            required=frozenset(guest for guest, server in here.items() if server.required),
            allowed=frozenset(here) | moving,
            elsewhere=frozenset(alive - moving),
            foreign=frozenset((asked | (known.keys() - alive)) - here.keys() - alive),
            checked=self._is_checked(host, now),
        )

    def look(self, host: str, doubtful: Collection[uuid.UUID]) -> bool:
        """Ask Nova about one host and some guests.

        :param host: one whose evidence was attributed to it, or anybody could use up its looks.
        :returns: whether anything was learnt: :meth:`on` may say more now.
        :raises DatabaseError: when the database refuses.
        """
        if not self._looks.take(host) or not self._places.acquire(blocking=False):
            return False
        try:
            return self._look(host, doubtful)
        except OpenStackError as error:
            LOG.warning("Nova cannot say what is on host %s: %s", host, error)
            return False
        finally:
            self._places.release()

    def learn(self, servers: Iterable[NovaServer], now: int) -> None:
        """Store what Nova said at ``now``; asks it where servers go that are on the move.

        :raises OpenStackError: when that cannot be asked.
        :raises DatabaseError: when the database refuses.
        """
        self._servers.learn(self._placed(server, now) for server in servers)

    def ask(self, guest: uuid.UUID) -> None:
        """Learn of one server. Raises as :meth:`learn`."""
        now = int(self._clock())
        try:
            server = self._nova.server(guest)
        except NotFoundError:
            self._servers.gone([guest], now)
            with self._lock:
                _remember(self._foreign, guest, now, _MOST_FOREIGN)
        else:
            with self._lock:
                self._foreign.pop(guest, None)
            if server is not None:
                self.learn([server], now)

    def _look(self, host: str, doubtful: Collection[uuid.UUID]) -> bool:
        now = int(self._clock())
        listed: set[uuid.UUID] = set()
        complete = False
        for number, page in enumerate(self._nova.servers(host=host), 1):
            self.learn(page, now)
            listed.update(server.guest for server in page)
            if number == _PAGES:
                break
        else:
            complete = True
        asked = sorted(set(doubtful) - listed, key=lambda guest: guest.bytes)[:_ONE_BY_ONE]
        for guest in asked:
            self.ask(guest)
        if complete:
            with self._lock:
                _remember(self._looked, host, now, _MOST_HOSTS)
        return True

    def _is_checked(self, host: str, now: int) -> bool:
        learnt = self._marks.get(LEARNT)
        with self._lock:
            moments = learnt.position if learnt else 0, self._looked.get(host, 0)
        # What was learnt by a clock that was ahead must not count for as long as it was ahead.
        return any(-CLOCK_SKEW <= now - moment <= self._lifetime for moment in moments)

    def _placed(self, server: NovaServer, now: int) -> Server:
        other = ""
        if server.host and server.status in _MOVING:
            other = self._nova.other_host(server.guest, server.host)
        return Server(
            guest=server.guest,
            project=server.project,
            name=server.name,
            host="" if server.deleted else server.host,
            status=server.status,
            task_state=server.task_state,
            required=_must_run(server, now),
            deleted_at=now if server.deleted else None,
            allowed_host=other,
            seen_at=now,
        )


def _must_run(server: NovaServer, now: int) -> bool:
    return (
        bool(server.host)
        and server.vm_state in _RUNS_IN
        and server.power_state in (_RUNNING, _PAUSED)
        and not server.task_state
        and server.updated <= now - SETTLED
    )


def _remember(table: dict[K, int], key: K, now: int, most: int) -> None:
    """Keep the newest ones; a dictionary is in the order in which keys were put in."""
    table.pop(key, None)
    table[key] = now
    while len(table) > most:
        del table[next(iter(table))]
