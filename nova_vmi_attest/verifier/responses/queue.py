# SPDX-License-Identifier: Apache-2.0
"""Which responses are due, and whose turn each is: the part of the runner that lives in the database.

A change becomes rows, one for each response to it, in the transaction that moves the cursor past it, so it is
never lost and never doubled. A row is taken by an update that names what was read. A row that was taken and
not finished, because its verifier died, is free again after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, affected
from nova_vmi_attest.records.changes import Changes, NumberedChange, move
from nova_vmi_attest.records.responses import Outcome, StoredResponse, stored_response

READER = "responses"

# How many changes, and rows, are looked at in one go.
_AT_ONCE = 100
# Seconds between two attempts at the same row.
RETRY = 10
_MAX_DETAIL = 1024
# Outcomes that count against the limit: whatever may have had an effect.
_COUNTED = (Outcome.ACTING.value, Outcome.DONE.value, Outcome.FAILED.value)


@dataclass(frozen=True, slots=True)
class Limits:
    """``count`` actions of a response in ``window`` seconds; an action is over after ``patience`` seconds at
    most, or its verifier is dead.
    """

    count: int
    window: int
    patience: int


class Queue:
    """Thread-safe, and safe for several verifiers."""

    def __init__(self, database: Database, limits: Limits, history_days: int) -> None:
        self._database = database
        self._changes = Changes(database)
        self._limits = limits
        self._history = history_days * 86400

    def collect(self, responses_to: Callable[[NumberedChange], tuple[str, ...]], now: int) -> int:
        """Turn new changes into rows, a bounded number at a time; how many changes were looked at.

        :param responses_to: the names of the responses to a change.
        """
        read = self._changes.position(READER)
        items = self._changes.after(read.number, _AT_ONCE)
        if not items:
            return 0
        rows = [_row(item, name, now) for item in items for name in responses_to(item)]
        with self._database.writer() as session:
            if not move(session, READER, read, items[-1].number, now):
                return 0
            session.add_all(rows)
            old = models.ResponseRow.at < now - self._history
            session.execute(delete(models.ResponseRow).where(old))
        return len(items)

    def due(self, now: int) -> tuple[StoredResponse, ...]:
        """The rows to look at, the one first that waits longest."""
        row = models.ResponseRow
        wanted = (
            select(row)
            .where(row.outcome.in_((Outcome.PENDING.value, Outcome.ACTING.value)))
            .order_by(row.at, row.id)
            .limit(_AT_ONCE)
        )
        with self._database.reader() as session:
            found = [stored_response(item) for item in session.scalars(wanted)]
        return tuple(item for item in found if self._is_due(item, now))

    def take(self, item: StoredResponse, now: int) -> Outcome:
        """Take a row to act on it.

        :returns: ``acting`` when it is the caller's now, ``limited`` when the limit forbids it, for good;
            ``pending`` when it is not its turn, or somebody else's.
        """
        with self._database.writer() as session:
            # One at a time decides: what it counts is then not changed by another one that counts.
            _serialize(session, now)
            if self._others_acting(session, item, now):
                return Outcome.PENDING
            if self._acted(session, item, now) >= self._limits.count:
                detail = f"more than {self._limits.count} in {self._limits.window} s"
                return (
                    Outcome.LIMITED if _set(session, item, Outcome.LIMITED, detail, now) else Outcome.PENDING
                )
            taken = _set(session, item, Outcome.ACTING, item.detail, now)
            return Outcome.ACTING if taken else Outcome.PENDING

    def finish(self, item: StoredResponse, outcome: Outcome, detail: str, now: int) -> bool:
        """Note what came of a row, as it was read or taken; false when another verifier has it by now."""
        with self._database.writer() as session:
            return _set(session, item, outcome, detail, now)

    def is_first_limited(self, item: StoredResponse, now: int) -> bool:
        """Whether the limit met no other row of this response within the window: once is enough to say so."""
        row = models.ResponseRow
        same = row.response == item.response, row.outcome == Outcome.LIMITED.value, row.id != item.id
        with self._database.reader() as session:
            return not session.scalar(select(func.count()).select_from(row).where(*same, *self._recent(now)))

    def _is_due(self, item: StoredResponse, now: int) -> bool:
        passed = abs(now - item.at)
        if item.outcome is Outcome.ACTING:
            return passed > self._limits.patience
        return not item.detail or passed >= RETRY

    def _recent(self, now: int) -> tuple[ColumnElement[bool], ...]:
        """Within the window, on either side: a clock that was ahead must not fill it for as long."""
        row, window = models.ResponseRow, self._limits.window
        return row.at > now - window, row.at < now + window

    def _acted(self, session: Session, item: StoredResponse, now: int) -> int:
        row = models.ResponseRow
        same = row.response == item.response, row.outcome.in_(_COUNTED), row.id != item.id
        counted = select(func.count()).select_from(row).where(*same, *self._recent(now))
        return session.scalar(counted) or 0

    def _others_acting(self, session: Session, item: StoredResponse, now: int) -> bool:
        row = models.ResponseRow
        same = row.response == item.response, row.outcome == Outcome.ACTING.value, row.id != item.id
        young = row.at >= now - self._limits.patience, row.at <= now + self._limits.patience
        return bool(session.scalar(select(func.count()).select_from(row).where(*same, *young)))


def _row(item: NumberedChange, name: str, now: int) -> models.ResponseRow:
    return models.ResponseRow(
        at=now, response=name, change_id=item.number, subject=item.change.subject,
        outcome=Outcome.PENDING.value, detail="",
    )  # fmt: skip


def _serialize(session: Session, now: int) -> None:
    row = models.CursorRow
    session.execute(update(row).where(row.name == READER).values(updated=now))


def _set(session: Session, item: StoredResponse, outcome: Outcome, detail: str, now: int) -> bool:
    row = models.ResponseRow
    same = row.id == item.id, row.outcome == item.outcome.value, row.at == item.at
    values = {"outcome": outcome.value, "detail": detail[:_MAX_DETAIL], "at": now}
    return bool(affected(session, update(row).where(*same).values(**values)))
