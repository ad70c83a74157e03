# SPDX-License-Identifier: Apache-2.0
"""``/v1/audit-records``: what was done with hosts, certificates and overrides, and what was refused to whom.

The host of a refusal is as it was claimed, and anybody on the bus can claim.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from nova_vmi_attest.api import schemas
from nova_vmi_attest.api.operations import Answer, Call, Operation, Parameter
from nova_vmi_attest.api.schemas import object_of, page, page_of, time_of
from nova_vmi_attest.db.models import AuditRecord
from nova_vmi_attest.policies import cloud as rules

_RECORD = object_of(
    {
        "id": schemas.COUNT,
        "at": schemas.TIME,
        "action": schemas.TEXT,
        "host": schemas.TEXT,
        "outcome": schemas.TEXT,
        "detail": schemas.TEXT,
    }
)


def _list(call: Call) -> Answer:
    row, limit = AuditRecord, schemas.limit_of(call)
    wanted = select(row).order_by(row.id.desc()).limit(limit + 1)
    if "host" in call.query:
        wanted = wanted.where(row.host_name == call.query["host"])
    if "marker" in call.query:
        wanted = wanted.where(row.id < call.query["marker"])
    with call.services.database.reader() as session:
        found = list(session.scalars(wanted))
    following = str(found[limit - 1].id) if len(found) > limit else None
    documents = [_document(item) for item in found[:limit]]
    return Answer(page(call, "/v1/audit-records", "audit_records", documents, following))


def _document(item: AuditRecord) -> dict[str, Any]:
    return {
        "id": item.id,
        "at": time_of(item.at),
        "action": item.action,
        "host": item.host_name,
        "outcome": item.outcome,
        "detail": item.detail,
    }


_HOST = Parameter("host", schemas.HOST_NAME, "Only those of this host.")

OPERATIONS = (
    Operation(
        "GET", "/v1/audit-records", "list_audit_records", "List what was done and refused, the newest first",
        _list, rules.AUDIT,
        query=(schemas.LIMIT, schemas.marker({"type": "integer", "minimum": 1}), _HOST),
        answer=page_of("audit_records", _RECORD),
    ),
)  # fmt: skip
