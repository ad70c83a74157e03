# SPDX-License-Identifier: Apache-2.0
"""Results: numbered per host, signed, stored as the newest, and every change of a verdict kept as history.

All of it happens within the transaction in which the evidence was accepted, so a result that exists is one
that the host's state agrees with. Publishing comes after the commit and may be lost: relying parties ask for
what they missed, and results end by themselves.
"""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from oslo_log import log
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    ResultError,
    Verdict,
    sign_result,
    verify_result,
)
from nova_vmi_attest.records import changes, overrides
from nova_vmi_attest.records.results import ResultReader, encode_reasons
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.overrides import overridden

LOG = log.getLogger(__name__)

_DAY = 86400
# What is left of the reasons when the result of a host with very many bad guests would be too large to send.
_FEW_REASONS = 2


class Results(ResultReader):
    """Signs and keeps results.

    :param lifetime: seconds for which a result is valid.
    :param history_days: how long changes are kept.
    """

    def __init__(
        self,
        database: Database,
        key: EllipticCurvePrivateKey,
        audience: str,
        lifetime: int,
        history_days: int,
    ) -> None:
        super().__init__(database)
        self._key = key
        self._audience = audience
        self._lifetime = lifetime
        self._history = history_days * _DAY

    def record(self, session: Session, appraisal: Appraisal, now: int) -> str:
        """Make, sign and store the result of an attributed appraisal, within the caller's transaction.

        An untrusted host for which an operator vouches is trusted with a reason that says so, and no longer
        than the operator does (see :mod:`.overrides`).

        :returns: the token to publish after the transaction.
        :raises ResultError: when the result cannot be signed.
        """
        host, expires = appraisal.host, now + self._lifetime
        override = overrides.active(session, host.host, now)
        if override is not None and (judged := overridden(host, override)) is not host:
            LOG.warning("host %s is %s, but %s", host.host, host.verdict, judged.reasons[0].detail)
            host, expires = judged, min(expires, override.expires)
        return self.issue(session, host, appraisal.guests, now, expires)

    def issue(
        self, session: Session, host: HostResult, guests: tuple[GuestResult, ...], now: int, expires: int
    ) -> str:
        """Sign and store the next result of a host, within the caller's transaction.

        :param guests: all that the host shows, ascending by UUID bytes.
        :returns: the token to publish after the transaction.
        :raises ResultError: when the result cannot be signed.
        """
        row = session.get(models.ResultRow, host.host, with_for_update=True)
        result = AttestationResult(
            host=host, guests=guests, issued=now, expires=expires, sequence=row.sequence + 1 if row else 1
        )
        token = self._sign(result)
        previous = Verdict(row.verdict) if row else None
        changed = (
            [] if previous is host.verdict else [_change(now, "host", host.host, host.host, previous, host)]
        )
        if row is None:
            row = models.ResultRow(host=host.host)
            session.add(row)
        row.sequence, row.verdict, row.token = result.sequence, host.verdict.value, token
        row.reasons = encode_reasons(host.reasons)
        row.issued, row.expires = result.issued, result.expires
        changed += self._record_guests(session, result)
        changes.add(session, changed, now)
        session.execute(delete(models.VerdictChange).where(models.VerdictChange.at < now - self._history))
        return token

    def read(self, token: str, issued: int) -> AttestationResult | None:
        """The contents of a result of ours; ``None`` when it is not signed with the key that we have now.

        :param issued: when it was issued, in seconds since 1970.
        """
        try:
            return verify_result(token, [self._key.public_key()], self._audience, issued)
        except ResultError:
            return None

    def _sign(self, result: AttestationResult) -> str:
        try:
            return sign_result(result, self._key, self._audience)
        except ResultError:
            few = tuple(replace(guest, reasons=guest.reasons[:_FEW_REASONS]) for guest in result.guests)
            return sign_result(replace(result, guests=few), self._key, self._audience)

    def _record_guests(self, session: Session, result: AttestationResult) -> list[models.VerdictChange]:
        """The guests of this result are on this host now, and no others. What another host says of them
        stays: a host must not replace the verdict on a guest that is elsewhere.

        :returns: the verdicts that changed.
        """
        changed = []
        host = result.host.host
        names = {str(guest.guest) for guest in result.guests}
        rows = session.scalars(select(models.GuestResultRow).where(models.GuestResultRow.host == host))
        known = {row.guest: row for row in rows}
        for name in known.keys() - names:
            session.delete(known[name])
        for guest in result.guests:
            name = str(guest.guest)
            row = known.get(name)
            previous = Verdict(row.verdict) if row else None
            if previous is not guest.verdict:
                changed.append(_change(result.issued, "guest", name, host, previous, guest))
            if row is None:
                row = models.GuestResultRow(guest=name, host=host)
                session.add(row)
            row.verdict, row.reasons = guest.verdict.value, encode_reasons(guest.reasons)
            row.sequence, row.issued, row.expires = result.sequence, result.issued, result.expires
            row.release = guest.release
        return changed


def _change(
    at: int, kind: str, subject: str, host: str, previous: Verdict | None, result: HostResult | GuestResult
) -> models.VerdictChange:
    return models.VerdictChange(
        at=at,
        kind=kind,
        subject=subject,
        host=host,
        previous=previous.value if previous else "",
        verdict=result.verdict.value,
        reasons=encode_reasons(result.reasons),
    )
