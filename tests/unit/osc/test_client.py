# SPDX-License-Identifier: Apache-2.0
"""The client against an API that answers well, badly, and not at all."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from keystoneauth1 import noauth, session

from nova_vmi_attest.osc.client import AttestationClient, ClientError
from tests.unit.osc.http_api import PlayedApi


def test_pages_are_followed_to_the_end_and_no_further(api: PlayedApi) -> None:
    pages = {
        "/v1/servers?verdict=trusted": {"servers": [{"id": 1}, {"id": 2}], "next_marker": "b"},
        "/v1/servers?verdict=trusted&marker=b": {"servers": [{"id": 3}], "next_marker": None},
    }
    api.answer = lambda method, path: (200, pages[path])
    assert [item["id"] for item in api.client.list("servers", verdict="trusted", host=None)] == [1, 2, 3]
    assert [path for _, path, _ in api.requests] == list(pages)


def test_a_limit_ends_the_list_without_another_page(api: PlayedApi) -> None:
    api.answer = lambda method, path: (200, {"servers": [{"id": 1}, {"id": 2}], "next_marker": "b"})
    assert len(list(api.client.list("servers", 2))) == 2
    assert len(api.requests) == 1


def test_an_api_that_pages_in_a_circle_is_given_up(api: PlayedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.osc.client._MOST_PAGES", 3)
    api.answer = lambda method, path: (200, {"servers": [{"id": 1}], "next_marker": "a"})
    with pytest.raises(ClientError, match="no end"):
        list(api.client.list("servers"))
    assert len(api.requests) == 3


def test_a_nested_collection_is_named_by_its_last_part(api: PlayedApi) -> None:
    api.answer = lambda method, path: (200, {"history": [{"verdict": "trusted"}]})
    assert list(api.client.list("servers/x/history")) == [{"verdict": "trusted"}]


@pytest.mark.parametrize("document", [b"<html>", b"[]", {"servers": {}}, {"servers": None}, b"", b"\xff"])
def test_what_is_no_page_is_said_to_be_none(api: PlayedApi, document: Any) -> None:
    api.answer = lambda method, path: (200, document)
    with pytest.raises(ClientError, match="attestation service"):
        list(api.client.list("servers"))


def test_problem_details_become_the_message(api: PlayedApi) -> None:
    problem = {"title": "Conflict", "detail": "the host is known by another TPM", "remedy": "revoke it first"}
    api.answer = lambda method, path: (409, problem)
    with pytest.raises(ClientError) as caught:
        api.client.create("hosts", body={"name": "h"})
    assert caught.value.status == 409
    assert "known by another TPM" in caught.value.message
    assert caught.value.remedy == "revoke it first"


@pytest.mark.parametrize("document", [b"<html>Bad Gateway", b"", b"[1]", {"detail": None}, {"remedy": 3}])
def test_an_error_that_is_no_problem_document_still_has_its_status(api: PlayedApi, document: Any) -> None:
    api.answer = lambda method, path: (502, document)
    with pytest.raises(ClientError, match="HTTP 502") as caught:
        api.client.show("policy")
    assert caught.value.status == 502


def test_names_in_a_path_stay_one_part_of_it(api: PlayedApi) -> None:
    api.client.delete("hosts", "../servers/x?y#z")
    assert api.requests == [("DELETE", "/v1/hosts/..%2Fservers%2Fx%3Fy%23z", b"")]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_lead_elsewhere_are_refused(api: PlayedApi, name: str) -> None:
    with pytest.raises(ClientError, match="names nothing"):
        api.client.delete("hosts", name)
    assert api.requests == []


def test_bodies_and_files_are_sent_as_they_are(api: PlayedApi) -> None:
    api.client.replace("hosts", "h", "override", body={"hours": 1, "reason": "r"})
    api.client.upload("references", file=io.BytesIO(b"package"))
    assert json.loads(api.requests[0][2]) == {"hours": 1, "reason": "r"}
    assert api.requests[1] == ("POST", "/v1/references", b"package")


def test_bytes_are_not_interpreted(api: PlayedApi) -> None:
    api.answer = lambda method, path: (200, b"\x00proof")
    assert api.client.download("servers", "x", "proof", nonce="00") == b"\x00proof"
    assert api.requests[0][1] == "/v1/servers/x/proof?nonce=00"


def test_a_service_that_is_away_is_an_error_with_a_reason() -> None:
    client = AttestationClient(session.Session(auth=noauth.NoAuth(endpoint="http://127.0.0.1:1")))
    with pytest.raises(ClientError, match="cannot be asked"):
        client.show("policy")
