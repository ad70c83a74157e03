# SPDX-License-Identifier: Apache-2.0
"""When a host's last result ended and no other came, that is a change of its verdict like any other.

Relying parties need not be told: they see the expiry. It is for those who wait for changes, and for the
responses. Its guests are stale with it and get no changes of their own.
"""

from __future__ import annotations

from sqlalchemy import select, update

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, affected
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records import changes

# How many hosts one transaction marks.
_AT_ONCE = 200


class Staleness:
    """Marks the newest results of known hosts as stale once they ended.

    :param lifetime: seconds for which a result is valid.
    :param started: when this verifier began to challenge, in seconds of the monotonic clock. Until a whole
        lifetime later nothing is marked: whatever is stale by then may be so because no verifier ran.
    """

    def __init__(self, database: Database, lifetime: int, started: float) -> None:
        self._database = database
        self._lifetime = lifetime
        self._started = started

    def is_settled(self, monotonic: float) -> bool:
        """Whether this verifier has run for long enough to blame a host for its silence."""
        return monotonic - self._started >= self._lifetime

    def look(self, now: int, monotonic: float) -> tuple[str, ...]:
        """Mark what ended; the hosts that this verifier marked.

        :raises DatabaseError: when the database refuses.
        """
        if not self.is_settled(monotonic):
            return ()
        # Another verifier's clock may be ahead of ours, and it is its result.
        row, known, ended = models.ResultRow, models.KnownHost, now - CLOCK_SKEW
        over = row.expires <= ended, row.verdict != Verdict.STALE.value
        wanted = select(row).join(known, known.name == row.host).where(*over).order_by(row.host)
        marked = []
        with self._database.writer() as session:
            for found in session.scalars(wanted.limit(_AT_ONCE)).all():
                host, previous = found.host, found.verdict
                same = row.host == host, row.sequence == found.sequence, *over
                if affected(session, update(row).where(*same).values(verdict=Verdict.STALE.value)):
                    marked.append((host, previous))
            rows = [
                models.VerdictChange(
                    at=now, kind="host", subject=host, host=host, previous=previous,
                    verdict=Verdict.STALE.value, reasons="[]",
                )
                for host, previous in marked
            ]  # fmt: skip
            changes.add(session, rows, now)
        return tuple(host for host, _ in marked)
