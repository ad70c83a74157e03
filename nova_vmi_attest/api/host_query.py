# SPDX-License-Identifier: Apache-2.0
"""Hosts out of three tables: who is registered, who announced itself, of whom there is a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, union
from sqlalchemy.orm import Session

from nova_vmi_attest.api import standing
from nova_vmi_attest.api.standing import NEVER_SEEN, Standing
from nova_vmi_attest.db.models import GuestResultRow, Host, KnownHost, OverrideRow, ResultRow, ServerRow
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.overrides import Override

_MOST_STRANGERS = 100


@dataclass(frozen=True, slots=True)
class HostView:
    """All that is known of one host. Times are seconds since 1970, ``None`` for never."""

    name: str
    standing: Standing
    override: Override | None
    ek_digest: str
    registered_at: int | None
    announced_at: int | None
    challenged_at: int | None
    answered_at: int | None
    last_error: str


def names(session: Session, after: str, limit: int, verdict: Verdict | None, now: int) -> list[str]:
    """The names that follow ``after`` in the order of the database, at most ``limit``."""
    result = select(ResultRow.host.label("name"))
    if verdict is not None:
        result = result.where(standing.host_is(verdict, now))
    parts = [result]
    if verdict in (None, Verdict.UNKNOWN):
        # Who never sent evidence is unknown.
        silent = [select(Host.name.label("name")), select(KnownHost.name.label("name"))]
        tables = (Host.name, KnownHost.name)
        if verdict is not None:
            seen = [select(ResultRow.host).where(ResultRow.host == name).exists() for name in tables]
            silent = [part.where(~there) for part, there in zip(silent, seen, strict=True)]
        parts += silent
    every = union(*parts).subquery()
    wanted = select(every.c.name).order_by(every.c.name).limit(limit)
    if after:
        wanted = wanted.where(every.c.name > after)
    return list(session.scalars(wanted))


def views(session: Session, wanted: Sequence[str], now: int, reasons: bool) -> list[HostView]:
    """The hosts of these names that there are, in the order of the names."""
    results = standing.of_hosts(session, wanted, now, reasons)
    registered = {row.name: row for row in session.scalars(select(Host).where(Host.name.in_(wanted)))}
    known = {row.name: row for row in session.scalars(select(KnownHost).where(KnownHost.name.in_(wanted)))}
    overrides = {
        row.host: found
        for row in session.scalars(select(OverrideRow).where(OverrideRow.host.in_(wanted)))
        if (found := _override(row)).holds(now)
    }
    there = results.keys() | registered.keys() | known.keys()
    return [
        _view(name, results.get(name), registered.get(name), known.get(name), overrides.get(name))
        for name in wanted
        if name in there
    ]


def guests(session: Session, host: str) -> tuple[dict[str, int], list[str]]:
    """How many guests the host's newest result has, by verdict, and some that Nova does not know."""
    row = GuestResultRow
    counts = select(row.verdict, func.count()).where(row.host == host).group_by(row.verdict)
    strangers = (
        select(row.guest)
        .outerjoin(ServerRow, ServerRow.guest == row.guest)
        .where(row.host == host, (ServerRow.guest.is_(None)) | (ServerRow.deleted_at.is_not(None)))
        .order_by(row.guest)
        .limit(_MOST_STRANGERS)
    )
    return {item[0]: item[1] for item in session.execute(counts)}, list(session.scalars(strangers))


def _view(
    name: str,
    result: Standing | None,
    registered: Host | None,
    known: KnownHost | None,
    override: Override | None,
) -> HostView:
    digest = registered.ek_digest if registered else ""
    return HostView(
        name=name,
        standing=result or NEVER_SEEN,
        override=override,
        ek_digest=digest,
        registered_at=registered.registered_at if registered else None,
        announced_at=known.announced_at if known else None,
        challenged_at=known.challenged_at if known else None,
        answered_at=known.answered_at if known else None,
        last_error=known.last_error if known else "",
    )


def _override(row: OverrideRow) -> Override:
    return Override(row.host, row.reason, row.made_by, row.made_at, row.expires, row.lifted_at)
