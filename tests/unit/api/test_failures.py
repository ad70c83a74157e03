# SPDX-License-Identifier: Apache-2.0
"""Bad input, and services that are away: problem details with a request id, and never a stack trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keystoneauth1.exceptions
import oslo_messaging
import pytest
import webob.exc
from keystonemiddleware.auth_token import AuthProtocol

from nova_vmi_attest.api import problems
from nova_vmi_attest.api.validation import Validation
from nova_vmi_attest.evidence.result import Verdict
from tests.unit.api.cloud import Api
from tests.unit.api.rows import GOOD, HOST

CHALLENGE = f"/v1/servers/{GOOD}/challenges"


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem, once it is seen to be one."""
    assert (answer.status_code, answer.content_type) == (status, problems.MEDIA_TYPE)
    assert answer.json["status"] == status
    assert answer.json["request_id"] == answer.headers["x-openstack-request-id"]
    assert answer.json.keys() <= problems.SCHEMA["properties"].keys()
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(
    "path", ["/v2", "/v1/none", "/v1/servers/a/b/c", "/v1//servers", "/v1/servers/%2e%2e"]
)
def test_what_is_nowhere(api: Api, path: str) -> None:
    problem(api.get(path, api.login("admin")), 404)


def test_another_method_says_which_there_are(api: Api) -> None:
    answer = api.request("DELETE", "/v1/policy", api.login("admin"))
    problem(answer, 405)
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"nonce": NaN}', b"[" * 100_000, b'{"a":' * 20_000, b'{"nonce": 1e999999}',
     b'"' + b"x" * 1000, b"null", b"1" * 5000],
)  # fmt: skip
def test_a_body_that_is_no_document(api: Api, data: bytes) -> None:
    problem(
        api.request("POST", CHALLENGE, api.login("member"), data=data, content_type="application/json"), 400
    )


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_a_body_of_another_type(api: Api, kind: str) -> None:
    problem(api.request("POST", CHALLENGE, api.login("member"), data=b"{}", content_type=kind), 415)
    problem(api.request("POST", "/v1/references", api.login("admin"), data=b"x", content_type=kind), 415)


def test_a_body_that_is_too_large(api: Api) -> None:
    data = json.dumps({"nonce": "0" * (200 << 10)})
    answer = api.request("POST", CHALLENGE, api.login("member"), data=data, content_type="application/json")
    problem(answer, 413)


def test_a_bus_that_is_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(client: object, host: str, nonce: str) -> str:
        raise oslo_messaging.MessagingTimeout(f"no reply from rabbit@{HOST}")

    monkeypatch.setattr("nova_vmi_attest.messaging.VerifierClient.challenge", away)
    answer = api.request("POST", CHALLENGE, api.login("member"), json={"nonce": "0" * 64})
    found = problem(answer, 503)
    assert "try again" in found["remedy"]
    assert answer.headers["Retry-After"] == "5"
    assert HOST not in answer.text


def test_a_database_that_is_away_or_of_another_schema(empty_api: Api, tmp_path: Path) -> None:
    for connection in (f"sqlite:///{tmp_path}/none/attest.sqlite", f"sqlite:///{tmp_path}/empty.sqlite"):
        empty_api.conf.set_override("connection", connection, "database")
        empty_api.restart()
        answer = empty_api.get("/v1/servers", empty_api.login("reader"))
        problem(answer, 503)
        assert str(tmp_path) not in answer.text


def test_a_database_that_comes_back_serves_without_a_restart(empty_api: Api, tmp_path: Path) -> None:
    good = empty_api.conf.database.connection
    empty_api.conf.set_override("connection", f"sqlite:///{tmp_path}/empty.sqlite", "database")
    empty_api.restart()
    assert empty_api.get("/v1/servers", empty_api.login("reader")).status_code == 503
    empty_api.conf.set_override("connection", good, "database")
    assert empty_api.get("/v1/servers", empty_api.login("reader")).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        webob.exc.HTTPServiceUnavailable("The Keystone service at 10.0.0.1 is temporarily unavailable."),
        keystoneauth1.exceptions.Unauthorized("the password of the service at 10.0.0.1 is wrong"),
        keystoneauth1.exceptions.EndpointNotFound("10.0.0.1"),
    ],
)
def test_keystone_is_away(api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def away(middleware: object, token: str, **arguments: object) -> None:
        raise error

    token = api.login("admin")
    monkeypatch.setattr(AuthProtocol, "fetch_token", away)
    answer = api.get("/v1/servers", token)
    problem(answer, 503)
    assert "10.0.0.1" not in answer.text


def test_a_fault_of_ours_says_nothing_of_itself(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Validation, arguments: object) -> None:
        raise KeyError("secret of the inside")

    monkeypatch.setattr(Validation, "query", broken)
    answer = api.get("/v1/servers", api.login("admin"))
    problem(answer, 500)
    assert "secret" not in answer.text


def test_stored_times_that_no_calendar_has_are_no_times(api: Api) -> None:
    with api.database.writer() as session:
        from nova_vmi_attest.db.models import ResultRow

        session.get_one(ResultRow, HOST).expires = 1 << 62
    shown = api.get(f"/v1/hosts/{HOST}", api.login("admin")).json
    assert (shown["valid_until"], shown["verdict"]) == (None, Verdict.TRUSTED.value)


def test_whoever_asks_for_health_or_versions_needs_no_token(empty_api: Api) -> None:
    for path in ("/", "/v1", "/v1/", "/v1/openapi.json", "/healthcheck"):
        answer = empty_api.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-openstack-request-id"].startswith("req-")


def test_answers_are_for_nobodys_cache(api: Api) -> None:
    headers = api.get("/v1/servers", api.login("reader")).headers
    assert (headers["Cache-Control"], headers["Vary"]) == ("no-store", "X-Auth-Token")
