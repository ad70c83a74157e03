# SPDX-License-Identifier: Apache-2.0
"""The record of responses: what was done because a verdict changed, and what was not, and why."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqlalchemy import select

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database


class Outcome(enum.StrEnum):
    """Where a response stands. ``pending`` and ``acting`` are on the way; the others are the end of it.

    ``moot``: there was nothing to respond to any more. ``limited``: it would have been one too many.
    """

    PENDING = "pending"
    ACTING = "acting"
    DONE = "done"
    FAILED = "failed"
    LIMITED = "limited"
    MOOT = "moot"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response to one change. ``at`` is when it came to ``outcome``; ``detail`` is for people."""

    id: int
    at: int
    response: str
    change: int
    subject: str
    outcome: Outcome
    detail: str


class ResponseReader:
    """Reads the record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, subject: str | None = None, limit: int = 100) -> tuple[StoredResponse, ...]:
        """The newest responses first, all or those to one host or guest."""
        row = models.ResponseRow
        wanted = select(row).order_by(row.id.desc()).limit(limit)
        if subject is not None:
            wanted = wanted.where(row.subject == subject)
        with self._database.reader() as session:
            return tuple(stored_response(item) for item in session.scalars(wanted))


def stored_response(row: models.ResponseRow) -> StoredResponse:
    """The response that a row holds."""
    return StoredResponse(
        row.id, row.at, row.response, row.change_id, row.subject, Outcome(row.outcome), row.detail
    )
