# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, made of the operations themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from nova_vmi_attest.api import problems
from nova_vmi_attest.api.operations import Answer, Call, Operation, Parameter

_DESCRIPTION = """
Verdicts on the servers of a cloud and on its hosts, and the evidence for them.

A path, parameter or member that version 1 has stays and keeps its meaning. Members may be added to answers,
and optional members and parameters to requests, without another version: ignore what you do not know, and ask
for this document to learn what a cloud has. What would break a client comes as version 2 beside it.
""".strip()

_COMMON = {400: "The request is malformed.", 503: "A service that the API needs does not answer."}
_GUARDED = {401: "There is no valid token.", 403: "The caller's roles do not allow it."}
_MISSING = "It does not exist, or the caller may not see it."


def operation(operations: Sequence[Operation]) -> Operation:
    """The operation that answers the document of the others, and of itself."""
    answer = {"type": "object", "required": ["openapi", "info", "paths"]}
    arguments = ("GET", "/v1/openapi.json", "show_openapi", "Get this document")
    own = Operation(*arguments, lambda call: Answer(), None, answer=answer)
    made = functools.cache(lambda: document((*operations, own)))

    def show(call: Call) -> Answer:
        return Answer({**made(), "servers": [{"url": call.base or "/"}]})

    return Operation(*arguments, show, None, answer=answer)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document, version 3.1.0."""
    paths: dict[str, dict[str, Any]] = {}
    for item in operations:
        paths.setdefault(item.path, {})[item.method.lower()] = _operation(item)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Attestation of servers by introspection",
            "version": "1.0.0",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": problems.SCHEMA},
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }


def _operation(item: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": item.name,
        "summary": item.summary,
        "tags": [item.path.split("/")[2] if item.path.count("/") > 1 else "versions"],
        "responses": _responses(item),
        "security": [] if item.rule is None else [{"token": []}],
    }
    if parameters := [*_parameters(item.parameters, "path"), *_parameters(item.query, "query")]:
        found["parameters"] = parameters
    if item.rule is not None:
        found["description"] = f"Policy rule: ``attestation:{item.rule}``."
    if item.body is not None:
        content = {"application/json": {"schema": item.body}}
        found["requestBody"] = {"required": True, "content": content}
    if item.upload:
        binary = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": binary}}
    return found


def _parameters(parameters: Sequence[Parameter], place: str) -> list[dict[str, Any]]:
    return [
        {
            "name": item.name,
            "in": place,
            "required": place == "path",
            "description": item.description,
            "schema": item.schema,
        }
        for item in parameters
    ]


def _responses(item: Operation) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done."}
    if item.answer is not None:
        good = {"description": "The answer.", "content": {"application/json": {"schema": item.answer}}}
    refused = {**_COMMON, **({} if item.rule is None else _GUARDED), **item.problems}
    if item.parameters:
        refused.setdefault(404, _MISSING)
    if item.body is not None or item.upload:
        refused |= {413: "The body is too large.", 415: "The body is of another type."}
    problem = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(item.status): good} | {
        str(status): {"description": text, "content": problem} for status, text in sorted(refused.items())
    }
