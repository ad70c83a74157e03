# SPDX-License-Identifier: Apache-2.0
"""The first schema: registry, certificates, audit, host states, challenges, results and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TOKEN = sa.Text(1 << 24)


def upgrade() -> None:
    _authority()
    _hosts()
    _results()


def _authority() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("ek_digest", sa.String(64), nullable=False, unique=True),
        sa.Column("ek_certificate", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "ak_certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("host_name", sa.String(255), nullable=False, index=True),
        sa.Column("ak_name", sa.String(136), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
    )
    op.create_table(
        "audit_records",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger(), nullable=False, index=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("host_name", sa.String(255), nullable=False, index=True),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
    )


def _hosts() -> None:
    op.create_table(
        "known_hosts",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("tpm", sa.String(255), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("announced_at", sa.BigInteger(), nullable=False),
        sa.Column("challenged_at", sa.BigInteger(), nullable=True),
        sa.Column("answered_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
    )
    op.create_table(
        "host_states",
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("tpm", sa.String(255), nullable=False),
        sa.Column("reset_count", sa.BigInteger(), nullable=False),
        sa.Column("restart_count", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.String(16), nullable=False),
        sa.Column("recnum", sa.BigInteger(), nullable=False),
        sa.Column("pcr_value", sa.String(64), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "challenges",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("nonce", sa.String(64), nullable=False, unique=True),
        sa.Column("host", sa.String(255), nullable=False, index=True),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("issued", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False, index=True),
    )


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reasons", _TOKEN, nullable=False),
        sa.Column("issued", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("token", _TOKEN, nullable=False),
    )
    op.create_table(
        "guest_results",
        sa.Column("guest", sa.String(36), primary_key=True),
        sa.Column("host", sa.String(255), primary_key=True, index=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reasons", _TOKEN, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("issued", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "verdict_changes",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger(), nullable=False, index=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("previous", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reasons", _TOKEN, nullable=False),
        sa.Index("ix_verdict_changes_subject", "kind", "subject", "id"),
    )
    op.create_table(
        "batches",
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("pcr_before", sa.String(64), nullable=False),
        sa.Column("batch", sa.LargeBinary(1 << 26), nullable=False),
    )
