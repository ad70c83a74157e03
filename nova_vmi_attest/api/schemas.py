# SPDX-License-Identifier: Apache-2.0
"""Schemas and values that several nouns share: verdicts, reasons, times, ids and pages."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from nova_vmi_attest.api.operations import Call, Parameter, Schema
from nova_vmi_attest.evidence.result import Reason, Verdict

UUID: Schema = {
    "type": "string",
    "pattern": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}
HOST_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,253}$"}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NONCE: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "32 octets, in hex."}
TIME: Schema = {"type": "string", "format": "date-time", "pattern": "^[0-9]{4,}-[0-9-]+T[0-9:]{8}Z$"}
TIME_OR_NULL: Schema = {**TIME, "type": ["string", "null"]}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
VERDICT: Schema = {
    "type": "string",
    "enum": [verdict.value for verdict in Verdict],
    "description": "Only trusted admits. What was trusted is stale once its result has ended.",
}
REASON: Schema = {
    "type": "object",
    "required": ["check", "symbol", "offset", "length", "detail"],
    "properties": {
        "check": TEXT, "symbol": TEXT, "offset": {"type": "integer"}, "length": COUNT, "detail": TEXT,
    },
    "additionalProperties": False,
}  # fmt: skip
REASONS: Schema = {"type": "array", "items": REASON}

SERVER_ID = Parameter("server_id", UUID, "ID of the server in Nova.")
HOST = Parameter("host", HOST_NAME, "Name of the host, exactly as Nova knows it.")
LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1},
    "How many items at most. The service has a limit of its own, at most 1000.",
)
FILTER_VERDICT = Parameter("verdict", VERDICT, "Only those of this verdict.")

NEVER_SEEN = Reason("never_seen", detail="no result speaks of it")


def marker(schema: Schema) -> Parameter:
    """The query parameter with which the next page is asked for."""
    return Parameter("marker", schema, "Begin after this item: next_marker of the page before.")


def object_of(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with exactly these members; some may be left out."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
        "additionalProperties": False,
    }


def page_of(noun: str, item: Schema) -> Schema:
    """The schema of a page."""
    link = object_of({"rel": {"const": "next"}, "href": TEXT})
    return object_of(
        {
            noun: {"type": "array", "items": item},
            "next_marker": {"type": ["string", "null"], "description": "Null on the last page."},
            "links": {"type": "array", "items": link},
        }
    )


def page(call: Call, url: str, noun: str, items: Sequence[Any], following: str | None) -> dict[str, Any]:
    """A page; ``following`` is the marker of the next one, if there is one."""
    links = []
    if following is not None:
        query = {name: _query_text(value) for name, value in call.query.items()} | {"marker": following}
        links.append({"rel": "next", "href": f"{call.base}{url}?{urlencode(query)}"})
    return {noun: list(items), "next_marker": following, "links": links}


def limit_of(call: Call) -> int:
    """How many items the page may have."""
    most: int = call.services.conf.api.max_limit
    return min(int(call.query.get("limit", most)), most)


def time_of(seconds: int | None) -> str | None:
    """Seconds since 1970 as ISO 8601, UTC; what no calendar holds is no time."""
    if seconds is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def reason_of(reason: Reason) -> dict[str, Any]:
    """A reason as the API shows it."""
    return {
        "check": reason.check,
        "symbol": reason.symbol,
        "offset": reason.offset,
        "length": reason.length,
        "detail": reason.detail,
    }


def _query_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
