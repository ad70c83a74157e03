# SPDX-License-Identifier: Apache-2.0
"""Break-glass: an operator's word for a host, against or without its evidence, for a day at most.

An override is a row, and each making and lifting of one is an audit record in the same transaction. What it
does to results is decided where they are signed (:mod:`nova_vmi_attest.verifier.overrides`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.records import audit
from nova_vmi_attest.tpm.ak_certificate import is_host_name

# The check that names an override among the reasons of a verdict, and in the audit records.
OVERRIDE = "override"
LIFT = "lift-override"

MAX_LIFETIME = 86400
MAX_REASON = 1024
_MAX_AUTHOR = 255


class OverrideError(AttestError):
    """An override cannot be made or lifted as it was asked for."""


@dataclass(frozen=True, slots=True)
class Override:
    """One override. Times are seconds since 1970; ``lifted_at`` is ``None`` until somebody lifts it."""

    host: str
    reason: str
    made_by: str
    made_at: int
    expires: int
    lifted_at: int | None = None

    def holds(self, now: int) -> bool:
        """Whether it is in force. A clock put back far behind its making ends it, and never prolongs it."""
        return self.lifted_at is None and self.made_at - CLOCK_SKEW <= now < self.expires


class Overrides:
    """The overrides in the database, one a host. NOT checked: whether the host exists, and who asks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, host: str, reason: str, made_by: str, lifetime: int, now: int) -> Override:
        """Vouch for a host from now on; an override that it has already is replaced.

        :param reason: why, for everybody who reads the verdict: 1 to 1024 printable characters.
        :param made_by: who vouches, 1 to 255 printable characters.
        :param lifetime: seconds, 1 to 86400.
        :raises OverrideError: for any other value.
        :raises DatabaseError: when the database refuses.
        """
        _check(host, reason, made_by, lifetime)
        made = Override(host, reason, made_by, now, now + lifetime)
        try:
            with self._database.writer() as session:
                row = _row(session, host)
                if row is None:
                    row = models.OverrideRow(host=host)
                    session.add(row)
                row.reason, row.made_by, row.made_at = made.reason, made.made_by, made.made_at
                row.expires, row.lifted_at = made.expires, None
                detail = f"by {made_by} for {lifetime} s: {reason}"
                audit.record(session, now, OVERRIDE, host, audit.DONE, detail)
        except DuplicateError as error:
            raise OverrideError(
                f"an override of host {host} was made at the same moment", "look again"
            ) from error
        return made

    def lift(self, host: str, made_by: str, now: int) -> Override:
        """End an override before its time.

        :returns: the override as it is now.
        :raises OverrideError: the host has none that is in force.
        :raises DatabaseError: when the database refuses.
        """
        _check_text(made_by, "who lifts an override", _MAX_AUTHOR)
        with self._database.writer() as session:
            row = _row(session, host)
            if row is None or not _override(row).holds(now):
                raise OverrideError(f"no override of host {host[:253]} is in force")
            row.lifted_at = now
            audit.record(session, now, LIFT, host, audit.DONE, f"by {made_by}")
            return _override(row)

    def active(self, host: str, now: int) -> Override | None:
        """The override of a host that is in force."""
        with self._database.reader() as session:
            return active(session, host, now)

    def all(self, now: int) -> tuple[Override, ...]:
        """Every override that is in force, by host."""
        row = models.OverrideRow
        wanted = select(row).where(row.lifted_at.is_(None), row.expires > now).order_by(row.host)
        with self._database.reader() as session:
            found = [_override(item) for item in session.scalars(wanted)]
        return tuple(item for item in found if item.holds(now))


def active(session: Session, host: str, now: int) -> Override | None:
    """:meth:`Overrides.active` within a transaction."""
    row = session.get(models.OverrideRow, host)
    # Some databases compare without regard to case; names here are compared letter for letter.
    if row is None or row.host != host:
        return None
    found = _override(row)
    return found if found.holds(now) else None


def end(session: Session, host: str, why: str, now: int) -> None:
    """End an override that is in force, if there is one, within a transaction."""
    row = session.get(models.OverrideRow, host, with_for_update=True)
    if row is not None and row.host == host and _override(row).holds(now):
        row.lifted_at = now
        audit.record(session, now, LIFT, host, audit.DONE, why)


def _row(session: Session, host: str) -> models.OverrideRow | None:
    """The row to write, locked."""
    row = session.get(models.OverrideRow, host, with_for_update=True)
    if row is not None and row.host != host:
        raise OverrideError(f"host {host} has no override, {row.host} has", "write it as Nova does")
    return row


def _check(host: str, reason: str, made_by: str, lifetime: int) -> None:
    if not isinstance(host, str) or not is_host_name(host):
        raise OverrideError(
            f"{host!r:.64} is not a host name", "use letters, digits, '.', '-' and '_', at most 253 of them"
        )
    _check_text(reason, "the reason of an override", MAX_REASON)
    _check_text(made_by, "who makes an override", _MAX_AUTHOR)
    if type(lifetime) is not int or not 1 <= lifetime <= MAX_LIFETIME:
        raise OverrideError(
            f"an override holds for 1 to {MAX_LIFETIME} seconds", "make it again when it ends"
        )


def _check_text(text: str, what: str, maximum: int) -> None:
    if not isinstance(text, str) or not text.strip() or len(text) > maximum or not text.isprintable():
        raise OverrideError(f"{what} is text of 1 to {maximum} printable characters")


def _override(row: models.OverrideRow) -> Override:
    return Override(row.host, row.reason, row.made_by, row.made_at, row.expires, row.lifted_at)
