# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole cloud: policy, keys, refusals and the record."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.db.models import RefusalRow
from tests.unit.api.cloud import OTHER, PROJECT, Api
from tests.unit.api.rows import HOST, NEW, THEIRS
from tests.unit.tpm.maker import Chip, Maker


def test_the_policy_says_what_it_does_not_insist_on(empty_api: Api) -> None:
    token = empty_api.login("reader")
    assert empty_api.get("/v1/policy", token).json["relaxations"] == []
    empty_api.conf.set_override("required_checks", ["text"], "policy")
    empty_api.conf.set_override("unsafe_tolerate_hooks", True, "policy")
    relaxations = empty_api.get("/v1/policy", token).json["relaxations"]
    assert "hooked kernels are tolerated" in relaxations
    assert "the check modules is not required" in relaxations


def test_anchors_are_shown_and_no_private_member_of_a_key(empty_api: Api) -> None:
    der = Chip(Maker()).ek_certificate()
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    Path(empty_api.conf.verifier.authority_certificates).write_bytes(pem)
    key = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB"}
    Path(empty_api.conf.relying.verifier_keys).write_text(json.dumps({"keys": [{**key, "d": "private"}]}))
    anchors = empty_api.get("/v1/trust-anchors", empty_api.login("reader")).json
    assert anchors["verifier_keys"] == {"keys": [key]}
    assert [item["pem"] for item in anchors["authority_certificates"]] == [pem.decode()]


def test_anchors_that_cannot_be_read(empty_api: Api, tmp_path: Path) -> None:
    files = empty_api.conf.verifier.authority_certificates, empty_api.conf.relying.verifier_keys
    for content in (None, "", "{}", '{"keys": 1}', '{"keys": [1]}', "[" * 100_000):
        for file in files:
            if content is not None:
                Path(file).write_text(content)
        answer = empty_api.get("/v1/trust-anchors", empty_api.login("reader"))
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text


def test_a_tenant_sees_that_his_server_was_refused_and_not_where(api: Api) -> None:
    found = api.get("/v1/refusals", api.login("reader")).json["refusals"]
    assert [(item["server_id"], item["total"], item["level"]) for item in found] == [(NEW, 1, "required")]
    assert "hosts" not in found[0]
    assert api.get(f"/v1/refusals?server={THEIRS}", api.login("reader")).json["refusals"] == []


def test_an_operator_sees_every_refusal_with_its_hosts(api: Api) -> None:
    found = api.get("/v1/refusals", api.login("admin")).json["refusals"]
    assert [item["project_id"] for item in found] == [OTHER, PROJECT]
    assert found[0]["hosts"] == [{"host": HOST, "reason": "host is untrusted"}]


def test_refusals_have_pages(api: Api) -> None:
    with api.database.writer() as session:
        session.add_all(
            RefusalRow(at=n, server=NEW, project=PROJECT, request="r", level="required", total=n, hosts="[]")
            for n in range(5)
        )
    found, url = [], "/v1/refusals?limit=2"
    while url:
        page = api.get(url, api.login("reader")).json
        found += [item["total"] for item in page["refusals"]]
        url = page["links"][0]["href"] if page["links"] else ""
    assert found == [4, 3, 2, 1, 0, 1]


def test_the_record_is_for_operators(api: Api) -> None:
    found = api.get(f"/v1/audit-records?host={HOST}", api.login("admin")).json["audit_records"]
    assert [(item["action"], item["outcome"]) for item in found] == [("issue", "issued")]
    assert api.get("/v1/audit-records?host=compute-9", api.login("admin")).json["audit_records"] == []
