# SPDX-License-Identifier: Apache-2.0
"""What the control plane remembers: one class per table, and no behaviour.

Times are whole seconds since the Unix epoch, UTC, because they are compared with times inside signed tokens.
Digests and key names are lowercase hex. A row is only as true as the code that wrote it: the tables of the
authority are its own record, while :class:`HostState` holds values that a verified quote vouched for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Index, Integer, LargeBinary, String, Text, false
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# The bounds decide the column type that MariaDB takes: TEXT and BLOB without one end at 64 KiB.
TOKEN_BYTES = 1 << 24
BATCH_BYTES = 1 << 26

# SQLite numbers rows only in a column that it calls INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")


class Unsigned64(TypeDecorator[int]):
    """An unsigned 64-bit number, kept as 16 hex digits because databases end at 2^63 - 1.

    A TPM clock can be set beyond that by the owner of the TPM.
    """

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else f"{value:016x}"

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value, 16)


class Base(DeclarativeBase):
    """The tables of this package."""


class Host(Base):
    """A registered host and the one endorsement key that may enrol under its name."""

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    ek_digest: Mapped[str] = mapped_column(String(64), unique=True)
    ek_certificate: Mapped[str] = mapped_column(Text())
    registered_at: Mapped[int] = mapped_column(BigInteger())


class PendingHostRow(Base):
    """An endorsement key that asked to enrol under a host's name and is not registered. Its maker is trusted;
    nothing else of the claim is: the certificate of an endorsement key is no secret.
    """

    __tablename__ = "pending_hosts"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    ek_digest: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    ek_certificate: Mapped[str] = mapped_column(Text())
    asked_at: Mapped[int] = mapped_column(BigInteger())
    asked_last: Mapped[int] = mapped_column(BigInteger(), index=True)


class AkCertificate(Base):
    """An attestation key certificate that the authority issued; ``serial`` is its serial number in hex.

    ``revoked_at`` is set when the host is unregistered; the row stays, so that verifiers know.
    """

    __tablename__ = "ak_certificates"

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    host_name: Mapped[str] = mapped_column(String(255), index=True)
    ak_name: Mapped[str] = mapped_column(String(136))
    certificate: Mapped[str] = mapped_column(Text())
    not_before: Mapped[int] = mapped_column(BigInteger())
    not_after: Mapped[int] = mapped_column(BigInteger())
    revoked_at: Mapped[int | None] = mapped_column(BigInteger())


class AuditRecord(Base):
    """One action of the authority and its outcome. ``host_name`` is as claimed and may be unregistered."""

    __tablename__ = "audit_records"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger(), index=True)
    action: Mapped[str] = mapped_column(String(64))
    host_name: Mapped[str] = mapped_column(String(255), index=True)
    outcome: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(Text())


class KnownHost(Base):
    """A host that announced itself with a certificate of our authority, so it is challenged.

    ``tpm`` names the TPM as that certificate does. ``last_error`` says why the newest batch that claimed to
    be of this host was refused; anybody on the bus can send such a batch, so it never changes a verdict.
    """

    __tablename__ = "known_hosts"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    tpm: Mapped[str] = mapped_column(String(255))
    certificate: Mapped[str] = mapped_column(Text())
    announced_at: Mapped[int] = mapped_column(BigInteger())
    challenged_at: Mapped[int | None] = mapped_column(BigInteger())
    answered_at: Mapped[int | None] = mapped_column(BigInteger())
    last_error: Mapped[str] = mapped_column(Text(), default="")


class HostState(Base):
    """Where the newest accepted quote of a host left its TPM and its log; later ones must go on from here.

    ``version`` counts the writes: an update names the version that it read, so of two verifiers that appraise
    evidence of the same host at once, one has to look again.
    """

    __tablename__ = "host_states"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    tpm: Mapped[str] = mapped_column(String(255))
    reset_count: Mapped[int] = mapped_column(BigInteger())
    restart_count: Mapped[int] = mapped_column(BigInteger())
    clock: Mapped[int] = mapped_column(Unsigned64())
    recnum: Mapped[int] = mapped_column(BigInteger())
    pcr_value: Mapped[str] = mapped_column(String(64))
    head: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(BigInteger())


class ChallengeRow(Base):
    """A challenge that has not been answered yet; the row is deleted by the answer. ``id`` orders them.

    ``chosen`` is set when somebody else than a verifier chose the nonce.
    """

    __tablename__ = "challenges"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    nonce: Mapped[str] = mapped_column(String(64), unique=True)
    host: Mapped[str] = mapped_column(String(255), index=True)
    since: Mapped[int] = mapped_column(BigInteger())
    issued: Mapped[int] = mapped_column(BigInteger())
    expires: Mapped[int] = mapped_column(BigInteger(), index=True)
    chosen: Mapped[bool] = mapped_column(Boolean(), default=False, server_default=false())


class ResultRow(Base):
    """The newest signed result of a host. ``reasons`` is JSON for people; the token says the same, signed."""

    __tablename__ = "results"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger())
    verdict: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[str] = mapped_column(Text(TOKEN_BYTES))
    issued: Mapped[int] = mapped_column(BigInteger())
    expires: Mapped[int] = mapped_column(BigInteger())
    token: Mapped[str] = mapped_column(Text(TOKEN_BYTES))


class GuestResultRow(Base):
    """The newest verdict on a guest by one host that shows it. ``reasons`` is JSON for people.

    ``release`` is the guest's kernel, empty when it was not measured.
    """

    __tablename__ = "guest_results"

    guest: Mapped[str] = mapped_column(String(36), primary_key=True)
    host: Mapped[str] = mapped_column(String(255), primary_key=True, index=True)
    verdict: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[str] = mapped_column(Text(TOKEN_BYTES))
    sequence: Mapped[int] = mapped_column(BigInteger())
    issued: Mapped[int] = mapped_column(BigInteger())
    expires: Mapped[int] = mapped_column(BigInteger())
    release: Mapped[str] = mapped_column(String(128), default="", server_default="")


class VerdictChange(Base):
    """A change of a verdict. ``kind`` is ``host`` or ``guest``; ``previous`` is empty for the first one."""

    __tablename__ = "verdict_changes"
    __table_args__ = (Index("ix_verdict_changes_subject", "kind", "subject", "id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger(), index=True)
    kind: Mapped[str] = mapped_column(String(8))
    subject: Mapped[str] = mapped_column(String(255))
    host: Mapped[str] = mapped_column(String(255))
    previous: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[str] = mapped_column(Text(TOKEN_BYTES))


class BatchRow(Base):
    """The newest accepted batch of a host, from which a tenant's proof is cut.

    ``pcr_before`` is the value of the log PCR before the batch's last quoted entry, in hex.
    """

    __tablename__ = "batches"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    received: Mapped[int] = mapped_column(BigInteger())
    pcr_before: Mapped[str] = mapped_column(String(64))
    batch: Mapped[bytes] = mapped_column(LargeBinary(BATCH_BYTES))


class ServerRow(Base):
    """Where Nova says that a server is. ``required`` is set when it runs there and nothing is in flight, so
    that its host must show it; ``allowed_host`` is a second host that may show it, as in a migration.

    A deleted server keeps its row for as long as its history, for its project to read.
    """

    __tablename__ = "servers"

    guest: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(255))
    host: Mapped[str] = mapped_column(String(255), index=True)
    allowed_host: Mapped[str] = mapped_column(String(255))
    required: Mapped[bool] = mapped_column(Boolean())
    status: Mapped[str] = mapped_column(String(32))
    task_state: Mapped[str] = mapped_column(String(64))
    seen_at: Mapped[int] = mapped_column(BigInteger())
    deleted_at: Mapped[int | None] = mapped_column(BigInteger())


class RefusalRow(Base):
    """A request for which a scheduler refused hosts. ``hosts`` is JSON for people: pairs of host and reason.

    Anybody on the bus can send one.
    """

    __tablename__ = "refusals"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger(), index=True)
    server: Mapped[str] = mapped_column(String(36), index=True)
    project: Mapped[str] = mapped_column(String(64), index=True)
    request: Mapped[str] = mapped_column(String(64))
    level: Mapped[str] = mapped_column(String(16))
    total: Mapped[int] = mapped_column(BigInteger())
    hosts: Mapped[str] = mapped_column(Text(TOKEN_BYTES))


class OverrideRow(Base):
    """An operator's word for a host, against or without its evidence, until it expires or is lifted."""

    __tablename__ = "overrides"

    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    reason: Mapped[str] = mapped_column(Text())
    made_by: Mapped[str] = mapped_column(String(255))
    made_at: Mapped[int] = mapped_column(BigInteger())
    expires: Mapped[int] = mapped_column(BigInteger())
    lifted_at: Mapped[int | None] = mapped_column(BigInteger())


class CursorRow(Base):
    """How far a reader of ``verdict_changes`` has come; moved by an update that names the old position."""

    __tablename__ = "cursors"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger())
    updated: Mapped[int] = mapped_column(BigInteger())


class ResponseRow(Base):
    """What was done because a verdict changed, or why it was not. ``change_id`` is the change's row."""

    __tablename__ = "responses"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger(), index=True)
    response: Mapped[str] = mapped_column(String(64))
    change_id: Mapped[int] = mapped_column(BigInteger())
    subject: Mapped[str] = mapped_column(String(255))
    outcome: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text())
