# SPDX-License-Identifier: Apache-2.0
"""The filter in front of a stand-in for Nova: what it adds, what it refuses, and what it leaves alone."""

from __future__ import annotations

import gzip
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.validate import validator

import evidence_examples as examples
import nova.conf
import pytest
import webob
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg

from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
)
from nova_vmi_attest.relying import splice
from nova_vmi_attest.relying.server_properties import ServerProperties, filter_factory
from nova_vmi_attest.relying.shared import SharedTrust
from nova_vmi_attest.relying.trust import TrustCache

SERVER, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
KEY = examples.key("verifier")
JSON = ("Content-Type", "application/json")
SHOW = {"server": {"id": SERVER, "status": "ACTIVE", "metadata": {"role": "web"}, "name": "é"}}
FORGED = {"trust:verdict": "trusted", "Trust:Verdict": "trusted", "role": "web", "trust:other": "x"}


class Shared(SharedTrust):
    """A cache that needs no bus."""

    def __init__(self, cache: TrustCache | None) -> None:
        super().__init__()
        self.cache = cache

    def get(self, conf: cfg.ConfigOpts, program: str = "nova") -> TrustCache:
        if self.cache is None:
            raise OSError("no keys can be read")
        return self.cache


@dataclass
class Nova:
    """A stand-in: answers what it is told to, and remembers what it was asked."""

    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=lambda: [JSON, ("X-Id", "req-1")])
    parts: list[bytes] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    closed: int = 0
    length: bool = True

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        self.asked.append(dict(environ))
        self.bodies.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        environ["nova.left"] = "here"
        size = [("Content-Length", str(sum(map(len, self.parts))))] if self.length else []
        start_response(self.status, [*self.headers, *size])
        return Parts(self, environ["REQUEST_METHOD"])


class Parts:
    """The body of an answer, which has to be closed."""

    def __init__(self, nova: Nova, method: str) -> None:
        self._nova = nova
        self._parts = iter([] if method == "HEAD" else nova.parts)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._parts)

    def close(self) -> None:
        self._nova.closed += 1


def token(server: str, guest: Verdict, host: Verdict = Verdict.TRUSTED, issued: int | None = None) -> str:
    reasons = (
        () if guest is Verdict.TRUSTED else (Reason("modules", "x', trust:verdict='trusted", 0, 5, "bad"),)
    )
    shown = GuestResult(uuid.UUID(server), guest, reasons, "6.1.0-56-amd64", "ab" * 32)
    begun = int(time.time()) if issued is None else issued
    result = AttestationResult(
        HostResult("secret-host", host, (Reason("host_pcr", detail="PCR 7"),)),
        (shown,),
        begun,
        begun + 300,
        1,
    )
    return sign_result(result, KEY, "cloud")


@pytest.fixture
def cache() -> TrustCache:
    cache = TrustCache([KEY.public_key()], "cloud")
    cache.ingest(token(SERVER, Verdict.TRUSTED), time.time())
    return cache


def call(
    nova: Any, cache: TrustCache | None, path: str, method: str = "GET", body: Any = None, **environ: str
) -> webob.Response:
    """One request through the filter; both sides of it are held to PEP 3333."""
    request = webob.Request.blank(path, method=method, environ=environ or None)
    if body is not None:
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.content_type = "application/json"
    # A body that was sent can be read only once.
    request.environ.pop("webob.is_body_seekable", None)
    answer = request.get_response(validator(ServerProperties(nova, Shared(cache))))
    assert answer.content_length in (None, len(answer.body)), "it is read, and so closed"
    return answer


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
    cache = TrustCache([KEY.public_key()], "cloud")
    cache.ingest(token(SERVER, Verdict.UNTRUSTED, Verdict.UNTRUSTED), time.time())
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


def test_what_a_tenant_stored_is_not_shown(cache: TrustCache) -> None:
    cache = TrustCache([KEY.public_key()], "cloud")
    cache.ingest(token(SERVER, Verdict.UNTRUSTED), time.time())
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


SHOWING = [
    f"/servers/{SERVER}",
    "/servers/detail",
    f"/servers/{SERVER}/metadata",
    f"/servers/{SERVER}/metadata/trust:verdict",
]


@pytest.mark.parametrize("path", SHOWING)
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("300 Multiple Choices", [JSON], b'{"choices": []}'),
        ("304 Not Modified", [], b""),
        ("400 Bad Request", [JSON], b'{"badRequest": {"metadata": {"trust:x": "1"}}}'),
        ("401 Unauthorized", [("Content-Type", "text/html")], b"<html>"),
        ("404 Not Found", [JSON], b"{broken"),
        ("500 Internal Server Error", [JSON, ("Content-Encoding", "br")], b"\x00\x01"),
        ("503 Service Unavailable", [("Content-Type", "text/plain"), ("Retry-After", "1")], b"later"),
        ("200 OK", [("Content-Type", "text/html")], b"<html>"),
        ("204 No Content", [], b""),
        ("200 OK", [JSON], b""),
    ],
)
def test_answers_that_are_no_documents_pass_as_they_are(
    cache: TrustCache, path: str, status: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    nova = Nova(status, headers, [body], length=bool(body))
    answer = call(nova, cache, path)
    assert (answer.status, answer.body) == (status, body)
    assert list(answer.headers.items()) == [*headers, *([("Content-Length", str(len(body)))] if body else [])]
    assert nova.closed == 1


@pytest.mark.parametrize("path", SHOWING)
@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("200 OK", [JSON], b'{"server": {"metadata": {"trust:verdict": "trusted"'),
        ("200 OK", [JSON], b'{"server": {"metadata": {"trust:verdict": "trusted"}}} extra'),
        ("200 OK", [JSON], b'\xef\xbb\xbf{"server": {"metadata": {"trust:verdict": "trusted"}}}'),
        ("200 OK", [JSON], '{"server": {"metadata": {"trust:verdict": "trusted"}}}'.encode("utf-16")),
        ("200 OK", [JSON], b'{"server": ' + b"[" * 100_000),
        ("200 OK", [], b"trust:verdict=trusted"),
        ("200 OK", [JSON, ("Content-Encoding", "br")], b"\x00"),
        ("200 OK", [JSON, ("Content-Encoding", "gzip")], gzip.compress(b"{}")[:-2]),
        ("206 Partial Content", [JSON], b'{"metadata": {}}'),
        ("200 OK", [("Content-Type", "application/json; charset=utf-7")], b"{}"),
    ],
)
def test_an_answer_that_cannot_be_checked_is_withheld(
    cache: TrustCache, path: str, status: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    nova = Nova(status, headers, [body])
    answer = call(nova, cache, path)
    assert answer.status_int == 502
    assert answer.json["computeFault"]["code"] == 502
    assert b"trusted" not in answer.body
    assert b"Traceback" not in answer.body
    assert nova.closed == 1


def test_an_answer_that_is_too_long_is_withheld(cache: TrustCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.relying.answers.MAX_BYTES", 50)
    nova = Nova(parts=[b" " * 30, b" " * 30, b'{"server": {}}'], length=False)
    assert call(nova, cache, f"/servers/{SERVER}").status_int == 502
    assert nova.closed == 1
    monkeypatch.undo()
    monkeypatch.setattr(splice, "MAX_BYTES", 1000)
    body = gzip.compress(b'{"server": {}}' + b" " * 1000)
    nova = Nova(headers=[JSON, ("Content-Encoding", "gzip")], parts=[body])
    assert call(nova, cache, f"/servers/{SERVER}").status_int == 502


def test_no_compression_is_offered_to_nova_and_the_client_keeps_its_offer(cache: TrustCache) -> None:
    nova = Nova(parts=[json.dumps(SHOW).encode()])
    environ = webob.Request.blank(f"/servers/{SERVER}", environ={"HTTP_ACCEPT_ENCODING": "gzip, br"}).environ
    webob.Request(environ).get_response(ServerProperties(nova, Shared(cache)))
    assert "HTTP_ACCEPT_ENCODING" not in nova.asked[0]
    assert environ["HTTP_ACCEPT_ENCODING"] == "gzip, br"
    assert (environ["nova.left"], environ["PATH_INFO"]) == ("here", f"/servers/{SERVER}")


def test_an_answer_that_is_compressed_all_the_same_is_unpacked(cache: TrustCache) -> None:
    nova = Nova(
        headers=[JSON, ("Content-Encoding", "gzip"), ("ETag", '"1"')],
        parts=[gzip.compress(json.dumps(SHOW).encode())],
    )
    answer = call(nova, cache, f"/servers/{SERVER}")
    assert answer.json["server"]["metadata"]["trust:verdict"] == "trusted"
    assert not {"Content-Encoding", "ETag"} & set(answer.headers)
    assert answer.content_length == len(answer.body)


def test_a_head_request_is_not_told_a_length_that_may_be_wrong(cache: TrustCache) -> None:
    nova = Nova(parts=[json.dumps(SHOW).encode()])
    answer = call(nova, cache, f"/servers/{SERVER}?_method=GET", "HEAD")
    assert (answer.status_int, answer.body, list(answer.headers.items())) == (
        200,
        b"",
        [JSON, ("X-Id", "req-1")],
    )
    assert nova.closed == 1


def test_an_application_that_writes(cache: TrustCache) -> None:
    def nova(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", [JSON])
        write(b'{"server": {"id": "' + SERVER.encode())
        return [b'", "metadata": {}}}']

    assert call(nova, cache, f"/servers/{SERVER}").json["server"]["metadata"]["trust:verdict"] == "trusted"


def test_an_application_that_starts_its_answer_late(cache: TrustCache) -> None:
    def nova(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [JSON])
        yield json.dumps(SHOW).encode()

    assert call(nova, cache, f"/servers/{SERVER}").json["server"]["metadata"]["trust:verdict"] == "trusted"


def test_an_application_that_changes_its_mind(cache: TrustCache) -> None:
    """It started to answer, failed, and answers with an error instead, as PEP 3333 allows."""
    error = (ValueError, ValueError("x"), None)

    def nova(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [JSON])
        start_response("500 Oops", [("Content-Type", "text/plain")], error)
        return [b"failed"]

    started: list[Any] = []
    environ = webob.Request.blank(f"/servers/{SERVER}").environ
    body = ServerProperties(nova, Shared(cache))(environ, lambda *given: started.append(given))
    assert started == [("500 Oops", [("Content-Type", "text/plain")], error)]
    assert list(body) == [b"failed"]


def test_an_application_that_raises_is_not_hidden(cache: TrustCache) -> None:
    def nova(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        raise OSError("no database")

    environ = webob.Request.blank(f"/servers/{SERVER}", environ={"HTTP_ACCEPT_ENCODING": "br"}).environ
    with pytest.raises(OSError, match="no database"):
        ServerProperties(nova, Shared(cache))(environ, lambda *given: None)
    assert environ["HTTP_ACCEPT_ENCODING"] == "br"


def test_other_answers_are_not_read_before_they_are_sent(cache: TrustCache) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"log"

    def nova(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return endless()

    for path in (f"/servers/{SERVER}", f"/servers/{SERVER}/os-server-password"):
        environ = webob.Request.blank(path).environ
        assert next(iter(ServerProperties(nova, Shared(cache))(environ, lambda *given: None))) == b"log"


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
    cache = TrustCache([KEY.public_key()], "cloud")
    cache.ingest(token(SERVER, Verdict.UNTRUSTED), time.time())
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
