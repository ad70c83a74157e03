# SPDX-License-Identifier: Apache-2.0
"""Who may do what, as a table: every operation for every kind of token, with the rules' defaults."""

from __future__ import annotations

from typing import Any

import pytest

from nova_vmi_attest.api.catalogue import OPERATIONS
from nova_vmi_attest.policies import list_rules
from tests.unit.api.cloud import PROJECT, Api
from tests.unit.api.rows import DIGEST, GOOD, HOST

# Kinds of tokens: of the servers' own project, and of all of the system.
KINDS = ("admin", "member", "reader", "nobody", "system admin", "system reader", "domain admin")

EVERYBODY = "public"
OPERATOR_READS = ("admin", "system admin", "system reader")
ADMIN = ("admin", "system admin")
TENANT_READS = ("admin", "member", "reader", "system admin", "system reader")
TENANT_USES = ("admin", "member", "system admin")

TABLE: dict[str, Any] = {
    "list_versions": EVERYBODY,
    "show_version": EVERYBODY,
    "show_openapi": EVERYBODY,
    "list_servers": TENANT_READS,
    "show_server": TENANT_READS,
    "show_server_history": TENANT_READS,
    "show_server_proof": TENANT_READS,
    "challenge_server": TENANT_USES,
    "list_hosts": OPERATOR_READS,
    "list_pending_hosts": OPERATOR_READS,
    "show_host": OPERATOR_READS,
    "enrol_host": ADMIN,
    "approve_host": ADMIN,
    "revoke_host": ADMIN,
    "override_host": ADMIN,
    "lift_override": ADMIN,
    "challenge_host": ADMIN,
    "list_references": TENANT_READS,
    "show_reference": TENANT_READS,
    "import_reference": ADMIN,
    "delete_reference": ADMIN,
    "show_policy": TENANT_READS,
    "show_trust_anchors": TENANT_READS,
    "list_refusals": TENANT_READS,
    "list_audit_records": OPERATOR_READS,
}

PATHS = {"{server_id}": GOOD, "{host}": HOST, "{digest}": DIGEST}


def token_of(api: Api, kind: str) -> str:
    if kind.startswith("system"):
        return api.login(kind.split()[1], None, system=True)
    if kind.startswith("domain"):
        return api.login(kind.split()[1], None)
    return api.login(kind, PROJECT)


def ask(api: Api, name: str, token_id: str | None, **arguments: Any) -> Any:
    operation = next(item for item in OPERATIONS if item.name == name)
    path = operation.path
    for placeholder, value in PATHS.items():
        path = path.replace(placeholder, value)
    if operation.body is not None:
        arguments = {"json": {}} | arguments
    return api.request(operation.method, path, token_id, **arguments)


def test_the_table_is_of_every_operation() -> None:
    assert set(TABLE) == {item.name for item in OPERATIONS}


@pytest.mark.usefixtures("verifier")
@pytest.mark.parametrize("name", TABLE)
def test_each_kind_of_token_may_do_what_the_table_says(api: Api, name: str) -> None:
    allowed = [kind for kind in KINDS if ask(api, name, token_of(api, kind)).status_code not in (401, 403)]
    expected = KINDS if TABLE[name] == EVERYBODY else TABLE[name]
    assert allowed == list(expected)


@pytest.mark.parametrize("name", [name for name, who in TABLE.items() if who != EVERYBODY])
def test_nothing_is_done_without_a_token(api: Api, name: str) -> None:
    forged = {"X-Identity-Status": "Confirmed", "X-Roles": "admin", "X-Project-Id": PROJECT, "X-User-Id": "u"}
    answers = [
        ask(api, name, None),
        ask(api, name, None, headers=forged),
        ask(api, name, "unknown", headers=forged),
        ask(api, name, api.login("admin", seconds=-10)),
    ]
    for answer in answers:
        assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
        assert answer.headers["WWW-Authenticate"].startswith("Keystone uri=")
        assert answer.json["request_id"] == answer.headers["x-openstack-request-id"]


def test_an_operators_policy_file_replaces_a_rule(api: Api, tmp_path: Any) -> None:
    assert api.get("/v1/references", api.login("reader")).status_code == 200
    file = tmp_path / "policy.yaml"
    file.write_text('"attestation:references:list": "role:admin"\n')
    api.conf.set_override("policy_file", str(file), "oslo_policy")
    api.restart()
    assert api.get("/v1/references", api.login("reader")).status_code == 403
    assert api.get("/v1/references", api.login("admin")).status_code == 200


def test_every_operation_but_the_public_ones_has_a_documented_rule() -> None:
    documented = {rule.name for rule in list_rules()}
    rules = {f"attestation:{item.rule}" for item in OPERATIONS if item.rule is not None}
    assert rules <= documented
    public = [item.name for item in OPERATIONS if item.rule is None]
    assert public == ["list_versions", "show_version", "show_openapi"]
