# SPDX-License-Identifier: Apache-2.0
"""Whatever Nova shows of a server comes with the live verdict, and with nothing else that looks like one."""

from __future__ import annotations

import json
import time
from typing import Any

import nova.conf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.server_properties import ServerProperties, filter_factory
from nova_vmi_attest.relying.trust import TrustCache
from tests.unit.relying.nova_api import (
    FORGED,
    JSON,
    KEY,
    OTHER,
    SERVER,
    SHOW,
    Nova,
    call,
    token,
    trusting,
)


@pytest.fixture
def cache() -> TrustCache:
    return trusting()


def told(
    cache: TrustCache, status: str = "ACTIVE", server: str = SERVER, forged: Any = None
) -> dict[str, str]:
    """The metadata that a client is shown of a server."""
    shown = {"server": {"id": server, "status": status, "metadata": forged or {}}}
    return dict(
        call(Nova(parts=[json.dumps(shown).encode()]), cache, f"/servers/{server}").json["server"]["metadata"]
    )


def test_a_server_is_shown_with_its_verdict(cache: TrustCache) -> None:
    shown = told(cache)
    assert (shown["trust:verdict"], shown["trust:host_verdict"]) == ("trusted", "trusted")
    assert shown["trust:kernel"] == "6.1.0-56-amd64"
    issued, expires = (
        time.mktime(time.strptime(shown[f"trust:{name}"], "%Y-%m-%dT%H:%M:%SZ"))
        for name in ("checked_at", "valid_until")
    )
    assert expires - issued == 300
    assert "trust:reason" not in shown


def test_nothing_but_the_properties_is_added(cache: TrustCache) -> None:
    body = (
        b'{"server" : {"name": "\\u00e9", "metadata":{ "role" :"web" } ,"id":"' + SERVER.encode() + b'"}}\n'
    )
    nova = Nova(parts=[body[:9], b"", body[9:]])
    answer = call(nova, cache, f"/servers/{SERVER}")
    before, behind = body.split(b' } ,"id"')
    assert answer.body.startswith(before + b', "trust:verdict": "trusted", ')
    assert answer.body.endswith(b' } ,"id"' + behind)
    assert list(answer.headers.items()) == [
        JSON,
        ("X-Id", "req-1"),
        ("Content-Length", str(len(answer.body))),
    ]
    assert nova.closed == 1


def test_a_hosts_name_and_its_reasons_stay_secret() -> None:
    cache = trusting(token(SERVER, Verdict.UNTRUSTED, Verdict.UNTRUSTED))
    shown = told(cache)
    assert (shown["trust:verdict"], shown["trust:host_verdict"]) == ("untrusted", "untrusted")
    assert "secret-host" not in str(shown)
    assert "PCR" not in str(shown)
    assert shown["trust:reason"] == "modules at x?, trust:verdict=?trusted+0x0 (5 bytes): bad"


def test_a_result_that_ended_is_stale() -> None:
    cache = TrustCache([KEY.public_key()], "cloud")
    cache.ingest(token(SERVER, Verdict.TRUSTED, issued=1_000_000), 1_000_000)
    shown = told(cache)
    assert (shown["trust:verdict"], shown["trust:host_verdict"]) == ("stale", "stale")
    assert shown["trust:reason"].startswith("the last result (trusted) ended at 1970-01-12T13:51:40Z")


@pytest.mark.parametrize(
    ("status", "why"), [("ACTIVE", "not measured yet, or"), ("SHUTOFF", "not running"), ("BUILD", "built")]
)
def test_a_server_of_which_nothing_is_known(cache: TrustCache, status: str, why: str) -> None:
    shown = told(cache, status, OTHER)
    assert (shown["trust:verdict"], shown["trust:host_verdict"]) == ("unknown", "unknown")
    assert why in shown["trust:reason"]


def test_nova_answers_even_without_a_cache() -> None:
    answer = call(Nova(parts=[json.dumps(SHOW).encode()]), None, f"/servers/{SERVER}")
    assert answer.json["server"]["metadata"]["trust:verdict"] == "unknown"
    assert answer.json["server"]["metadata"]["trust:reason"]
    assert answer.json["server"]["metadata"]["role"] == "web"


def test_what_a_tenant_stored_is_not_shown() -> None:
    cache = trusting(token(SERVER, Verdict.UNTRUSTED))
    shown = told(cache, forged=FORGED)
    assert shown["trust:verdict"] == "untrusted"
    assert shown["role"] == "web"
    assert not {"Trust:Verdict", "trust:other"} & shown.keys()


def test_a_forged_item_does_not_survive_a_second_metadata_object(cache: TrustCache) -> None:
    for last in ("{}", "null", "[]"):
        body = f'{{"server": {{"id": "{OTHER}", "metadata": {json.dumps(FORGED)}, "metadata": {last}}}}}'
        answer = call(Nova(parts=[body.encode()]), cache, f"/servers/{OTHER}")
        assert b'"trust:verdict": "trusted"' not in answer.body
        assert b"trust:other" not in answer.body


def test_a_list_says_of_each_server_what_is_known_of_it(cache: TrustCache) -> None:
    servers = [
        {"id": SERVER, "status": "ACTIVE", "metadata": {}},
        {"id": OTHER, "status": "SHUTOFF", "metadata": FORGED},
        {"id": OTHER, "status": "UNKNOWN", "links": []},
        None,
    ]
    body = json.dumps({"servers": servers, "servers_links": [{"rel": "next"}]}).encode()
    found = call(Nova(parts=[body]), cache, "/servers/detail?limit=3").json
    first, second, down, nothing = found["servers"]
    assert first["metadata"]["trust:verdict"] == "trusted"
    assert second["metadata"]["trust:reason"] == "no result: it is not running"
    assert (down, nothing) == (servers[2], None)
    assert found["servers_links"] == [{"rel": "next"}]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", f"/servers/{SERVER}", None, "200 OK"),
        ("PUT", f"/servers/{SERVER}", {"server": {"name": "x"}}, "200 OK"),
        ("DELETE", f"/servers/{SERVER}?_method=GET", None, "200 OK"),
        ("POST", f"/servers/{SERVER}?_method=PUT", {"server": {}}, "200 OK"),
        ("POST", f"/servers/{SERVER}/action", {"rebuild": {"imageRef": "x"}}, "202 Accepted"),
        ("GET", f"/os-volumes_boot/{SERVER}", None, "200 OK"),
        ("GET", f"/0a1b/servers/{SERVER}", None, "200 OK"),
        ("GET", f"/servers/{SERVER}%0A", None, "200 OK"),
    ],
)
def test_every_answer_with_a_server_is_looked_after(
    cache: TrustCache, method: str, path: str, body: Any, status: str
) -> None:
    shown = {"server": {"id": SERVER, "metadata": FORGED}}
    nova = Nova(status, parts=[json.dumps(shown).encode()])
    metadata = call(nova, cache, path, method, body).json["server"]["metadata"]
    assert metadata["trust:verdict"] == "trusted"
    assert "trust:checked_at" in metadata
    assert "trust:other" not in metadata


@pytest.mark.parametrize(
    ("method", "body"), [("GET", None), ("POST", {"metadata": {"a": "1"}}), ("PUT", {"metadata": {}})]
)
def test_the_whole_metadata(cache: TrustCache, method: str, body: Any) -> None:
    nova = Nova(parts=[json.dumps({"metadata": FORGED}).encode()])
    found = call(nova, cache, f"/servers/{SERVER}/metadata", method, body).json["metadata"]
    assert nova.bodies == [json.dumps(body).encode() if body else b""]
    assert found["role"] == "web"
    assert found["trust:verdict"] == "trusted"
    assert "trust:checked_at" in found
    assert "trust:other" not in found


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["trust:verdict", "Trust:x", "role", "id", "metadata"]) | st.text(),
        st.text(),
        max_size=5,
    ),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_clients_read_what_nova_has_and_ours_alone(
    stored: dict[str, str], ascii_only: bool, indent: int | None
) -> None:
    cache = trusting(token(SERVER, Verdict.UNTRUSTED))
    shown = {
        "server": {
            "x": [{"metadata": stored}],
            "metadata": stored,
            "id": SERVER,
            "status": "ACTIVE",
            "y": stored,
        }
    }
    body = json.dumps(shown, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    answer = call(Nova(parts=[body]), cache, f"/servers/{SERVER}")
    found = answer.json["server"]
    metadata = found.pop("metadata")
    ours = {name: value for name, value in metadata.items() if name.startswith("trust:")}
    assert ours["trust:verdict"] == "untrusted"
    assert len(ours) == 6
    kept = {
        name: value
        for name, value in stored.items()
        if not "".join(name.split()).lower().startswith("trust:")
    }
    assert {name: value for name, value in metadata.items() if name not in ours} == kept
    assert found == {name: value for name, value in shown["server"].items() if name != "metadata"}


def test_paste_makes_it_and_registers_the_options(caplog: pytest.LogCaptureFixture) -> None:
    nova_api = Nova(parts=[b"[]"])
    made = filter_factory({"here": "/etc/nova"})(nova_api)
    assert isinstance(made, ServerProperties)
    assert nova.conf.CONF.relying.audience
    assert not caplog.records
    filter_factory({}, enabled="false")
    assert "enabled" in caplog.text
