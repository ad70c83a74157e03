# SPDX-License-Identifier: Apache-2.0
"""Answers that show no server pass as they are; those that cannot be checked do not pass."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import webob

from nova_vmi_attest.relying import splice
from nova_vmi_attest.relying.server_properties import ServerProperties
from nova_vmi_attest.relying.trust import TrustCache
from tests.unit.relying.nova_api import (
    JSON,
    SERVER,
    SHOW,
    Nova,
    Shared,
    call,
    trusting,
)


@pytest.fixture
def cache() -> TrustCache:
    return trusting()


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
