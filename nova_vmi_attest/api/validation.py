# SPDX-License-Identifier: Apache-2.0
"""Requests against the schemas of their operation. What passes has the form that its handler expects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match
from werkzeug.datastructures import MultiDict

from nova_vmi_attest.api.operations import Operation, Parameter, Schema
from nova_vmi_attest.api.problems import Problem, not_found

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_BOOLEAN = {"true": True, "false": False}
_MOST_TEXT = 256


class Validation:
    """The checks of one operation."""

    def __init__(self, operation: Operation) -> None:
        self._path = {item.name: _validator(item.schema) for item in operation.parameters}
        self._query = {item.name: (item, _validator(item.schema)) for item in operation.query}
        self._body = _validator(operation.body) if operation.body is not None else None

    def path(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """The values in the path. What has not the form of a name names nothing."""
        for name, value in values.items():
            if not _is_plain(value) or not self._path[name].is_valid(value):
                raise not_found(f"the {name.removesuffix('_id')} in the path")
        return values

    def query(self, arguments: MultiDict[str, str]) -> dict[str, Any]:
        """The query, each value by the type of its schema. Unknown and repeated names are refused."""
        found: dict[str, Any] = {}
        for name, values in arguments.lists():
            if name not in self._query:
                known = ", ".join(self._query) or "none"
                raise _bad(f"there is no query parameter {_shown(name)}", f"those that there are: {known}")
            if len(values) != 1:
                raise _bad(f"the query parameter {name} is there {len(values)} times", "give it once")
            parameter, validator = self._query[name]
            found[name] = _value(parameter, values[0], validator)
        return found

    def body(self, data: bytes) -> Any:
        """The JSON document in a body."""
        try:
            document = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _bad("the body is no JSON document") from error
        assert self._body is not None
        try:
            problem = best_match(self._body.iter_errors(document))
        except RecursionError as error:
            raise _bad("the body is no JSON document that is expected here") from error
        if problem is not None:
            raise _bad(f"the body is not what is expected: {_explained(problem)}")
        return document


def _pattern(validator: Any, pattern: str, value: Any, schema: Schema) -> Iterator[ValidationError]:
    """All our patterns are of the whole text, and Python's ``$`` would let a newline pass at its end."""
    if validator.is_type(value, "string") and not re.fullmatch(pattern, value):
        yield ValidationError("the text has another form")


_Validator = validators.extend(Draft202012Validator, {"pattern": _pattern})


def _validator(schema: Schema) -> Draft202012Validator:
    found: Draft202012Validator = _Validator(dict(schema))
    return found


def _value(parameter: Parameter, text: str, validator: Draft202012Validator) -> Any:
    value: Any = text
    kind = parameter.schema["type"]
    if kind == "integer" and _INTEGER.fullmatch(text) and text.isascii():
        value = int(text)
    elif kind == "boolean":
        value = _BOOLEAN.get(text, text)
    if not _is_plain(text) or not validator.is_valid(value):
        raise _bad(f"the query parameter {parameter.name} cannot be {_shown(text)}", parameter.description)
    return value


def _is_plain(text: str) -> bool:
    return len(text) <= _MOST_TEXT and text.isprintable()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _explained(problem: ValidationError) -> str:
    place = "/".join(str(part) for part in problem.absolute_path)
    if problem.validator == "additionalProperties":
        return f"there is a member that is not known{f' in {place}' if place else ''}"
    if problem.validator == "required":
        return str(problem.message)[:_MOST_TEXT]
    return f"{_shown(place) if place else 'it'} has another {problem.validator}"


def _shown(text: str) -> str:
    cut = "".join(sign if sign.isprintable() else "?" for sign in text[:64])
    return f"{cut!r}"


def _bad(message: str, remedy: str = "") -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, message, remedy)
