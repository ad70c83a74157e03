# SPDX-License-Identifier: Apache-2.0
"""Nova's servers as the verifiers last learnt of them: whose they are, and which host is to show them.

Written by the verifiers, which ask Nova (:mod:`nova_vmi_attest.verifier.placement`); read by them and by the
API. A row is as old as its ``seen_at``: that a server is in here does not mean that it still exists. Names
are the tenants' own words.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Select, delete, or_, select, update

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, DuplicateError, affected

MAX_PAGE = 1000

# How many keys one statement names: SQLite takes at most 32,766 values, and others get slow.
_KEYS = 500
# Seconds by which some news may be ahead of other news: the longest list, and clocks that differ. What is
# further ahead was stored by a wrong clock, and would keep out all news for as long as that was ahead.
_AHEAD = 3600
# What a row holds of each text.
_PROJECT, _NAME, _HOST, _STATUS, _TASK = 64, 255, 255, 32, 64


@dataclass(frozen=True, slots=True)
class Server:
    """One server. Times are seconds since 1970; ``deleted_at`` is ``None`` while it exists.

    ``host`` is empty when it is on none. ``required``: Nova says that it runs on ``host`` and nothing is in
    flight, so that host must show it. ``allowed_host`` is a second host that may show it, as in a migration.
    """

    guest: uuid.UUID
    project: str
    name: str
    host: str
    status: str
    task_state: str
    required: bool
    deleted_at: int | None = None
    allowed_host: str = ""
    seen_at: int = 0


class Servers:
    """The table of servers. Every method raises :class:`DatabaseError` when the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, guest: uuid.UUID) -> Server | None:
        """One server, deleted or not; ``None`` when none of that id was ever learnt of."""
        with self._database.reader() as session:
            row = session.get(models.ServerRow, str(guest))
            return _server(row) if row else None

    def of_project(self, project: str, after: uuid.UUID | None, limit: int) -> tuple[Server, ...]:
        """A page of the servers of one project that are not deleted, by id, from the first one after
        ``after``. Its length is at most ``limit``, and never above :data:`MAX_PAGE`.
        """
        page = self._page(_living().where(models.ServerRow.project == project), after, limit)
        # Some databases compare without regard to case.
        return tuple(server for server in page if server.project == project)

    def all(self, after: uuid.UUID | None, limit: int) -> tuple[Server, ...]:
        """As :meth:`of_project`, of every project."""
        return self._page(_living(), after, limit)

    def known(self, guests: Collection[uuid.UUID]) -> dict[uuid.UUID, Server]:
        """Those of some servers that were ever learnt of, deleted ones too."""
        found: dict[uuid.UUID, Server] = {}
        with self._database.reader() as session:
            for keys in _chunks(guests):
                rows = session.scalars(select(models.ServerRow).where(models.ServerRow.guest.in_(keys)))
                found.update((server.guest, server) for server in map(_server, rows))
        return found

    def on_host(self, host: str) -> tuple[Server, ...]:
        """The servers that are not deleted and that Nova places on ``host``."""
        with self._database.reader() as session:
            found = session.scalars(_living().where(models.ServerRow.host == host))
            # Some databases compare without regard to case.
            return tuple(server for server in map(_server, found) if server.host == host)

    def learn(self, servers: Iterable[Server]) -> int:
        """Store what Nova said, unless something newer is stored already; returns how many rows changed.

        Text is cut to what a row holds, and what no database keeps in every encoding is replaced.
        """
        newest = {server.guest: server for server in servers}
        try:
            return self._learn(newest)
        except DuplicateError:
            # Another verifier learnt of the same server at the same moment; its rows are there now.
            return self._learn(newest)

    def gone(self, guests: Collection[uuid.UUID], now: int) -> int:
        """Note that Nova has no such servers (any more); returns how many were there."""
        row, count = models.ServerRow, 0
        with self._database.writer() as session:
            for keys in _chunks(guests):
                older = or_(row.seen_at <= now, row.seen_at > now + _AHEAD)
                living = row.guest.in_(keys), row.deleted_at.is_(None), older
                values = {"deleted_at": now, "required": False, "seen_at": now, "status": "DELETED"}
                values |= {"host": "", "allowed_host": "", "task_state": ""}
                count += affected(session, update(row).where(*living).values(**values))
        return count

    def not_seen_since(self, moment: int, limit: int) -> tuple[uuid.UUID, ...]:
        """Servers that are not deleted and that nobody learnt of since ``moment``, the longest first."""
        row = models.ServerRow
        unseen = or_(row.seen_at < moment, row.seen_at > moment + _AHEAD)
        statement = select(row.guest).where(row.deleted_at.is_(None), unseen)
        with self._database.reader() as session:
            names = session.scalars(statement.order_by(row.seen_at, row.guest).limit(limit))
            return tuple(uuid.UUID(name) for name in names)

    def forget_deleted(self, before: int) -> int:
        """Drop the servers that were deleted before a moment; returns how many."""
        row = models.ServerRow
        with self._database.writer() as session:
            return affected(session, delete(row).where(row.deleted_at < before))

    def _page(
        self, statement: Select[tuple[models.ServerRow]], after: uuid.UUID | None, limit: int
    ) -> tuple[Server, ...]:
        if after is not None:
            statement = statement.where(models.ServerRow.guest > str(after))
        ordered = statement.order_by(models.ServerRow.guest).limit(max(0, min(limit, MAX_PAGE)))
        with self._database.reader() as session:
            return tuple(_server(row) for row in session.scalars(ordered))

    def _learn(self, newest: dict[uuid.UUID, Server]) -> int:
        changed = 0
        for keys in _chunks(newest):
            with self._database.writer() as session:
                rows = session.scalars(select(models.ServerRow).where(models.ServerRow.guest.in_(keys)))
                known = {row.guest: row for row in rows}
                for key in keys:
                    server, row = newest[uuid.UUID(key)], known.get(key)
                    if row is None:
                        session.add(_fill(models.ServerRow(guest=key), server))
                    elif not server.seen_at < row.seen_at <= server.seen_at + _AHEAD:
                        _fill(row, server)
                    else:
                        continue
                    changed += 1
        return changed


def _living() -> Select[tuple[models.ServerRow]]:
    return select(models.ServerRow).where(models.ServerRow.deleted_at.is_(None))


def _chunks(guests: Iterable[uuid.UUID]) -> Iterable[list[str]]:
    # In one order everywhere, so that two verifiers do not wait for each other's rows.
    names = sorted(str(guest) for guest in guests)
    return (names[start : start + _KEYS] for start in range(0, len(names), _KEYS))


def _fill(row: models.ServerRow, server: Server) -> models.ServerRow:
    row.project, row.name = _text(server.project, _PROJECT), _text(server.name, _NAME)
    row.host, row.allowed_host = _text(server.host, _HOST), _text(server.allowed_host, _HOST)
    row.status, row.task_state = _text(server.status, _STATUS), _text(server.task_state, _TASK)
    row.required, row.seen_at, row.deleted_at = server.required, server.seen_at, server.deleted_at
    return row


def _text(value: str, maximum: int) -> str:
    """Some databases keep no NUL, and some no character beyond the first plane: a name must not stop us."""
    return "".join(sign if sign.isprintable() and sign <= "\uffff" else "?" for sign in value[:maximum])


def _server(row: models.ServerRow) -> Server:
    return Server(
        guest=uuid.UUID(row.guest),
        project=row.project,
        name=row.name,
        host=row.host,
        status=row.status,
        task_state=row.task_state,
        required=row.required,
        deleted_at=row.deleted_at,
        allowed_host=row.allowed_host,
        seen_at=row.seen_at,
    )
