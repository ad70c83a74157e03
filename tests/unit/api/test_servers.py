# SPDX-License-Identifier: Apache-2.0
"""Tenants see their own servers and no host, operators see all, and verdicts are the scheduler's."""

from __future__ import annotations

import time

import pytest

from nova_vmi_attest.db import models
from nova_vmi_attest.messaging import RefusedError
from tests.unit.api.cloud import OTHER, PROJECT, Api
from tests.unit.api.rows import (
    BAD,
    DECOY,
    GONE,
    GOOD,
    HOST,
    MINE,
    MOVING,
    NEW,
    OLD,
    SECOND,
    SHOWN_TWICE,
    SILENT,
    STRANGER,
    THEIRS,
    server,
)

VERDICTS = {
    GOOD: "trusted",
    BAD: "untrusted",
    NEW: "unknown",
    OLD: "stale",
    MOVING: "trusted",
    SHOWN_TWICE: "unknown",
}
HOSTS = (HOST, SECOND, DECOY, SILENT)


def ids(answer: object) -> list[str]:
    return [item["id"] for item in answer.json["servers"]]  # type: ignore[attr-defined]


def test_a_tenant_lists_his_servers_with_their_verdicts(api: Api) -> None:
    answer = api.get("/v1/servers", api.login("reader"))
    assert {item["id"]: item["verdict"] for item in answer.json["servers"]} == VERDICTS
    assert answer.json["next_marker"] is None
    old = next(item for item in answer.json["servers"] if item["id"] == OLD)
    assert (old["last_verdict"], old["host_verdict"], old["kernel"]) == (
        "trusted", "stale", "6.1.0-56-cloud-amd64",
    )  # fmt: skip


@pytest.mark.parametrize("verdict", ["trusted", "untrusted", "unknown", "stale"])
def test_the_filter_finds_what_the_list_shows(api: Api, verdict: str) -> None:
    answer = api.get(f"/v1/servers?verdict={verdict}", api.login("reader"))
    assert ids(answer) == [guest for guest in MINE if VERDICTS[guest] == verdict]


def test_no_tenant_ever_reads_the_name_of_a_host(api: Api) -> None:
    token = api.login("member")
    paths = ["/v1/servers", "/v1/refusals"]
    paths += [f"/v1/servers/{guest}{more}" for guest in (*MINE, GONE) for more in ("", "/history")]
    for path in paths:
        answer = api.get(path, token)
        assert answer.status_code == 200
        assert [host for host in HOSTS if host in answer.text] == []


def test_reasons_keep_what_is_the_tenants_and_hide_what_speaks_of_the_host(api: Api) -> None:
    reasons = api.get(f"/v1/servers/{BAD}", api.login("reader")).json["reasons"]
    assert [reason["check"] for reason in reasons] == ["modules", "text", "host_untrusted"]
    assert reasons[0]["detail"] == "not in the reference package"
    assert {reason["detail"] for reason in reasons[1:]} == {"the operator may see the details"}


def test_an_operator_sees_hosts_and_details(api: Api) -> None:
    shown = api.get(f"/v1/servers/{SHOWN_TWICE}", api.login("admin", OTHER)).json
    assert shown["host"] == HOST
    assert shown["shown_by"] == [{"host": DECOY, "verdict": "unknown"}, {"host": HOST, "verdict": "trusted"}]
    assert HOST in api.get(f"/v1/servers/{BAD}", api.login("admin")).json["reasons"][1]["detail"]


@pytest.mark.parametrize("more", ["", "/history", "/proof"])
@pytest.mark.parametrize("guest", [THEIRS, STRANGER, "00000000-0000-4000-8000-0000000000ff", "no-uuid"])
def test_a_foreign_server_is_an_unknown_one(api: Api, guest: str, more: str) -> None:
    answer = api.get(f"/v1/servers/{guest}{more}", api.login("member"))
    assert answer.status_code == 404
    unknown = api.get("/v1/servers/11111111-1111-4111-8111-111111111111" + more, api.login("member"))
    ours, theirs = answer.json, unknown.json
    if guest != "no-uuid":
        del ours["request_id"], theirs["request_id"]
        assert ours == theirs


def test_nobody_challenges_for_a_foreign_server(api: Api) -> None:
    answer = api.request(
        "POST", f"/v1/servers/{THEIRS}/challenges", api.login("member"), json={"nonce": "0" * 64}
    )
    assert answer.status_code == 404


@pytest.mark.parametrize("query", ["all_projects=true", f"host={HOST}", f"host={HOST}&all_projects=false"])
def test_a_tenant_does_not_list_beyond_his_project(api: Api, query: str) -> None:
    assert api.get(f"/v1/servers?{query}", api.login("member")).status_code == 403


def test_operators_list_all_projects_and_one_host(api: Api) -> None:
    admin = api.login("admin", OTHER)
    assert ids(api.get("/v1/servers", admin)) == [THEIRS]
    assert ids(api.get("/v1/servers?all_projects=true", admin)) == [*MINE, THEIRS]
    assert ids(api.get(f"/v1/servers?host={SECOND}", admin)) == [MOVING, THEIRS]
    assert ids(api.get("/v1/servers", api.login("reader", None, system=True))) == [*MINE, THEIRS]


def test_pages_follow_each_other_and_keep_the_query(api: Api) -> None:
    token, found, url = api.login("reader"), [], "/v1/servers?limit=2&verdict=trusted"
    page = api.get(url, token).json
    assert [item["id"] for item in page["servers"]] == [GOOD, MOVING]
    assert page["next_marker"] is None
    url = "/v1/servers?limit=4"
    while url:
        page = api.get(url, token).json
        found += [item["id"] for item in page["servers"]]
        url = page["links"][0]["href"] if page["links"] else ""
    assert found == list(MINE)


def test_a_limit_above_the_services_own_is_cut(api: Api) -> None:
    api.conf.set_override("max_limit", 3, "api")
    page = api.get("/v1/servers?limit=100000", api.login("reader")).json
    assert (len(page["servers"]), page["next_marker"]) == (3, NEW)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=x", "limit=1&limit=2", "limit=99999999999999999999", "marker=x", "marker=",
     f"marker={GOOD}%0A", "verdict=bad", "verdict=", "host=a/b", "all_projects=1", "unknown=1", "%00=1",
     "marker=%ff%fe"],
)  # fmt: skip
def test_a_query_that_means_nothing_is_refused(api: Api, query: str) -> None:
    answer = api.get(f"/v1/servers?{query}", api.login("admin"))
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")


def test_the_history_outlives_the_server(api: Api) -> None:
    token = api.login("reader")
    assert GONE not in ids(api.get("/v1/servers", token))
    shown = api.get(f"/v1/servers/{GONE}", token).json
    assert shown["status"] == "DELETED"
    assert shown["deleted_at"].endswith("Z")
    history = api.get(f"/v1/servers/{GONE}/history", token).json["history"]
    assert [(item["previous"], item["verdict"]) for item in history] == [
        ("trusted", "untrusted"), (None, "trusted"),
    ]  # fmt: skip


def test_the_history_has_pages(api: Api) -> None:
    token = api.login("reader")
    first = api.get(f"/v1/servers/{BAD}/history?limit=1", token).json
    second = api.get(first["links"][0]["href"], token).json
    assert [page["history"][0]["verdict"] for page in (first, second)] == ["untrusted", "trusted"]
    assert second["next_marker"] is None


def test_a_guest_that_nova_does_not_know_is_shown_to_operators(api: Api) -> None:
    shown = api.get(f"/v1/servers/{STRANGER}", api.login("admin")).json
    assert (shown["project_id"], shown["verdict"], shown["host"]) == (None, "trusted", HOST)
    assert api.get(f"/v1/servers/{STRANGER}/history", api.login("admin")).status_code == 200


@pytest.mark.parametrize(
    "nonce", ["", "00", "g" * 64, "A" * 64, "0" * 63 + "\n", "0" * 64 + "\n", 0, None, []]
)
def test_a_challenge_needs_a_nonce(api: Api, nonce: object) -> None:
    answer = api.request("POST", f"/v1/servers/{GOOD}/challenges", api.login("member"), json={"nonce": nonce})
    assert answer.status_code == 400


def test_a_challenge_reaches_the_servers_host(api: Api, verifier: list[tuple[str, str]]) -> None:
    nonce = "ab" * 32
    answer = api.request("POST", f"/v1/servers/{GOOD}/challenges", api.login("member"), json={"nonce": nonce})
    assert (answer.status_code, answer.json) == (202, {"nonce": nonce})
    assert verifier == [(HOST, nonce)]


def test_a_refused_challenge_names_no_host(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def challenge(client: object, host: str, nonce: str) -> str:
        raise RefusedError(f"host {host} was challenged too often", "wait")

    monkeypatch.setattr("nova_vmi_attest.messaging.VerifierClient.challenge", challenge)
    path, body = f"/v1/servers/{GOOD}/challenges", {"nonce": "0" * 64}
    tenant = api.request("POST", path, api.login("member"), json=body)
    assert tenant.status_code == 409
    assert HOST not in tenant.text
    assert HOST in api.request("POST", path, api.login("admin"), json=body).text


def test_a_server_on_no_host_cannot_be_challenged(api: Api) -> None:
    answer = api.request(
        "POST", f"/v1/servers/{NEW}/challenges", api.login("member"), json={"nonce": "0" * 64}
    )
    assert (answer.status_code, answer.json["detail"]) == (409, "the server is on no host")


def test_a_server_without_evidence_has_no_proof(api: Api) -> None:
    assert api.get(f"/v1/servers/{GOOD}/proof", api.login("member")).status_code == 404


def test_a_page_costs_the_same_number_of_queries_whatever_is_on_it(api: Api) -> None:
    now = int(time.time())
    counted: list[int] = []
    with api.database.writer() as session:
        for number in range(300):
            guest = f"00000000-0000-4000-8000-{number:012}"
            session.add(server(guest, PROJECT, HOST, now))
    for limit in (1, 300):
        counted.append(api.count_queries(f"/v1/servers?limit={limit}", api.login("reader")))
    assert counted[0] == counted[1] <= 4


def test_a_project_whose_name_differs_in_case_is_another(api: Api) -> None:
    assert ids(api.get("/v1/servers", api.login("reader", PROJECT.upper()))) == []


def test_a_deleted_row_is_history_not_a_verdict(api: Api) -> None:
    with api.database.reader() as session:
        assert session.get(models.ServerRow, GONE) is not None
    assert api.get(f"/v1/servers/{GONE}", api.login("reader")).json["verdict"] == "unknown"
