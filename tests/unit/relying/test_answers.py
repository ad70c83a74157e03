# SPDX-License-Identifier: Apache-2.0
"""An answer is read whole or not at all, and what cannot be read is not passed on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.relying import answers
from nova_vmi_attest.relying.answers import Answer, AnswerError

JSON = ("Content-Type", "application/json")


class Body:
    """A body in parts that notes whether it was closed."""

    def __init__(self, *parts: bytes, error: Exception | None = None) -> None:
        self.parts = parts
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed = True


def document(body: bytes, *headers: tuple[str, str], status: str = "200 OK") -> bytes:
    return Answer(status, [JSON, *headers], [body]).whole().document()


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "202 Accepted", "203 X", "206 Partial Content", "207 X"]
)
@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/vnd.openstack.compute+json",
        "text/json",
        "",
    ],
)
def test_documents(status: str, kind: str) -> None:
    assert Answer(status, [("content-TYPE", kind)] if kind else [], []).is_document


@pytest.mark.parametrize(
    "status",
    [
        "100 Continue",
        "204 No Content",
        "205 Reset",
        "300 X",
        "302 Found",
        "304 X",
        "400 X",
        "401 X",
        "404 X",
        "409 X",
        "413 X",
        "500 X",
        "503 X",
    ],
)
def test_other_statuses_have_no_document(status: str) -> None:
    assert not Answer(status, [JSON], []).is_document


@pytest.mark.parametrize(
    "kind", ["text/html", "text/plain; charset=UTF-8", "application/octet-stream", "image/png"]
)
def test_other_types_are_no_document(kind: str) -> None:
    assert not Answer("200 OK", [("Content-Type", kind)], []).is_document


def test_a_body_in_parts_is_read_and_closed() -> None:
    body = Body(b"{", b"", b"}")
    assert Answer("200 OK", [JSON], body).whole().document() == b"{}"
    assert body.closed


def test_a_body_that_fails_is_closed() -> None:
    body = Body(b"{", error=OSError("lost"))
    with pytest.raises(OSError, match="lost"):
        Answer("200 OK", [JSON], body).whole()
    assert body.closed


def test_a_body_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_BYTES", 100)
    body = Body(*[b"x" * 30] * 10)
    with pytest.raises(AnswerError, match="more than 100 bytes"):
        Answer("200 OK", [JSON], body).whole()
    assert body.closed


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400))
def test_compressed_bodies_are_unpacked(body: bytes) -> None:
    for name in ("gzip", "x-gzip", " GZIP "):
        assert document(gzip.compress(body), ("Content-Encoding", name)) == body
    assert document(body, ("Content-Encoding", "identity")) == body


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"{}", "gzip"),
        (b"", "gzip"),
        (gzip.compress(b"{}")[:-1], "gzip"),
        (gzip.compress(b"{}") + b"x", "gzip"),
        (gzip.compress(b"{}") + gzip.compress(b"{}"), "gzip"),
        (gzip.compress(gzip.compress(b"{}")), "gzip, gzip"),
        (zlib.compress(b"{}"), "deflate"),
        (zlib.compress(b"{}"), "gzip"),
        (b"{}", "br"),
        (b"{}", "zstd"),
    ],
)
def test_what_cannot_be_unpacked_is_an_error(body: bytes, encoding: str) -> None:
    with pytest.raises(AnswerError):
        document(body, ("Content-Encoding", encoding))


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_BYTES", 1 << 20)
    assert len(document(gzip.compress(bytes(1 << 20)), ("Content-Encoding", "gzip"))) == 1 << 20
    with pytest.raises(AnswerError, match="more than"):
        document(gzip.compress(bytes((1 << 20) + 1)), ("Content-Encoding", "gzip"))


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", '"utf-7"', "UTF-32; x=1"])
def test_other_character_sets_are_an_error(charset: str) -> None:
    with pytest.raises(AnswerError, match="character set"):
        Answer("200 OK", [("Content-Type", f"application/json; charset={charset}")], [b"{}"]).document()


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", "utf-8 ; x=1"])
def test_character_sets_that_are_utf_8(charset: str) -> None:
    headers = [("Content-Type", f"application/json; charset={charset}")]
    assert Answer("200 OK", headers, [b"{}"]).document() == b"{}"


def test_a_part_of_a_document_is_an_error() -> None:
    with pytest.raises(AnswerError, match="part"):
        document(b"{}", status="206 Partial Content")


def test_another_document_keeps_the_other_headers() -> None:
    headers = [
        ("X-One", "1"),
        ("Content-length", "2"),
        JSON,
        ("ETag", "x"),
        ("Content-Encoding", "gzip"),
        ("Vary", "a"),
        ("Vary", "b"),
        ("Digest", "x"),
    ]
    changed = Answer("200 OK", headers, [b"{}"]).with_document(b"[1,2]")
    assert changed.headers == [("X-One", "1"), JSON, ("Vary", "a"), ("Vary", "b"), ("Content-Length", "5")]
    assert b"".join(changed.body) == b"[1,2]"
    assert headers[1] == ("Content-length", "2")
