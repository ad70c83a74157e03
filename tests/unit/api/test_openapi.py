# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document is valid, says all that there is, and the manual's reference says the same."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from nova_vmi_attest.api.catalogue import OPERATIONS
from tests.unit.api.cloud import Api
from tests.unit.api.rows import BAD, GONE, HOST

REFERENCE = Path(__file__).parents[3] / "doc/source/reference/api.rst"


def test_the_document_is_valid_and_complete(empty_api: Api) -> None:
    document = empty_api.get("/v1/openapi.json").json
    OpenAPIV31SpecValidator(document).validate()
    there = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert there == {(item.method, item.path) for item in OPERATIONS}


def test_names_of_operations_are_unique() -> None:
    names = [item.name for item in OPERATIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("role", ["reader", "admin"])
def test_answers_have_the_form_that_the_document_says(api: Api, role: str) -> None:
    paths = {
        "list_servers": "/v1/servers",
        "show_server": f"/v1/servers/{BAD}",
        "show_server_history": f"/v1/servers/{GONE}/history",
        "list_refusals": "/v1/refusals",
        "show_policy": "/v1/policy",
        "list_references": "/v1/references",
    }
    if role == "admin":
        paths |= {
            "list_hosts": "/v1/hosts",
            "show_host": f"/v1/hosts/{HOST}",
            "list_pending_hosts": "/v1/hosts/pending",
            "list_audit_records": "/v1/audit-records",
        }
    schemas = {item.name: item.answer for item in OPERATIONS}
    for name, path in paths.items():
        answer = api.get(path, api.login(role))
        assert answer.status_code == 200
        jsonschema.validate(answer.json, schemas[name], jsonschema.Draft202012Validator)


def test_the_manual_has_every_operation_and_rule() -> None:
    text = REFERENCE.read_text()
    missing = [
        f"{item.method} {item.path}" for item in OPERATIONS if f"{item.method} {item.path}" not in text
    ]
    missing += [f"attestation:{item.rule}" for item in OPERATIONS if item.rule and item.rule not in text]
    assert missing == []
