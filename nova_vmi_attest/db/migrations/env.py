# SPDX-License-Identifier: Apache-2.0
"""What alembic runs around the revisions: it uses the connection that the caller opened."""

from __future__ import annotations

from alembic import context

from nova_vmi_attest.db import models

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
