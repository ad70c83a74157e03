# SPDX-License-Identifier: Apache-2.0
"""What operators see of hosts, and how they enrol, approve, revoke and vouch."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select

from nova_vmi_attest.db.models import AuditRecord, PendingHostRow
from nova_vmi_attest.records.registry import HostRegistry
from tests.unit.api.cloud import Api
from tests.unit.api.rows import DIGEST, HOST, SECOND, SILENT, STRANGER
from tests.unit.tpm.maker import Chip, Maker

ALL = [HOST, SECOND, SILENT, "compute-4"]


def names(answer: object) -> list[str]:
    return [item["name"] for item in answer.json["hosts"]]  # type: ignore[attr-defined]


@pytest.fixture
def pem() -> str:
    certificate = x509.load_der_x509_certificate(Chip(Maker()).ek_certificate())
    return certificate.public_bytes(Encoding.PEM).decode()


def enrol(api: Api, name: str, pem: str) -> object:
    return api.request("POST", "/v1/hosts", api.login("admin"), json={"name": name, "ek_certificate": pem})


def test_every_host_is_listed_that_any_table_knows(api: Api) -> None:
    answer = api.get("/v1/hosts", api.login("admin"))
    assert names(answer) == ALL
    verdicts = {item["name"]: item["verdict"] for item in answer.json["hosts"]}
    assert verdicts == {HOST: "trusted", SECOND: "untrusted", SILENT: "stale", "compute-4": "unknown"}
    registered = [item["name"] for item in answer.json["hosts"] if item["registered"]]
    assert registered == [HOST, "compute-4"]


@pytest.mark.parametrize(
    ("verdict", "found"),
    [("trusted", [HOST]), ("untrusted", [SECOND]), ("stale", [SILENT]), ("unknown", ["compute-4"])],
)
def test_the_filter_finds_what_the_list_shows(api: Api, verdict: str, found: list[str]) -> None:
    assert names(api.get(f"/v1/hosts?verdict={verdict}", api.login("admin"))) == found


def test_pages_of_hosts_follow_each_other(api: Api) -> None:
    token, found, url = api.login("reader", None, system=True), [], "/v1/hosts?limit=1"
    while url:
        page = api.get(url, token)
        found += names(page)
        url = page.json["links"][0]["href"] if page.json["links"] else ""
    assert found == ALL


def test_a_host_is_shown_with_its_guests_and_the_operators_word(api: Api) -> None:
    shown = api.get(f"/v1/hosts/{HOST}", api.login("admin")).json
    assert shown["servers"] == {"trusted": 4, "untrusted": 1}
    assert shown["unknown_to_nova"] == [STRANGER]
    second = api.get(f"/v1/hosts/{SECOND}", api.login("admin")).json
    assert second["override"]["reason"] == "board swap"
    assert second["reasons"][0]["check"] == "pcr"


@pytest.mark.parametrize("name", ["compute-9", "COMPUTE-1", "a b", "x" * 254, "..%2f", "%00", "é"])
def test_no_such_host(api: Api, name: str) -> None:
    assert api.get(f"/v1/hosts/{name}", api.login("admin")).status_code == 404


def test_enrolment_says_which_tpm_is_in_a_host(api: Api, pem: str) -> None:
    answer = enrol(api, "compute-7", pem)
    assert answer.status_code == 201  # type: ignore[attr-defined]
    assert answer.headers["Location"].endswith("/v1/hosts/compute-7")  # type: ignore[attr-defined]
    host = HostRegistry(api.database).host("compute-7")
    assert host is not None
    assert host.ek_digest == answer.json["ek_digest"]  # type: ignore[attr-defined]
    again, elsewhere = enrol(api, "compute-7", pem), enrol(api, "compute-8", pem)
    assert (again.status_code, elsewhere.status_code) == (201, 409)  # type: ignore[attr-defined]


@pytest.mark.parametrize("pem", ["x", "-----BEGIN CERTIFICATE-----\n", "\ud800", "é", "\0" * 10, "A" * 65536])
def test_what_is_no_certificate_enrols_nobody(api: Api, pem: str) -> None:
    assert enrol(api, "compute-7", pem).status_code == 400  # type: ignore[attr-defined]
    assert HostRegistry(api.database).host("compute-7") is None


@pytest.mark.parametrize("name", ["", "a b", "a\n", "compute-7\n", "ä", "x" * 254])
def test_what_is_no_host_name_is_not_enrolled(api: Api, pem: str, name: str) -> None:
    assert enrol(api, name, pem).status_code == 400  # type: ignore[attr-defined]


def test_a_host_that_asked_is_approved_with_the_digest_that_was_compared(api: Api) -> None:
    admin = api.login("admin")
    waiting = api.get("/v1/hosts/pending", admin).json["pending"]
    assert [(item["name"], item["ek_digest"]) for item in waiting] == [("compute-5", DIGEST)]
    wrong = api.request("POST", "/v1/hosts/compute-5/approve", admin, json={"ek_digest": "e" * 64})
    assert wrong.status_code == 404
    right = api.request("POST", "/v1/hosts/compute-5/approve", admin, json={"ek_digest": DIGEST})
    assert (right.status_code, right.json["ek_digest"]) == (200, DIGEST)
    assert api.get("/v1/hosts/pending", admin).json["pending"] == []


def test_a_registered_host_is_not_approved_with_another_key(api: Api) -> None:
    with api.database.writer() as session:
        session.add(PendingHostRow(host=HOST, ek_digest=DIGEST, ek_certificate="x", asked_at=1, asked_last=1))
    answer = api.request("POST", f"/v1/hosts/{HOST}/approve", api.login("admin"), json={"ek_digest": DIGEST})
    assert answer.status_code == 409
    assert HostRegistry(api.database).require(HOST, "1" * 64) is None


def test_requests_that_wait_have_pages(api: Api) -> None:
    with api.database.writer() as session:
        session.add_all(
            PendingHostRow(
                host="compute-6", ek_digest=f"{n:064x}", ek_certificate="x", asked_at=1, asked_last=1
            )
            for n in range(3)
        )
    admin, found, url = api.login("admin"), [], "/v1/hosts/pending?limit=1"
    while url:
        page = api.get(url, admin).json
        found += [item["ek_digest"] for item in page["pending"]]
        url = page["links"][0]["href"] if page["links"] else ""
    assert found == [DIGEST, *(f"{n:064x}" for n in range(3))]


def test_revoking_withdraws_the_enrolment_once(api: Api) -> None:
    admin = api.login("admin")
    assert api.request("DELETE", f"/v1/hosts/{HOST}", admin).status_code == 204
    assert api.get(f"/v1/hosts/{HOST}", admin).json["registered"] is False
    assert api.request("DELETE", f"/v1/hosts/{HOST}", admin).status_code == 404


def test_an_override_is_made_shown_recorded_and_lifted(api: Api) -> None:
    admin, path = api.login("admin"), f"/v1/hosts/{HOST}/override"
    made = api.request("PUT", path, admin, json={"reason": "new firmware", "hours": 2})
    assert (made.status_code, made.json["override"]["made_by"]) == (200, "c" * 32)
    assert api.request("DELETE", path, admin).status_code == 204
    assert api.get(f"/v1/hosts/{HOST}", admin).json["override"] is None
    assert api.request("DELETE", path, admin).status_code == 404
    with api.database.reader() as session:
        actions = list(session.scalars(select(AuditRecord.action).order_by(AuditRecord.id)))
    assert actions[-2:] == ["override", "lift-override"]


@pytest.mark.parametrize(
    "body",
    [{"reason": "x", "hours": 0}, {"reason": "x", "hours": 25}, {"reason": "x", "hours": 1.5},
     {"reason": "x", "hours": True}, {"reason": "", "hours": 1}, {"reason": " ", "hours": 1},
     {"reason": "a\x1b[2J", "hours": 1}, {"reason": "\ud800", "hours": 1}, {"reason": "x" * 1025, "hours": 1},
     {"reason": "x"}, {"hours": 1}, {"reason": "x", "hours": 1, "made_by": "me"}, [], 1],
)  # fmt: skip
def test_an_override_that_is_none(api: Api, body: object) -> None:
    answer = api.request("PUT", f"/v1/hosts/{HOST}/override", api.login("admin"), json=body)
    assert answer.status_code == 400
    assert api.get(f"/v1/hosts/{HOST}", api.login("admin")).json["override"] is None


def test_a_host_that_nobody_knows_gets_no_override(api: Api) -> None:
    body = {"reason": "x", "hours": 1}
    answer = api.request("PUT", "/v1/hosts/compute-9/override", api.login("admin"), json=body)
    assert answer.status_code == 404


def test_a_host_is_challenged_with_or_without_a_nonce(api: Api, verifier: list[tuple[str, str]]) -> None:
    admin, path = api.login("admin"), f"/v1/hosts/{HOST}/challenges"
    assert api.request("POST", path, admin, json={}).json == {"nonce": "f" * 64}
    assert api.request("POST", path, admin, json={"nonce": "0" * 64}).status_code == 202
    assert verifier == [(HOST, ""), (HOST, "0" * 64)]


def test_a_host_that_is_called_pending_can_be_revoked(api: Api, pem: str) -> None:
    assert enrol(api, "pending", pem).status_code == 201  # type: ignore[attr-defined]
    assert api.request("DELETE", "/v1/hosts/pending", api.login("admin")).status_code == 204
