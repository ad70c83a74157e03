# SPDX-License-Identifier: Apache-2.0
"""What schedulers refused, for people who want to know why a server was not placed.

Every host has credentials to the bus, so anybody may have sent a refusal: nothing acts on one, its size is
bounded, only so many an hour are kept for a server and in all, and old ones make room for new ones.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from nova_vmi_attest.db.models import RefusalRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.challenge import MAX_HOST
from nova_vmi_attest.evidence.encoding import EncodingError

MAX_HOSTS = 64
MAX_REASON = 256
MAX_PROJECT = 64
MAX_REQUEST = 64
# More hosts than a cloud has.
MAX_TOTAL = 1_000_000
MAX_PAGE = 1000
LEVELS = ("ignored", "preferred", "required")

_HOUR = 3600
_MEMBERS = ("at", "server", "project", "request", "level", "total", "hosts")


class RefusalError(AttestError):
    """What should be a refusal is malformed, or too many came lately."""


@dataclass(frozen=True, slots=True)
class RefusedHost:
    """One host, and why it was refused."""

    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request for which hosts were refused.

    ``at`` is when it arrived, in seconds since 1970. ``request`` is the operation and Nova's id of the
    request. ``total`` is how many hosts were refused, of which ``hosts`` names at most :data:`MAX_HOSTS`.
    """

    id: int
    at: int
    server: str
    project: str
    request: str
    level: str
    total: int
    hosts: tuple[RefusedHost, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept: rows an hour for one server and in all, rows altogether, and seconds of age."""

    server_hour: int = 60
    hour: int = 3600
    rows: int = 20_000
    age: int = 30 * 86400


class Refusals:
    """The table of refusals. Safe for several threads."""

    def __init__(self, database: Database, limits: Limits = Limits()) -> None:
        self._database = database
        self._limits = limits
        self._lock = threading.Lock()

    def add(self, refusal: object, now: int) -> None:
        """Keep what somebody on the bus sent.

        :param now: seconds since 1970; counts as the time of the refusal, for the sender's clock may be wrong
            on purpose.
        :raises RefusalError: when it is malformed, or too many came within the hour.
        :raises DatabaseError: the database refused.

        NOT checked: whether a scheduler sent it, and whether it is true.
        """
        row = _row(refusal, now)
        # One at a time, so that a burst cannot pass the limits together.
        with self._lock, self._database.writer() as session:
            self._check_rate(session, row.server, now)
            session.add(row)
            session.flush()
            self._prune(session, now)

    def list(
        self, *, server: str | None = None, project: str | None = None, after: int = 0, limit: int = 100
    ) -> tuple[Refusal, ...]:
        """The newest first.

        :param server: UUID; all servers if ``None``.
        :param project: all projects if ``None``.
        :param after: the id of the last one of the page before; 0 begins with the newest.
        :param limit: of this page, 1 to :data:`MAX_PAGE`.
        :raises DatabaseError: the database refused.
        """
        query = select(RefusalRow).order_by(RefusalRow.id.desc()).limit(max(1, min(limit, MAX_PAGE)))
        if server is not None:
            query = query.where(RefusalRow.server == server)
        if project is not None:
            query = query.where(RefusalRow.project == project)
        if after:
            query = query.where(RefusalRow.id < after)
        with self._database.reader() as session:
            return tuple(_from_row(row) for row in session.scalars(query))

    def _check_rate(self, session: Session, server: str, now: int) -> None:
        # Rows that a clock put into the future count as well, or they would open the gate.
        lately = select(func.count()).select_from(RefusalRow).where(RefusalRow.at > now - _HOUR)
        if (session.scalar(lately.where(RefusalRow.server == server)) or 0) >= self._limits.server_hour:
            raise RefusalError(f"too many refusals of server {server} within the hour")
        if (session.scalar(lately) or 0) >= self._limits.hour:
            raise RefusalError("too many refusals within the hour", "see the log of nova-scheduler")

    def _prune(self, session: Session, now: int) -> None:
        session.execute(delete(RefusalRow).where(RefusalRow.at < now - self._limits.age))
        newest = select(RefusalRow.id).order_by(RefusalRow.id.desc()).offset(self._limits.rows).limit(1)
        last = session.scalar(newest)
        if last is not None:
            session.execute(delete(RefusalRow).where(RefusalRow.id <= last))


def _row(refusal: object, now: int) -> RefusalRow:
    try:
        members = encoding.exact_keys(refusal, _MEMBERS, "a refusal")
        encoding.integer(members, "at")
        server = encoding.uuid(members, "server")
        hosts = [_host(item) for item in encoding.items(members, "hosts", MAX_HOSTS)]
        level = encoding.text(members, "level", 16)
        if level not in LEVELS:
            raise EncodingError("the level of a refusal is not one that is known")
        return RefusalRow(
            at=now,
            server=str(server),
            project=encoding.text(members, "project", MAX_PROJECT),
            request=encoding.text(members, "request", MAX_REQUEST),
            level=level,
            total=encoding.integer(members, "total", len(hosts), MAX_TOTAL),
            hosts=json.dumps(hosts),
        )
    except EncodingError as error:
        raise RefusalError(f"refusal dropped: {error.message}") from error


def _host(item: Any) -> tuple[str, str]:
    members: Mapping[str, Any] = encoding.exact_keys(item, ("host", "reason"), "a refused host")
    return encoding.text(members, "host", MAX_HOST), encoding.text(members, "reason", MAX_REASON)


def _from_row(row: RefusalRow) -> Refusal:
    hosts = tuple(RefusedHost(host, reason) for host, reason in json.loads(row.hosts))
    return Refusal(row.id, row.at, row.server, row.project, row.request, row.level, row.total, hosts)
