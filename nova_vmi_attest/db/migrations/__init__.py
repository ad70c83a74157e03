# SPDX-License-Identifier: Apache-2.0
"""The history of the schema, run by alembic; see :meth:`nova_vmi_attest.db.session.Database.upgrade`."""
