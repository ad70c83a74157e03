# SPDX-License-Identifier: Apache-2.0
"""``/v1/refusals``: the requests for which a scheduler refused hosts, the newest first.

Information for people: anybody on the bus can have sent one. A tenant sees that and how many hosts were
refused for a server of his, an operator sees which and why.
"""

from __future__ import annotations

from typing import Any

from nova_vmi_attest.api import schemas
from nova_vmi_attest.api.operations import Answer, Call, Operation, Parameter
from nova_vmi_attest.api.schemas import object_of, page, page_of, time_of
from nova_vmi_attest.policies import cloud as rules
from nova_vmi_attest.records.refusals import LEVELS, Refusal, Refusals

_REFUSED_HOST = object_of({"host": schemas.TEXT, "reason": schemas.TEXT})
_REFUSAL = object_of(
    {
        "id": schemas.COUNT,
        "at": schemas.TIME,
        "server_id": schemas.TEXT,
        "project_id": schemas.TEXT,
        "request": {**schemas.TEXT, "description": "The operation, and Nova's ID of the request."},
        "level": {"enum": list(LEVELS)},
        "total": {**schemas.COUNT, "description": "How many hosts were refused."},
        "hosts": {
            "type": "array",
            "items": _REFUSED_HOST,
            "description": "Some, for operators.",
        },
    },
    optional=("hosts",),
)


def _list(call: Call) -> Answer:
    everything = call.allows(rules.REFUSALS_ALL)
    server, limit = call.query.get("server"), schemas.limit_of(call)
    project = None if everything else str(call.context.project_id)
    # The store has a largest page, too; what it leaves out is on the next one.
    found = Refusals(call.services.database).list(
        server=server.lower() if server else None,
        project=project,
        after=call.query.get("marker", 0),
        limit=limit,
    )
    mine = [item for item in found if project is None or item.project == project]
    following = str(found[-1].id) if len(found) == limit else None
    documents = [_document(item, everything) for item in mine]
    return Answer(page(call, "/v1/refusals", "refusals", documents, following))


def _document(item: Refusal, sees_hosts: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": item.id,
        "at": time_of(item.at),
        "server_id": item.server,
        "project_id": item.project,
        "request": item.request,
        "level": item.level,
        "total": item.total,
    }
    if sees_hosts:
        document["hosts"] = [{"host": host.host, "reason": host.reason} for host in item.hosts]
    return document


_SERVER = Parameter("server", schemas.UUID, "Only those for this server.")

OPERATIONS = (
    Operation(
        "GET", "/v1/refusals", "list_refusals", "List refusals of the scheduler, the newest first", _list,
        rules.REFUSALS, query=(schemas.LIMIT, schemas.marker({"type": "integer", "minimum": 1}), _SERVER),
        answer=page_of("refusals", _REFUSAL),
    ),
)  # fmt: skip
