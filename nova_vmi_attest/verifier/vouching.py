# SPDX-License-Identifier: Apache-2.0
"""Results that no evidence brings about: of hosts that an operator vouches for, and the end of those results.

Every verifier looks; the row of the host's newest result, locked, decides which of them issues. What is said
of guests is never made to last longer than the evidence made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import AttestationResult, Verdict
from nova_vmi_attest.records import overrides as records
from nova_vmi_attest.records.overrides import Override, Overrides
from nova_vmi_attest.verifier.overrides import is_overridden, overridden, unseen, withdrawn
from nova_vmi_attest.verifier.results import Results

LOG = log.getLogger(__name__)

# A host that answers has a new result long before this part of the last one's lifetime is all that is left.
_LAST_PART = 10


class Vouching:
    """Keeps the results of hosts with an override as the override says.

    :param lifetime: seconds for which a result is valid.
    :param publish: sends a host's signed result to the relying parties.
    """

    def __init__(
        self, database: Database, results: Results, lifetime: int, publish: Callable[[str, str], None]
    ) -> None:
        self._database = database
        self._results = results
        self._lifetime = lifetime
        self._publish = publish

    def look(self, now: int) -> None:
        """Issue what is due. What goes wrong with one host is logged and is no matter of the others.

        :raises DatabaseError: the overrides cannot be read.
        """
        active = {item.host: item for item in Overrides(self._database).all(now)}
        for host in sorted(active.keys() | self._ended(now)):
            try:
                with self._database.writer() as session:
                    token = self._issue(session, host, now)
            except AttestError as error:
                LOG.error("the override of host %s has no effect yet: %s", host, error)
                continue
            if token:
                self._publish(host, token)

    def _ended(self, now: int) -> set[str]:
        """The hosts with an override, in force or not, whose newest result may still say so."""
        result, override = models.ResultRow, models.OverrideRow
        wanted = (
            select(override.host)
            .join(result, result.host == override.host)
            .where(result.expires > now, result.verdict == Verdict.TRUSTED.value)
        )
        with self._database.reader() as session:
            return set(session.scalars(wanted))

    def _issue(self, session: Session, host: str, now: int) -> str:
        """The token of a new result; empty when the newest one will do."""
        row = session.get(models.ResultRow, host, with_for_update=True)
        newest = self._results.read(row.token, row.issued) if row is not None and row.expires > now else None
        # What was issued by a clock that was ahead holds for nobody: it is not lent a moment that holds.
        ahead = newest is not None and newest.issued > now + CLOCK_SKEW
        override = records.active(session, host, now)
        if newest is not None and ahead:
            newest = replace(newest, guests=(), expires=now + self._lifetime) if override is None else None
        if override is None:
            return self._end(session, newest, now)
        if newest is not None and newest.host.verdict is not Verdict.TRUSTED:
            judged, expires = overridden(newest.host, override), min(newest.expires, override.expires)
            LOG.warning("host %s: %s", host, judged.reasons[0].detail)
            return self._results.issue(session, judged, newest.guests, now, expires)
        return self._prolong(session, newest, override, now)

    def _prolong(
        self, session: Session, newest: AttestationResult | None, override: Override, now: int
    ) -> str:
        """Vouch for a host that does not answer, when its newest result is about to end."""
        expires = min(now + self._lifetime, override.expires)
        left = newest.expires - now if newest is not None else 0
        if left > self._lifetime // _LAST_PART or (newest is not None and newest.expires >= expires):
            return ""
        judged = unseen(override)
        LOG.warning("host %s: %s", override.host, judged.reasons[0].detail)
        return self._results.issue(session, judged, (), now, expires)

    def _end(self, session: Session, newest: AttestationResult | None, now: int) -> str:
        if newest is None or not is_overridden(newest.host):
            return ""
        judged = withdrawn(newest.host)
        LOG.warning("host %s is %s: its override ended", judged.host, judged.verdict)
        return self._results.issue(session, judged, newest.guests, now, newest.expires)
