# SPDX-License-Identifier: Apache-2.0
"""What the API shows: hosts that asked to enrol and wait for an operator, and the kernel of each guest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pending_hosts",
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("ek_digest", sa.String(64), primary_key=True, index=True),
        sa.Column("ek_certificate", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("asked_last", sa.BigInteger(), nullable=False, index=True),
    )
    # Empty for what verifiers of the version before stored; their next result fills it.
    op.add_column("guest_results", sa.Column("release", sa.String(128), nullable=False, server_default=""))
