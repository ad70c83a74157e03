# SPDX-License-Identifier: Apache-2.0
"""Reads what the verifiers stored: the newest result of every host and guest, and the history of verdicts.

A row is as true as the verifier that wrote it; only the signed token can be checked by somebody else.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from sqlalchemy import func, select

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.tpm.ak_certificate import is_host_name

# How many results, and bytes of them, travel in one message; one result may be larger.
_PAGE_ROWS = 256
_PAGE_BYTES = 4 << 20


class PageRequestError(AttestError):
    """Results were asked for in a way that makes no sense."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The newest result of a host; ``token`` is the signed one. Times are seconds since 1970."""

    host: str
    sequence: int
    verdict: Verdict
    reasons: tuple[Reason, ...]
    issued: int
    expires: int
    token: str


@dataclass(frozen=True, slots=True)
class StoredGuest:
    """The newest verdict on a guest by one host. Two hosts may show one guest: during a migration, or because
    one of them shows a decoy.
    """

    guest: uuid.UUID
    host: str
    verdict: Verdict
    reasons: tuple[Reason, ...]
    issued: int
    expires: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a verdict. ``kind`` is ``host`` or ``guest``; ``previous`` is ``None`` for the first."""

    at: int
    kind: str
    subject: str
    host: str
    previous: Verdict | None
    verdict: Verdict
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """An accepted batch, encoded, and the log PCR before its last quoted record."""

    batch: bytes
    pcr_before: bytes


class ResultReader:
    """Reads what is stored; needs no key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, host: str) -> StoredResult | None:
        """The newest result of one host, valid or not."""
        with self._database.reader() as session:
            row = session.get(models.ResultRow, host)
            return _stored(row) if row else None

    def all(self) -> tuple[StoredResult, ...]:
        """The newest result of every host by name, valid or not."""
        with self._database.reader() as session:
            rows = session.scalars(select(models.ResultRow).order_by(models.ResultRow.host))
            return tuple(_stored(row) for row in rows)

    def valid_tokens(self, after: str, now: int) -> tuple[list[str], str]:
        """The signed results that have not expired of the hosts whose names follow ``after``.

        They are as many as one message may hold; the second value is where to go on, empty at the end.

        :raises PageRequestError: ``after`` is neither empty nor a host name.
        """
        if after != "" and not (isinstance(after, str) and is_host_name(after)):
            raise PageRequestError("the name to begin after is no host name")
        row = models.ResultRow
        wanted = row.host > after, row.expires > now
        sizes = select(row.host, func.length(row.token)).where(*wanted).order_by(row.host).limit(_PAGE_ROWS)
        with self._database.reader() as session:
            names: list[str] = []
            total = 0
            for host, size in session.execute(sizes):
                total += size
                if names and total > _PAGE_BYTES:
                    break
                names.append(host)
            tokens = select(row.token).where(row.host.in_(names)).order_by(row.host)
            return list(session.scalars(tokens)), names[-1] if names else ""

    def guests(self, host: str | None = None) -> tuple[StoredGuest, ...]:
        """The newest verdicts on every guest, or on those of one host."""
        row = models.GuestResultRow
        statement = select(row).order_by(row.guest, row.host)
        if host is not None:
            statement = statement.where(row.host == host)
        with self._database.reader() as session:
            return tuple(_stored_guest(row) for row in session.scalars(statement))

    def history(self, subject: str | None = None, limit: int = 100) -> tuple[Change, ...]:
        """The newest changes first, of everything or of one host or guest."""
        statement = select(models.VerdictChange).order_by(models.VerdictChange.id.desc()).limit(limit)
        if subject is not None:
            statement = statement.where(models.VerdictChange.subject == subject)
        with self._database.reader() as session:
            return tuple(stored_change(row) for row in session.scalars(statement))

    def batch_of(self, guest: uuid.UUID) -> StoredBatch | None:
        """The newest accepted batch of the host that showed the guest last."""
        with self._database.reader() as session:
            row = models.GuestResultRow
            newest = select(row.host).where(row.guest == str(guest)).order_by(row.issued.desc()).limit(1)
            host = session.scalar(newest)
            batch = session.get(models.BatchRow, host) if host else None
            return StoredBatch(batch.batch, bytes.fromhex(batch.pcr_before)) if batch else None


def encode_reasons(reasons: tuple[Reason, ...]) -> str:
    """Reasons as the tables hold them."""
    return json.dumps([[item.check, item.symbol, item.offset, item.length, item.detail] for item in reasons])


def decode_reasons(text: str) -> tuple[Reason, ...]:
    """Reasons as :func:`encode_reasons` wrote them."""
    return tuple(Reason(*item) for item in json.loads(text))


def _stored(row: models.ResultRow) -> StoredResult:
    return StoredResult(
        row.host,
        row.sequence,
        Verdict(row.verdict),
        decode_reasons(row.reasons),
        row.issued,
        row.expires,
        row.token,
    )


def _stored_guest(row: models.GuestResultRow) -> StoredGuest:
    return StoredGuest(
        uuid.UUID(row.guest),
        row.host,
        Verdict(row.verdict),
        decode_reasons(row.reasons),
        row.issued,
        row.expires,
    )


def stored_change(row: models.VerdictChange) -> Change:
    """The change that a row holds."""
    previous = Verdict(row.previous) if row.previous else None
    return Change(
        row.at, row.kind, row.subject, row.host, previous, Verdict(row.verdict), decode_reasons(row.reasons)
    )
