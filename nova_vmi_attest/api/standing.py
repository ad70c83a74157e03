# SPDX-License-Identifier: Apache-2.0
"""Verdicts as they stand at a moment, out of the rows that the verifiers stored; a handful of queries a page.

The rules are those of the scheduler's cache: of several hosts that show a guest the worst valid verdict
counts, and what has ended is stale. A row is as true as the verifier that wrote it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, load_only

from nova_vmi_attest.db.models import GuestResultRow, ResultRow, ServerRow, VerdictChange
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.records.results import decode_reasons

_WORST_FIRST = {Verdict.UNTRUSTED: 0, Verdict.UNKNOWN: 1, Verdict.TRUSTED: 2}
Column = InstrumentedAttribute[int]
# How many keys one statement names.
_KEYS = 500


@dataclass(frozen=True, slots=True)
class Standing:
    """A verdict at a moment. Times are seconds since 1970, ``None`` for what was never seen.

    ``last`` is what a stale one said while it held; ``host`` whose result it is; ``release`` a guest's
    kernel.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    issued: int | None = None
    expires: int | None = None
    host: str = ""
    release: str = ""
    last: Verdict | None = None


NEVER_SEEN = Standing(Verdict.UNKNOWN, (Reason("never_seen", detail="no result speaks of it"),))


def of_guests(
    session: Session, guests: Collection[str], now: int, reasons: bool
) -> dict[str, tuple[Standing, ...]]:
    """For each guest, what every host says that shows it, the one that counts first.

    :param reasons: whether reasons are wanted: they are most of what a row holds.
    """
    row = GuestResultRow
    columns = [row.guest, row.host, row.verdict, row.issued, row.expires, row.release]
    wanted = load_only(*columns, *([row.reasons] if reasons else []))
    found: dict[str, list[Standing]] = {}
    for names in _chunks(guests):
        for item in session.scalars(select(row).where(row.guest.in_(names)).options(wanted)):
            found.setdefault(item.guest, []).append(_guest(item, now, reasons))
    return {guest: tuple(sorted(items, key=_weight)) for guest, items in found.items()}


def of_hosts(session: Session, hosts: Collection[str], now: int, reasons: bool) -> dict[str, Standing]:
    """What the newest result of each host says of the host itself."""
    row = ResultRow
    columns = [row.host, row.verdict, row.issued, row.expires]
    wanted = load_only(*columns, *([row.reasons] if reasons else []))
    found: dict[str, Standing] = {}
    for names in _chunks(hosts):
        for item in session.scalars(select(row).where(row.host.in_(names)).options(wanted)):
            found[item.host] = _host(item, now, reasons)
    marked = [host for host, item in found.items() if item.last is Verdict.STALE]
    said = _said_before(session, marked)
    return found | {host: replace(found[host], last=said.get(host)) for host in marked}


def _said_before(session: Session, hosts: Collection[str]) -> dict[str, Verdict]:
    """What the last results of hosts said before the verifiers marked them as stale."""
    row = VerdictChange
    said: dict[str, Verdict] = {}
    for names in _chunks(hosts):
        stale = row.kind == "host", row.subject.in_(names), row.verdict == Verdict.STALE.value
        newest = select(func.max(row.id)).where(*stale).group_by(row.subject)
        for host, previous in session.execute(select(row.subject, row.previous).where(row.id.in_(newest))):
            if previous:
                said[host] = Verdict(previous)
    return said


def guest_is(verdict: Verdict, now: int) -> ColumnElement[bool]:
    """A condition on servers: that :func:`of_guests` says this verdict first."""
    row = GuestResultRow
    shown = row.guest == ServerRow.guest

    def some(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(shown, *conditions)

    valid = _valid(row.issued, row.expires, now)
    untrusted = some(valid, row.verdict == Verdict.UNTRUSTED.value)
    unknown = some(valid, row.verdict == Verdict.UNKNOWN.value)
    conditions = {
        Verdict.UNTRUSTED: untrusted,
        Verdict.UNKNOWN: or_(~some(), and_(unknown, ~untrusted)),
        Verdict.TRUSTED: and_(some(valid), ~unknown, ~untrusted),
        Verdict.STALE: and_(some(), ~some(valid)),
    }
    return conditions[verdict]


def host_is(verdict: Verdict, now: int) -> ColumnElement[bool]:
    """A condition on results: that :func:`of_hosts` says this verdict."""
    valid = _valid(ResultRow.issued, ResultRow.expires, now)
    if verdict is Verdict.STALE:
        return ~valid
    return and_(valid, ResultRow.verdict == verdict.value)


def _valid(issued: Column, expires: Column, now: int) -> ColumnElement[bool]:
    return and_(expires > now, issued <= now + CLOCK_SKEW)


def _holds(issued: int, expires: int, now: int) -> bool:
    return issued - CLOCK_SKEW <= now < expires


def _guest(row: GuestResultRow, now: int, reasons: bool) -> Standing:
    found = decode_reasons(row.reasons) if reasons else ()
    return _at(Verdict(row.verdict), found, (row.issued, row.expires), row.host, row.release, now)


def _host(row: ResultRow, now: int, reasons: bool) -> Standing:
    found = decode_reasons(row.reasons) if reasons else ()
    return _at(Verdict(row.verdict), found, (row.issued, row.expires), row.host, "", now)


def _at(
    verdict: Verdict, reasons: tuple[Reason, ...], times: tuple[int, int], host: str, release: str, now: int
) -> Standing:
    if _holds(*times, now):
        return Standing(verdict, reasons, *times, host, release)
    return Standing(Verdict.STALE, reasons, *times, host, release, verdict)


def _weight(standing: Standing) -> tuple[bool, int, int]:
    """Valid before stale; of valid ones the worst, of stale ones the newest first."""
    stale = standing.last is not None
    return stale, -(standing.issued or 0) if stale else 0, _WORST_FIRST[standing.last or standing.verdict]


def _chunks(names: Collection[str]) -> list[Sequence[str]]:
    ordered = sorted(names)
    return [ordered[start : start + _KEYS] for start in range(0, len(ordered), _KEYS)]
