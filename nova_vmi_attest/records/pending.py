# SPDX-License-Identifier: Apache-2.0
"""Endorsement keys that asked to enrol under a host's name and wait for an operator's approval.

The authority notes a request whose certificate a trusted maker signed; that the asker has that TPM, or is
that host, nobody has shown. So approval names the digest that the operator compared on the host, and what
waits is bounded: names for each key, and rows in all, of which those that asked longest ago give way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from nova_vmi_attest.db.models import PendingHostRow
from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.records import registry

# A key belongs to one host; a few more names allow for one that was renamed.
_NAMES_OF_A_KEY = 4
_MOST_ROWS = 1024
# Of several requests by one host and key within this many seconds one is noted, and so many in all a minute.
_PAUSE = 30
_WRITES_A_MINUTE = 120
_MINUTE = 60
_APPROVED = "by an operator who approved its request"


@dataclass(frozen=True, slots=True)
class PendingHost:
    """One request. ``ek_certificate`` is PEM; times are seconds since 1970."""

    host: str
    ek_digest: str
    ek_certificate: str
    asked_at: int
    asked_last: int


class PendingHosts:
    """The requests that wait. Safe for several threads."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._minute = 0
        self._written = 0

    def note(self, host: str, digest: str, certificate: str) -> bool:
        """Keep a request whose host name has the form of one and whose certificate chains to a trusted maker:
        the caller checked both.

        :param certificate: PEM.
        :returns: whether it was noted now; false when too many were.
        :raises DatabaseError: the database refused.
        """
        now = int(self._clock())
        if not self._may_write(now):
            return False
        try:
            with self._database.writer() as session:
                return _note(session, PendingHost(host, digest, certificate, now, now))
        except DuplicateError:
            # The same request came to two authorities at once, and one of them noted it.
            return True

    def page(self, after: tuple[str, str], limit: int) -> tuple[PendingHost, ...]:
        """What waits, by host and digest, after a pair of them."""
        row = PendingHostRow
        beyond = or_(row.host > after[0], and_(row.host == after[0], row.ek_digest > after[1]))
        wanted = select(row).where(beyond).order_by(row.host, row.ek_digest).limit(limit)
        with self._database.reader() as session:
            return tuple(_pending(item) for item in session.scalars(wanted))

    def get(self, host: str, digest: str) -> PendingHost | None:
        """One request."""
        with self._database.reader() as session:
            row = session.get(PendingHostRow, (host, digest))
            # Some databases compare without regard to case.
            return _pending(row) if row is not None and row.host == host else None

    def approve(self, host: str, digest: str, now: int) -> bool:
        """Register a host with the key that asked; forget all requests in its name.

        :returns: whether there was such a request.
        :raises RegistryError: the host has another key, or the key another host.
        :raises DatabaseError: the database refused.
        """
        with self._database.writer() as session:
            row = session.get(PendingHostRow, (host, digest))
            if row is None or row.host != host:
                return False
            registry.add(session, host, digest, row.ek_certificate, now, _APPROVED)
            _forget(session, host)
            return True

    def forget(self, host: str) -> None:
        """Drop every request in a host's name."""
        with self._database.writer() as session:
            _forget(session, host)

    def _may_write(self, now: int) -> bool:
        with self._lock:
            if now // _MINUTE != self._minute:
                self._minute, self._written = now // _MINUTE, 0
            self._written += 1
            return self._written <= _WRITES_A_MINUTE


def _note(session: Session, item: PendingHost) -> bool:
    row = PendingHostRow
    known = session.get(row, (item.host, item.ek_digest))
    if known is not None:
        if known.host == item.host and abs(item.asked_last - known.asked_last) >= _PAUSE:
            known.asked_last = item.asked_last
        return True
    _make_room(session, _NAMES_OF_A_KEY, item.ek_digest)
    _make_room(session, _MOST_ROWS)
    session.add(
        row(
            host=item.host,
            ek_digest=item.ek_digest,
            ek_certificate=item.ek_certificate,
            asked_at=item.asked_at,
            asked_last=item.asked_last,
        )
    )
    return True


def _make_room(session: Session, most: int, digest: str | None = None) -> None:
    """Let go of those that asked longest ago, of one key or of all, until one more fits."""
    row = PendingHostRow
    mine = () if digest is None else (row.ek_digest == digest,)
    count = session.scalar(select(func.count()).select_from(row).where(*mine)) or 0
    if count >= most:
        oldest = select(row).where(*mine).order_by(row.asked_last).limit(count - most + 1)
        for old in session.scalars(oldest).all():
            session.delete(old)
        session.flush()


def _forget(session: Session, host: str) -> None:
    session.execute(delete(PendingHostRow).where(PendingHostRow.host == host))


def _pending(row: PendingHostRow) -> PendingHost:
    return PendingHost(row.host, row.ek_digest, row.ek_certificate, row.asked_at, row.asked_last)
