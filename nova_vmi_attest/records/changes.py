# SPDX-License-Identifier: Apache-2.0
"""Changes of verdicts as a queue: appended in one order, read by readers that remember how far they came.

Numbers that a database gives out are not committed in their order when several verifiers write, and a reader
that has passed a number never looks back. So who appends takes its turn first, by an update of one row; the
next one waits for, or loses against, the end of that transaction. A reader's position moves by an update that
names the old position: of several readers under one name one wins, and the others look again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, DuplicateError, affected
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.results import Change, stored_change

# The row whose update is the turn to append.
_TURN = "verdict_changes"


@dataclass(frozen=True, slots=True)
class NumberedChange:
    """A change with its number; later changes have higher ones, with gaps. ``project`` is that of a guest as
    Nova said, empty when it is not known.
    """

    number: int
    change: Change
    project: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """When the newest result of a change's subject was issued by the same host, and when it ends."""

    issued: int
    expires: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: the number of the last change that it is done with, and when it was; 0 for
    a reader that has not begun.
    """

    number: int
    updated: int


def add(session: Session, rows: Sequence[models.VerdictChange], now: int) -> None:
    """Append changes within the caller's transaction, which is to end soon.

    :raises DuplicateError: at the end of the transaction, when two begin the queue at once; try again.
    """
    if not rows:
        return
    turn = models.CursorRow
    moved = update(turn).where(turn.name == _TURN).values(position=turn.position + 1, updated=now)
    if not affected(session, moved):
        session.add(turn(name=_TURN, position=1, updated=now))
        session.flush()
    session.add_all(rows)


def move(session: Session, reader: str, read: Position, number: int, now: int) -> bool:
    """Move a reader on within the caller's transaction; false when it is not where it was read to be."""
    row = models.CursorRow
    where = row.name == reader, row.position == read.number, row.updated == read.updated
    return bool(affected(session, update(row).where(*where).values(position=number, updated=now)))


class Changes:
    """Reads the queue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def position(self, reader: str) -> Position:
        """Where a reader is. A new one begins behind the newest change: what was before it is history."""
        found = self._find(reader)
        if found is not None:
            return found
        newest = self.newest()
        try:
            with self._database.writer() as session:
                session.add(models.CursorRow(name=reader, position=newest, updated=0))
            return Position(newest, 0)
        except DuplicateError:
            return self._find(reader) or Position(newest, 0)

    def newest(self) -> int:
        """The highest number; 0 for an empty queue."""
        with self._database.reader() as session:
            return session.scalar(select(func.max(models.VerdictChange.id))) or 0

    def after(self, number: int, limit: int) -> tuple[NumberedChange, ...]:
        """The next changes, in order."""
        row = models.VerdictChange
        wanted = select(row).where(row.id > number).order_by(row.id).limit(limit)
        with self._database.reader() as session:
            return tuple(_numbered(session, item) for item in session.scalars(wanted).all())

    def get(self, number: int) -> NumberedChange | None:
        """One change; ``None`` when it was dropped with its age."""
        with self._database.reader() as session:
            row = session.get(models.VerdictChange, number)
            return _numbered(session, row) if row else None

    def is_first(self, item: NumberedChange) -> bool:
        """Whether there was no verdict on the subject before, on whatever host it was."""
        row = models.VerdictChange
        change = item.change
        if change.previous is not None:
            return False
        same = row.kind == change.kind, row.subject == change.subject
        with self._database.reader() as session:
            found = session.scalar(select(row.id).where(*same, row.id < item.number).limit(1))
            return found is None

    def later(self, item: NumberedChange) -> NumberedChange | None:
        """The newest later change of the same subject on the same host to anything but stale: silence takes
        nothing back.
        """
        row = models.VerdictChange
        change = item.change
        same = row.kind == change.kind, row.subject == change.subject, row.host == change.host
        later = row.id > item.number, row.verdict != Verdict.STALE.value
        wanted = select(row).where(*same, *later).order_by(row.id.desc()).limit(1)
        with self._database.reader() as session:
            found = session.scalar(wanted)
            return _numbered(session, found) if found else None

    def standing(self, item: NumberedChange) -> Standing | None:
        """The newest result of the subject on the same host; ``None`` when there is none any more."""
        change = item.change
        with self._database.reader() as session:
            row = (
                session.get(models.GuestResultRow, (change.subject, change.host))
                if change.kind == "guest"
                else session.get(models.ResultRow, change.subject)
            )
            return Standing(row.issued, row.expires) if row else None

    def _find(self, reader: str) -> Position | None:
        with self._database.reader() as session:
            row = session.get(models.CursorRow, reader)
            return Position(row.position, row.updated) if row else None


def _numbered(session: Session, row: models.VerdictChange) -> NumberedChange:
    server = session.get(models.ServerRow, row.subject) if row.kind == "guest" else None
    return NumberedChange(row.id, stored_change(row), server.project if server else "")
