# SPDX-License-Identifier: Apache-2.0
"""Which versions of the API there are, for clients that look before they speak. Anybody may ask."""

from __future__ import annotations

from typing import Any

from nova_vmi_attest.api.operations import Answer, Call, Operation
from nova_vmi_attest.api.schemas import TEXT, object_of

_LINK = object_of({"rel": TEXT, "href": TEXT})
_VERSION = object_of(
    {
        "id": {"type": "string", "pattern": "^v[0-9]+[.][0-9]+$"},
        "status": {"enum": ["CURRENT", "SUPPORTED", "DEPRECATED"]},
        "links": {"type": "array", "items": _LINK},
    }
)


def _v1(call: Call) -> dict[str, Any]:
    links = [
        {"rel": "self", "href": f"{call.base}/v1/"},
        {"rel": "describedby", "href": f"{call.base}/v1/openapi.json"},
    ]
    return {"id": "v1.0", "status": "CURRENT", "links": links}


def _list(call: Call) -> Answer:
    return Answer({"versions": [_v1(call)]})


def _show(call: Call) -> Answer:
    return Answer({"version": _v1(call)})


OPERATIONS = (
    Operation(
        "GET", "/", "list_versions", "List the versions of the API", _list, None,
        answer=object_of({"versions": {"type": "array", "items": _VERSION}}),
    ),
    Operation(
        "GET", "/v1", "show_version", "Show this version of the API", _show, None,
        answer=object_of({"version": _VERSION}),
    ),
)  # fmt: skip
