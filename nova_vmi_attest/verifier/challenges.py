# SPDX-License-Identifier: Apache-2.0
"""The challenges that are open: made here, answered once, and forgotten when they expire.

They are in the database because any verifier may receive the answer. An answer closes its challenge *and*
every older one of that host: quotes that overtook each other on the bus would otherwise look like a clock
that went back. Only answers that were attributed to the host's TPM may close a challenge, or anybody could
use them up.

A nonce that somebody else chose, such as a tenant for a proof of their own, is no challenge of ours: who
knows it beforehand can have the host answer it now and send that answer later, when the host is no longer
what it was. So an answer to nothing but chosen nonces renews no result.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database, affected
from nova_vmi_attest.evidence.challenge import NONCE_SIZE, Challenge, sign_challenge


class Closed(enum.Enum):
    """What an answer closed: nothing that was open, only challenges with chosen nonces, or one of ours."""

    NOTHING = enum.auto()
    CHOSEN = enum.auto()
    OWN = enum.auto()


class Challenges:
    """Makes and closes the challenges of one verifier key.

    :param lifetime: seconds within which an answer counts.
    :param per_host: how many of each kind may be open for one host; the oldest gives way.
    """

    def __init__(
        self, database: Database, key: EllipticCurvePrivateKey, lifetime: int, per_host: int
    ) -> None:
        self._database = database
        self._key = key
        self._lifetime = lifetime
        self._per_host = per_host

    def create(self, host: str, since: int, now: int, chosen: bytes | None = None) -> tuple[str, bytes]:
        """A new signed challenge, and its nonce.

        :param since: number of the first log record that is wanted.
        :param now: seconds since 1970.
        :param chosen: 32 octets that somebody else chose for the nonce.
        :raises ChallengeError: for a host name or a nonce that cannot be.
        :raises DuplicateError: a challenge with the chosen nonce is open.
        :raises DatabaseError: when it cannot be stored; it must not be sent then.
        """
        nonce = secrets.token_bytes(NONCE_SIZE) if chosen is None else chosen
        challenge = Challenge(host, nonce, since, now, now + self._lifetime)
        token = sign_challenge(challenge, self._key)
        row = models.ChallengeRow(nonce=nonce.hex(), host=host, since=since, issued=now)
        row.expires, row.chosen = challenge.expires, chosen is not None
        with self._database.writer() as session:
            self._prune(session, host, row.chosen, now)
            session.add(row)
        return token, nonce

    def open_nonces(self, host: str, now: int) -> frozenset[bytes]:
        """The nonces that this host may still answer; reading them closes nothing."""
        with self._database.reader() as session:
            rows = session.scalars(
                select(models.ChallengeRow.nonce).where(
                    models.ChallengeRow.host == host, models.ChallengeRow.expires >= now
                )
            )
            return frozenset(bytes.fromhex(nonce) for nonce in rows)

    def _prune(self, session: Session, host: str, chosen: bool, now: int) -> None:
        row = models.ChallengeRow
        session.execute(delete(row).where(row.expires < now))
        same = row.host == host, row.chosen == chosen
        count = session.scalar(select(func.count()).select_from(row).where(*same)) or 0
        surplus = count - self._per_host + 1
        if surplus > 0:
            oldest = select(row.id).where(*same).order_by(row.id).limit(surplus)
            session.execute(delete(row).where(row.id.in_(session.scalars(oldest).all())))


def close(session: Session, host: str, nonces: Iterable[bytes], now: int) -> Closed:
    """Close the challenges that were answered, and older ones of that host, within the caller's transaction.

    An answer to chosen nonces alone closes those and nothing else.

    :returns: whether any of them was still open. When none was, somebody else took the answer to it.
    """
    row = models.ChallengeRow
    named = row.nonce.in_([nonce.hex() for nonce in nonces])
    answered = row.host == host, row.expires >= now, named
    newest = session.scalar(select(func.max(row.id)).where(*answered, row.chosen.is_(False)))
    closed = affected(session, delete(row).where(*answered))
    if not closed:
        return Closed.NOTHING
    if newest is None:
        return Closed.CHOSEN
    session.execute(delete(row).where(row.host == host, row.id < newest, row.chosen.is_(False)))
    return Closed.OWN
