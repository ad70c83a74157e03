# SPDX-License-Identifier: Apache-2.0
"""The hosts that announced themselves, and where the accepted evidence of each left its TPM and log.

Several verifiers work on the same rows. What only one of them may do is decided by an update that names what
it read: the turn to challenge a host by ``challenged_at``, the step of a host's state by ``version``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, affected
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.verifier.appraisal import HostState

_MAX_ERROR = 1024


class StateConflictError(AttestError):
    """Another verifier has moved the host's state since it was read."""


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A host to challenge. Times are seconds since 1970, ``None`` for never."""

    name: str
    tpm: str
    announced_at: int
    challenged_at: int | None
    answered_at: int | None
    last_error: str


@dataclass(frozen=True, slots=True)
class StoredState:
    """A host's state and the version of its row; version 0 means that there is none yet."""

    state: HostState | None
    version: int


class Hosts:
    """The verifiers' memory of hosts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember(self, name: str, tpm: str, certificate: str, now: int) -> bool:
        """Note an announcement whose certificate the caller has verified.

        :returns: whether the host, or its TPM, is new and should be challenged at once.
        """
        with self._database.writer() as session:
            row = session.get(models.KnownHost, name)
            if row is None:
                row = models.KnownHost(name=name, tpm=tpm, certificate=certificate)
                row.announced_at, row.last_error = now, ""
                session.add(row)
                return True
            is_new = row.tpm != tpm
            row.tpm, row.certificate, row.announced_at = tpm, certificate, now
            if is_new:
                row.challenged_at = None
            return is_new

    def all(self) -> tuple[KnownHost, ...]:
        """Every known host by name. Read often, so without the certificates."""
        row = models.KnownHost
        columns = row.name, row.tpm, row.announced_at, row.challenged_at, row.answered_at, row.last_error
        with self._database.reader() as session:
            return tuple(KnownHost(*found) for found in session.execute(select(*columns).order_by(row.name)))

    def get(self, name: str) -> KnownHost | None:
        """One host, or ``None`` when it never announced itself."""
        with self._database.reader() as session:
            row = session.get(models.KnownHost, name)
            return _known(row) if row else None

    def claim(self, host: KnownHost, now: int) -> bool:
        """Take the turn to challenge ``host``; false when another verifier took it first."""
        row = models.KnownHost
        with self._database.writer() as session:
            statement = (
                update(row)
                .where(row.name == host.name, row.challenged_at.is_not_distinct_from(host.challenged_at))
                .values(challenged_at=now)
            )
            return bool(affected(session, statement))

    def challenged(self, name: str, now: int) -> None:
        """Note that the host was challenged out of turn."""
        row = models.KnownHost
        with self._database.writer() as session:
            session.execute(update(row).where(row.name == name).values(challenged_at=now))

    def note_error(self, name: str, message: str) -> None:
        """Keep the reason why evidence in the name of a known host was refused."""
        row = models.KnownHost
        with self._database.writer() as session:
            session.execute(update(row).where(row.name == name).values(last_error=message[:_MAX_ERROR]))

    def state(self, name: str) -> StoredState:
        """The host's state after its last accepted evidence."""
        with self._database.reader() as session:
            row = session.get(models.HostState, name)
            return StoredState(_state(row), row.version) if row else StoredState(None, 0)

    def since(self, name: str) -> int:
        """The number of the first log record that is wanted from the host, given the TPM that it
        announced.
        """
        state, known = self.state(name).state, self.get(name)
        return state.recnum + 1 if state and known and known.tpm == state.tpm else 0

    def revoked(self, name: str, now: int) -> frozenset[int]:
        """Serial numbers of the host's certificates that were withdrawn and have not ended by themselves.

        Known here only where the enrolment authority uses the same database.
        """
        row = models.AkCertificate
        withdrawn = row.host_name == name, row.revoked_at.is_not(None), row.not_after >= now
        with self._database.reader() as session:
            return frozenset(
                int(serial, 16) for serial in session.scalars(select(row.serial).where(*withdrawn))
            )

    def forget(self, name: str) -> bool:
        """Drop a host with its state, for a host that is gone or whose log was lost; false when unknown.

        Protection against its older evidence then rests on challenges alone until it answers again.
        """
        with self._database.writer() as session:
            for row in (models.ChallengeRow, models.GuestResultRow, models.BatchRow):
                session.execute(delete(row).where(row.host == name))
            gone = affected(session, delete(models.HostState).where(models.HostState.host == name))
            gone += affected(session, delete(models.KnownHost).where(models.KnownHost.name == name))
            return bool(gone)


def answered(session: Session, name: str, now: int) -> None:
    """Note that evidence was attributed to the host, within the caller's transaction."""
    row = models.KnownHost
    session.execute(update(row).where(row.name == name).values(answered_at=now, last_error=""))


def advance(session: Session, name: str, read: StoredState, new: HostState) -> None:
    """Move the host's state on, within the caller's transaction: compare and swap on the version.

    :raises StateConflictError: when the row is not the one that was read.
    :raises DuplicateError: when the row appeared since (at the end of the transaction).
    """
    values = {
        "tpm": new.tpm,
        "reset_count": new.reset_count,
        "restart_count": new.restart_count,
        "clock": new.clock,
        "recnum": new.recnum,
        "pcr_value": new.pcr_value.hex(),
        "head": new.head.hex(),
        "version": read.version + 1,
    }
    if read.version == 0:
        session.add(models.HostState(host=name, **values))
        return
    row = models.HostState
    swap = update(row).where(row.host == name, row.version == read.version).values(**values)
    if not affected(session, swap):
        raise StateConflictError(f"the state of host {name} moved on while its evidence was appraised")


def _known(row: models.KnownHost) -> KnownHost:
    return KnownHost(row.name, row.tpm, row.announced_at, row.challenged_at, row.answered_at, row.last_error)


def _state(row: models.HostState) -> HostState:
    return HostState(
        tpm=row.tpm,
        reset_count=row.reset_count,
        restart_count=row.restart_count,
        clock=row.clock,
        recnum=row.recnum,
        pcr_value=bytes.fromhex(row.pcr_value),
        head=bytes.fromhex(row.head),
    )
