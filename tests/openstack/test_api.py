# SPDX-License-Identifier: Apache-2.0
"""The REST API in a real cloud: found in the catalogue, used with Keystone's tokens, true to Nova."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
from cryptography import x509
from lab.cloud.cloud import Cloud
from lab.cloud.waiting import until

from nova_vmi_attest.evidence.proof import GuestProof, verify_proof
from tests.openstack.conftest import Boot

TYPE = "attestation"


def ask(cloud: Cloud, user: str, path: str, method: str = "GET", **arguments: Any) -> Any:
    """A request by one of the cloud's users to the endpoint in the catalogue."""
    session = cloud.user(user).session
    return session.request(path, method, endpoint_filter={"service_type": TYPE}, raise_exc=False, **arguments)


def test_the_catalogue_leads_to_the_versions(cloud: Cloud) -> None:
    endpoint = cloud.user("alpha").session.get_endpoint(service_type=TYPE)
    assert endpoint is not None
    versions = ask(cloud, "alpha", "/").json()["versions"]
    assert [version["id"] for version in versions] == ["v1.0"]


def test_a_tenant_sees_his_server_and_another_project_does_not(cloud: Cloud, boot: Boot) -> None:
    server = boot("seen")
    cloud.wait_verdict(server)
    path = f"/v1/servers/{server.id}"
    for user in ("alpha", "alpha-reader"):
        shown = until(lambda who=user: _shown(cloud, who, path), "the API to show the server", 60)
        assert (shown["name"], shown["verdict"], shown["host_verdict"]) == ("seen", "trusted", "trusted")
        assert shown["kernel"]
        assert not {"host", "shown_by"} & shown.keys()
        listed = ask(cloud, user, "/v1/servers").json()["servers"]
        assert server.id in [item["id"] for item in listed]
    for more in ("", "/history", "/proof"):
        assert ask(cloud, "beta", path + more).status_code == 404
    assert server.id not in ask(cloud, "beta", "/v1/servers").text
    assert _shown(cloud, "admin", path)["host"] == server.compute_host


def test_a_tenants_nonce_is_answered_and_the_proof_holds(cloud: Cloud, boot: Boot) -> None:
    server = boot("proven")
    cloud.wait_verdict(server)
    path, nonce = f"/v1/servers/{server.id}", secrets.token_bytes(32)
    until(lambda: _shown(cloud, "alpha", path), "the API to show the server", 60)
    reader = ask(cloud, "alpha-reader", f"{path}/challenges", "POST", json={"nonce": nonce.hex()})
    assert reader.status_code == 403

    def proof() -> bytes | None:
        answer = ask(cloud, "alpha", f"{path}/proof", params={"nonce": nonce.hex()})
        if answer.status_code in (404, 409):
            ask(cloud, "alpha", f"{path}/challenges", "POST", json={"nonce": nonce.hex()})
        return bytes(answer.content) if answer.status_code == 200 else None

    found = GuestProof.decode(until(proof, "the proof", 60))
    anchors = ask(cloud, "alpha", "/v1/trust-anchors").json()["authority_certificates"]
    authorities = [x509.load_pem_x509_certificate(item["pem"].encode()) for item in anchors]
    measurement = verify_proof(found, authorities, nonce, time.time())
    assert str(measurement.guest) == server.id


def test_the_history_is_there_after_the_server(cloud: Cloud, boot: Boot) -> None:
    server = boot("gone")
    cloud.wait_verdict(server)
    path = f"/v1/servers/{server.id}"
    until(lambda: _shown(cloud, "alpha", path), "the API to show the server", 60)
    cloud.delete(server)
    shown = until(lambda: _deleted(cloud, path), "the API to learn of the deletion", 120)
    assert shown["status"] == "DELETED"
    history = ask(cloud, "alpha", f"{path}/history").json()["history"]
    assert "trusted" in [item["verdict"] for item in history]
    assert ask(cloud, "beta", f"{path}/history").status_code == 404


def test_hosts_are_the_operators_business(cloud: Cloud) -> None:
    hosts = {item["name"]: item for item in ask(cloud, "admin", "/v1/hosts").json()["hosts"]}
    assert {name: hosts[name]["registered"] for name in cloud.computes} == dict.fromkeys(cloud.computes, True)
    for user in ("alpha", "alpha-reader"):
        assert ask(cloud, user, "/v1/hosts").status_code == 403
        body = {"reason": "x", "hours": 1}
        path = "/v1/hosts/compute-1/override"
        assert ask(cloud, user, path, "PUT", json=body).status_code == 403


def test_references_that_the_cloud_has_are_listed(cloud: Cloud) -> None:
    references = ask(cloud, "alpha", "/v1/references").json()["references"]
    assert references
    assert ask(cloud, "alpha", f"/v1/references/{references[0]['digest']}", "DELETE").status_code == 403


@pytest.mark.parametrize("headers", [{}, {"X-Auth-Token": "none"}])
def test_without_a_token_of_keystones_nothing_is_said(cloud: Cloud, headers: dict[str, str]) -> None:
    answer = ask(cloud, "alpha", "/v1/servers", authenticated=False, headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")
    assert answer.headers["WWW-Authenticate"].startswith("Keystone uri=")


def test_a_token_that_was_revoked_is_refused(cloud: Cloud) -> None:
    session = cloud.user("alpha").session
    token = session.auth.get_access(session).auth_token
    fresh = session.auth.get_auth_ref(session).auth_token
    assert fresh != token
    headers = {"X-Auth-Token": fresh}
    cloud.admin.identity.delete("/auth/tokens", headers={"X-Subject-Token": fresh})
    answer = ask(cloud, "alpha", "/v1/servers", authenticated=False, headers=headers)
    assert answer.status_code == 401


def _shown(cloud: Cloud, user: str, path: str) -> Any:
    """The server as the API shows it, once it does and has a verdict."""
    answer = ask(cloud, user, path)
    found = answer.json() if answer.status_code == 200 else None
    return found if found and found["verdict"] == "trusted" else None


def _deleted(cloud: Cloud, path: str) -> Any:
    found = ask(cloud, "alpha", path).json()
    return found if found.get("deleted_at") else None
