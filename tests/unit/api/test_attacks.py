# SPDX-License-Identifier: Apache-2.0
"""What a hostile tenant tries: other identities, other tenants, other places, lines in our log."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from nova_vmi_attest.db import models
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.verifier.staleness import Staleness
from tests.unit.api.cloud import OTHER, PROJECT, Api
from tests.unit.api.rows import BAD, HOST, NEW, SILENT, THEIRS, server

CLAIMS = {
    "X-Identity-Status": "Confirmed",
    "X-Roles": "admin,reader",
    "X-Role": "admin",
    "X-Project-Id": OTHER,
    "X-Tenant-Id": OTHER,
    "X-User-Id": "root",
    "X-Is-Admin-Project": "True",
    "X-Service-Roles": "admin",
    "X-Service-Identity-Status": "Confirmed",
    "OpenStack-System-Scope": "all",
    "X-Domain-Id": "default",
}


def one_by_one() -> list[dict[str, str]]:
    return [*({name: value} for name, value in CLAIMS.items()), CLAIMS]


@pytest.mark.parametrize("claims", one_by_one())
def test_claims_in_headers_change_nothing(api: Api, claims: dict[str, str]) -> None:
    """Above all the scope of the system, by which a reader of one project would read all of them."""
    reader = api.login("reader")
    assert api.get(f"/v1/servers/{THEIRS}", reader, headers=claims).status_code == 404
    assert api.get("/v1/servers?all_projects=true", reader, headers=claims).status_code == 403
    assert api.get("/v1/hosts", reader, headers=claims).status_code == 403
    assert api.get("/v1/hosts", headers=claims).status_code == 401
    assert api.get("/v1/audit-records", api.login("nobody"), headers=claims).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../v1/hosts", "/v1/%2e%2e/v1/hosts", "/v1//hosts", "//v1/hosts", "/v1/;/hosts", "/v1/hosts%00",
        "/v1/hosts/", "/healthcheck/../v1/hosts", "/healthcheck/v1/hosts", "/v1/openapi.json/../hosts",
        "/v1/HOSTS", "/v1/hosts?x", "/v1%2fhosts", "/%76%31/hosts",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_token(api: Api, path: str) -> None:
    answer = api.get(path, headers=CLAIMS)
    assert HOST not in answer.text
    assert "compute" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Prefix": "/evil.example"},
        {"X-Forwarded-Proto": "gopher", "Forwarded": "host=evil.example;proto=gopher"},
        {"X-Script-Name": "//evil.example"},
        {"X-Original-Url": "/v1/hosts", "X-Rewrite-Url": "/v1/hosts"},
        {"X-Http-Method-Override": "DELETE", "X-Method-Override": "DELETE"},
    ],
)
def test_no_header_chooses_where_links_lead_or_what_is_done(api: Api, headers: dict[str, str]) -> None:
    page = api.get("/v1/servers?limit=1", api.login("reader"), headers=headers)
    assert page.json["links"][0]["href"].startswith("/v1/servers?limit=1&marker=")
    assert "evil.example" not in page.text + str(page.headers)
    version = api.get("/v1", headers=headers)
    assert version.json["version"]["links"][0]["href"] == "/v1/"


def test_a_server_that_changed_hands_is_only_the_new_projects(api: Api) -> None:
    """Nova itself never does that; an operator who edits its database does."""
    mine, other = api.login("member"), api.login("member", OTHER)
    assert api.get(f"/v1/servers/{BAD}", mine).status_code == 200
    with api.database.writer() as session:
        session.merge(server(BAD, OTHER, HOST, int(time.time())))
    for more in ("", "/history", "/proof"):
        assert api.get(f"/v1/servers/{BAD}{more}", mine).status_code == 404
    assert BAD not in api.get("/v1/servers", mine).text
    assert api.get(f"/v1/servers/{BAD}/history", other).status_code == 200
    asked = api.request("POST", f"/v1/servers/{BAD}/challenges", mine, json={"nonce": "a" * 64})
    assert asked.status_code == 404


@pytest.mark.parametrize("project", ["", "-", "None", "%(project_id)s", PROJECT.upper()])
def test_rows_of_odd_projects_are_nobodys(api: Api, project: str) -> None:
    with api.database.writer() as session:
        session.merge(server(NEW, project, HOST, int(time.time())))
    for token in (api.login("member"), api.login("member", None), api.login("member", OTHER)):
        assert api.get(f"/v1/servers/{NEW}", token).status_code in (403, 404)
        listed = api.get("/v1/servers", token)
        assert NEW not in listed.text


def test_no_answer_tells_whether_another_tenants_server_exists(api: Api) -> None:
    nobodys = "12345678-1234-4234-8234-123456789abc"
    token = api.login("member")
    for more in ("", "/history", "/proof", f"/proof?nonce={'a' * 64}"):
        theirs, none = (api.get(f"/v1/servers/{guest}{more}", token) for guest in (THEIRS, nobodys))
        same = [{**answer.json, "request_id": ""} for answer in (theirs, none)]
        assert same[0] == same[1]
        assert (theirs.status_code, none.status_code) == (404, 404)
    posts = [
        api.request("POST", f"/v1/servers/{guest}/challenges", token, json={"nonce": "a" * 64})
        for guest in (THEIRS, nobodys)
    ]
    assert [answer.status_code for answer in posts] == [404, 404]


def test_a_page_begins_at_another_tenants_server_and_shows_nothing_of_it(api: Api) -> None:
    page = api.get(f"/v1/servers?marker={THEIRS}", api.login("reader"))
    assert page.status_code == 200
    assert THEIRS not in str(page.json["servers"])
    history = api.get(f"/v1/servers/{BAD}/history?marker=999999999999999999", api.login("reader"))
    assert {item["verdict"] for item in history.json["history"]} == {"trusted", "untrusted"}


@pytest.mark.parametrize(
    "path", ["/v1/servers/a%0d%0aFORGED", "/v1/servers?verdict=%0aFORGED", "/v1/%0aFORGED", "/%1b[2JFORGED"]
)
def test_no_path_makes_a_line_in_the_log(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    api.get(path, api.login("admin"), headers={"X-Openstack-Request-Id": "req-\tFORGED"})
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert not [line for line in lines if line.lstrip().startswith("FORGED")]
    assert "\x1b" not in caplog.text


def test_a_host_that_fell_silent_is_shown_as_the_document_has_it(api: Api) -> None:
    """Marked as stale in the database, it has still said something before."""
    with api.database.writer() as session:
        session.merge(
            models.KnownHost(
                name=SILENT,
                tpm="t",
                certificate="c",
                announced_at=1,
                challenged_at=1,
                answered_at=1,
                last_error="",
            )
        )
    now = int(time.time()) + CLOCK_SKEW
    assert Staleness(api.database, 300, 0.0).look(now, 1e9) == (SILENT,)
    shown: Any = api.get(f"/v1/hosts/{SILENT}", api.login("admin")).json
    assert (shown["verdict"], shown["last_verdict"]) == ("stale", "trusted")
    listed = api.get("/v1/hosts", api.login("admin")).json["hosts"]
    assert {item["last_verdict"] for item in listed} == {None, "trusted"}
