# SPDX-License-Identifier: Apache-2.0
"""What an operation of the API is: where it is, who may use it, what it takes and what it answers.

The OpenAPI document is made of the same values that requests are checked against, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from oslo_context.context import RequestContext

from nova_vmi_attest.api import policy
from nova_vmi_attest.api.services import Services

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the path or in the query, by its schema (JSON Schema, of one plain type)."""

    name: str
    schema: Schema
    description: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was checked against its operation's schemas.

    ``body`` is the decoded JSON document; ``stream`` and ``length`` are those of an upload. ``now`` is in
    seconds since 1970, ``base`` the path before ``/v1``.
    """

    services: Services
    context: RequestContext
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    stream: BinaryIO
    length: int
    now: int
    base: str

    def allows(self, rule: str, project: str | None = None) -> bool:
        """Whether the caller may do what the rule names, to something of a project or, without one, of his
        own.
        """
        owner = self.context.project_id if project is None else project
        return policy.allows(self.services.enforcer, self.context, rule, target(owner))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back: a document for JSON, or bytes as they are."""

    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    :param path: as OpenAPI writes it, ``{name}`` for each of ``parameters``.
    :param rule: that a caller must meet for his own project before anything else is looked at; ``None`` for
        what everybody may have without a token.
    :param body: the schema of the JSON document that it takes; ``upload`` for one that takes a file.
    :param status: when it goes well, with ``answer`` as the schema of the document; ``None`` for no content.
    :param problems: what else than the usual may come, by status.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Call], Answer]
    rule: str | None
    parameters: tuple[Parameter, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    upload: bool = False
    status: int = 200
    answer: Schema | None = None
    problems: Mapping[int, str] = field(default_factory=dict)


def target(project: str | None) -> dict[str, str]:
    """What a rule is asked about. No project is never the project of a token that has none."""
    return {"project_id": project or "-"}
