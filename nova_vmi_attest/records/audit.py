# SPDX-License-Identifier: Apache-2.0
"""The authority's own record: every certificate issued, every registration, every refusal.

Refusals are cheap to provoke for anybody on the bus, so only a bounded number of them a minute becomes rows;
what is left out is counted in the next row, and all of them are in the service's log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from nova_vmi_attest.db.models import AuditRecord
from nova_vmi_attest.db.session import Database

ISSUED = "issued"
REFUSED = "refused"
DONE = "done"

_WINDOW = 60
_REFUSALS_PER_WINDOW = 120
_MAX_DETAIL = 1024
_MAX_HOST = 255


def record(session: Session, at: int, action: str, host: str, outcome: str, detail: str) -> None:
    """Add one row to the caller's transaction. Text is cut to what the table holds."""
    session.add(
        AuditRecord(
            at=at, action=action, host_name=_printable(host)[:_MAX_HOST], outcome=outcome,
            detail=_printable(detail)[:_MAX_DETAIL],
        )
    )  # fmt: skip


class RefusalLog:
    """Records refusals, at most 120 a minute. Safe for several threads."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._window = 0
        self._count = 0
        self._left_out = 0

    def refused(self, action: str, host: str, reason: str) -> None:
        """Record that ``action`` was refused to whoever claimed to be ``host``.

        :raises DatabaseError: the database refused the row.
        """
        now = int(self._clock())
        with self._lock:
            if now // _WINDOW != self._window:
                self._window, self._count = now // _WINDOW, 0
            if self._count >= _REFUSALS_PER_WINDOW:
                self._left_out += 1
                return
            self._count += 1
            left_out, self._left_out = self._left_out, 0
        if left_out:
            reason = f"{reason} [{left_out} earlier refusals were not recorded]"
        with self._database.writer() as session:
            record(session, now, action, host, REFUSED, reason)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)
