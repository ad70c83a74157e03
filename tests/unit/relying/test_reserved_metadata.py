# SPDX-License-Identifier: Apache-2.0
"""Our items can be read one by one, and nobody but us writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nova_vmi_attest.relying.trust import TrustCache
from tests.unit.relying.nova_api import (
    FORGED,
    SERVER,
    Nova,
    call,
    trusting,
)


@pytest.fixture
def cache() -> TrustCache:
    return trusting()


@pytest.mark.parametrize(
    "path", [f"/servers/{SERVER}/metadata/trust:verdict", f"/servers/{{{SERVER}}}/metadata/trust:verdict%0A"]
)
def test_one_of_our_items(cache: TrustCache, path: str) -> None:
    nova = Nova(parts=[b'{"metadata": {"trust:verdict": "forged"}}'])
    answer = call(nova, cache, path, HTTP_ACCEPT_ENCODING="gzip")
    assert answer.json == {"meta": {"trust:verdict": "trusted"}}
    assert answer.headers["X-Id"] == "req-1"
    assert nova.asked[0]["PATH_INFO"] == path.partition("/trust:")[0]
    assert nova.closed == 1


@pytest.mark.parametrize("key", ["trust:reason", "trust:other", "Trust:verdict", "trust:"])
def test_an_item_that_does_not_exist(cache: TrustCache, key: str) -> None:
    nova = Nova(parts=[json.dumps({"metadata": FORGED}).encode()])
    answer = call(nova, cache, f"/servers/{SERVER}/metadata/{key}", HTTP_OPENSTACK_API_VERSION="compute 2.90")
    assert answer.status_int == 404
    assert answer.json == {"itemNotFound": {"code": 404, "message": "Metadata item was not found"}}
    assert answer.headers["OpenStack-API-Version"] == "compute 2.90"


def test_one_who_may_not_see_the_server_learns_nothing(cache: TrustCache) -> None:
    body = b'{"itemNotFound": {"code": 404, "message": "Instance could not be found."}}'
    answer = call(Nova("404 Not Found", parts=[body]), cache, f"/servers/{SERVER}/metadata/trust:verdict")
    assert (answer.status_int, answer.body) == (404, body)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"meta": {}}'])
def test_an_item_is_only_told_of_a_server_with_metadata(cache: TrustCache, body: bytes) -> None:
    assert call(Nova(parts=[body]), cache, f"/servers/{SERVER}/metadata/trust:verdict").status_int == 502


WRITES = [
    ("POST", "/servers", {"server": {"metadata": {"a": "1", "trust:x": "1"}}}),
    ("POST", "/os-volumes_boot", {"server": {"metadata": {"trust:x": "1"}}}),
    ("POST", f"/servers/{SERVER}/metadata", {"metadata": {"trust:verdict": "trusted"}}),
    ("PUT", f"/servers/{SERVER}/metadata", {"metadata": {"TRUST:verdict": "trusted"}}),
    ("PUT", f"/servers/{SERVER}/metadata", {"metadata": {" trust:verdict": "trusted"}}),
    ("PUT", f"/servers/{SERVER}/metadata/trust:x", {"meta": {"trust:x": "1"}}),
    ("PUT", f"/servers/{SERVER}/metadata/a", {"meta": {"trust:x": "1"}}),
    ("PUT", f"/servers/{SERVER}/metadata/trust:x", {"meta": {"a": "1"}}),
    ("PUT", f"/servers/{SERVER}/metadata/trust:x", b"not JSON"),
    ("DELETE", f"/servers/{SERVER}/metadata/trust:x", None),
    ("DELETE", f"/0a1b/servers/{SERVER}/metadata/Trust:x%0A", None),
    ("GET", f"/servers/{SERVER}/metadata/trust:x?_method=DELETE", None),
    ("GET", f"/servers/{SERVER}/metadata/trust:x?a=1&_method=x&_method=delete", None),
    ("POST", f"/servers/{SERVER}/metadata/trust:x?%5Fmethod=x&_method=PUT", {"meta": {"trust:x": "1"}}),
    ("POST", f"/servers/{SERVER}/metadata?_method=PUT", {"metadata": {"trust:x": "1"}}),
    ("POST", f"/servers/{SERVER}/action", {"rebuild": {"metadata": {"trust:x": "1"}}}),
    ("POST", f"/servers/{SERVER}/action", b'{"rebuild": {"metadata": {"tr\\u0075st:x": "1"}}}'),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_nobody_writes_our_prefix(cache: TrustCache, method: str, path: str, body: Any) -> None:
    nova = Nova()
    answer = call(nova, cache, path, method, body, HTTP_X_OPENSTACK_NOVA_API_VERSION="2.15")
    assert answer.status_int == 403
    assert answer.content_type == "application/json"
    assert answer.json["forbidden"]["code"] == 403
    assert "'trust:'" in answer.json["forbidden"]["message"]
    assert answer.headers["X-OpenStack-Nova-API-Version"] == "2.15"
    assert not nova.asked


@pytest.mark.parametrize("version", ["compute 9.99", "compute x", "latest"])
def test_a_refusal_does_not_depend_on_the_version(cache: TrustCache, version: str) -> None:
    path = f"/servers/{SERVER}/metadata/trust:x"
    assert call(Nova(), cache, path, "DELETE", HTTP_OPENSTACK_API_VERSION=version).status_int == 403


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            "POST",
            "/servers",
            {"server": {"name": "x", "metadata": {"entrust:x": "1"}}, "os:scheduler_hints": {"trust:x": 1}},
        ),
        (
            "POST",
            f"/servers/{SERVER}/action",
            {"createImage": {"name": "x", "metadata": {"trust:host": "required"}}},
        ),
        ("POST", f"/servers/{SERVER}/action", {"os-stop": None}),
        ("POST", f"/servers/{SERVER}/action", b'{"os-stop"'),
        ("POST", f"/servers/{SERVER}/action", b"[1]"),
        ("POST", f"/servers/{SERVER}/action", b"\xff"),
        ("PUT", f"/servers/{SERVER}/metadata/a", {"meta": {"a": "1"}}),
        ("DELETE", f"/servers/{SERVER}/metadata/a", None),
        ("GET", f"/servers/{SERVER}/metadata/a", None),
        ("PATCH", f"/servers/{SERVER}/metadata/trust:x", None),
        ("HEAD", f"/servers/{SERVER}/metadata/trust:x", None),
        ("GET", f"/servers/{SERVER}/tags", None),
        ("PUT", "/images/x/metadata/trust:host", {"meta": {"trust:host": "required"}}),
        ("POST", "/flavors/1/os-extra_specs", {"extra_specs": {"trust:host": "required"}}),
        ("GET", "/servers", None),
    ],
)
def test_everything_else_reaches_nova_as_it_is(cache: TrustCache, method: str, path: str, body: Any) -> None:
    nova = Nova(
        parts=[] if method == "HEAD" else [b'{"trust:verdict": 1, "metadata": {"trust:x": 1}, "output": 1}']
    )
    answer = call(nova, cache, path, method, body, HTTP_ACCEPT_ENCODING="gzip")
    sent = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    assert nova.bodies == [sent]
    assert nova.asked[0]["HTTP_ACCEPT_ENCODING"] == "gzip"
    assert answer.body == b"".join(nova.parts)
    assert nova.closed == 1


def test_a_body_that_is_nested_too_deeply_is_refused(cache: TrustCache) -> None:
    nova = Nova()
    body = b'{"server": {"metadata": ' + b"[" * 100_000
    answer = call(nova, cache, "/servers", "POST", body)
    assert (answer.status_int, answer.json["badRequest"]["code"]) == (400, 400)
    assert not nova.asked
