# SPDX-License-Identifier: Apache-2.0
"""What a client is told when something goes wrong: problem details (RFC 9457), no more than it may know."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, json
from oslo_context import context

from nova_vmi_attest.errors import AttestError

MEDIA_TYPE = "application/problem+json"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Always about:blank: the status says what kind it is."},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "remedy": {"type": "string", "description": "What can be done next, if anything."},
        "request_id": {"type": "string", "description": "By which the request is found in the logs."},
    },
    "additionalProperties": False,
}


class Problem(AttestError):  # noqa: N818 - as RFC 9457 calls it
    """A request that ends with a status of 400 or more."""

    def __init__(
        self, status: int, message: str, remedy: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.headers = dict(headers or {})


def not_found(what: str) -> Problem:
    """The one answer for what does not exist and for what is somebody else's."""
    return Problem(HTTPStatus.NOT_FOUND, f"{what} does not exist, or you may not see it")


def unauthenticated(headers: Mapping[str, str] | None = None) -> Problem:
    """The answer to whoever has no token that Keystone stands by."""
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "the request has no valid token",
        "get one from Keystone and send it as X-Auth-Token; one that has expired has to be renewed",
        headers,
    )


def unavailable() -> Problem:
    """The answer when something that the API needs is away. What it is called stays in our log."""
    remedy = "try again in a moment; if it lasts, the operator finds the cause in the log of the API"
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "a service that the API needs does not answer",
        remedy,
        {"Retry-After": "5"},
    )


def response(problem: Problem, request_id: str = "") -> Response:
    """The problem as a response."""
    members = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": int(problem.status),
        "detail": problem.message,
    }
    if problem.remedy:
        members["remedy"] = problem.remedy
    current = context.get_current()
    if identity := request_id or (current.request_id if current else ""):
        members["request_id"] = identity
    return Response(json.dumps(members), problem.status, problem.headers, content_type=MEDIA_TYPE)
