# SPDX-License-Identifier: Apache-2.0
"""Challenges whose nonce somebody else chose: their answers are proofs, and renew no result."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column: sa.Column[bool] = sa.Column("chosen", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("challenges", column)
