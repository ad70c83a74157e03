# SPDX-License-Identifier: Apache-2.0
"""Numbered marks that verifiers share: how far something has come, and whose turn it is.

A turn is taken by an update that names the mark as it was read, so of several verifiers one has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import update

from nova_vmi_attest.db.models import CursorRow
from nova_vmi_attest.db.session import Database, DuplicateError, affected


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark and when it was set, in seconds since 1970."""

    position: int
    updated: int


class Marks:
    """Every method raises :class:`DatabaseError` when the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> Mark | None:
        """A mark; ``None`` when it was never set."""
        with self._database.reader() as session:
            row = session.get(CursorRow, name)
            return Mark(row.position, row.updated) if row else None

    def set(self, name: str, position: int, now: int) -> None:
        """Set a mark, whatever it was."""
        self._move(name, self.get(name), position, now, swap=False)

    def take_turn(self, name: str, every: int, now: int) -> bool:
        """Take a turn that comes every so many seconds; false when it is not due or somebody else's.

        A clock that was ahead and was put right must not hold up everybody for as long as it was ahead.
        """
        mark = self.get(name)
        if mark is not None and 0 <= now - mark.position < every:
            return False
        return self._move(name, mark, now, now, swap=True)

    def _move(self, name: str, read: Mark | None, position: int, now: int, *, swap: bool) -> bool:
        row = CursorRow
        try:
            with self._database.writer() as session:
                if read is None:
                    session.add(row(name=name, position=position, updated=now))
                    return True
                where = (row.name == name, row.position == read.position) if swap else (row.name == name,)
                moved = update(row).where(*where).values(position=position, updated=now)
                return bool(affected(session, moved))
        except DuplicateError:
            return False
