# SPDX-License-Identifier: Apache-2.0
"""An answer of Nova's as WSGI has it: whether it is a document, what it says, and the same with another body.

An answer that ought to be a document but cannot be read is an error, never a thing to pass on: what it would
show was not checked. Errors, redirects, empty answers and other types of content are no documents.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.relying.splice import MAX_BYTES

Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]

# Headers that say something of the very bytes of a body.
_OF_BODY = frozenset(
    {"content-encoding", "content-length", "content-md5", "content-digest", "digest", "etag", "repr-digest"}
)


class AnswerError(AttestError):
    """An answer that should be a document cannot be read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an application gave to ``start_response``, and the body that it returned."""

    status: str
    headers: Headers
    body: Iterable[bytes]
    exc_info: Any = None

    def send(self, start_response: StartResponse) -> Iterable[bytes]:
        """Hand it on as it is."""
        if self.exc_info:
            start_response(self.status, self.headers, self.exc_info)
        else:
            start_response(self.status, self.headers)
        return self.body

    @property
    def is_document(self) -> bool:
        """Whether it succeeded with JSON. A type that is not stated is taken for that."""
        if not self.status.startswith("2") or self.status.startswith(("204", "205")):
            return False
        kind = self._header("content-type").partition(";")[0].strip().lower()
        return kind in ("", "application/json", "text/json") or kind.endswith("+json")

    def whole(self) -> Answer:
        """The same with its body read, at most as much as may be changed, and closed.

        :raises AnswerError: if it is longer, or only part of a document.
        """
        return replace(self, body=[_read(self.body)])

    def document(self) -> bytes:
        """The document in its body, which :meth:`whole` has read, without its encoding.

        :raises AnswerError: if it is in an encoding that is not understood, longer than may be, or damaged.
        """
        if self.status.startswith("206"):
            raise AnswerError("the answer is only a part of a document")
        charset = self._header("content-type").lower().partition("charset=")[2].partition(";")[0]
        if charset.strip(' "') not in ("", "utf-8", "utf8", "us-ascii"):
            raise AnswerError(f"the answer is in the character set {charset}")
        body = b"".join(self.body)
        encoding = self._header("content-encoding").strip().lower()
        if encoding in ("", "identity"):
            return body
        if encoding in ("gzip", "x-gzip"):
            return _unzip(body)
        raise AnswerError(f"the answer is in the content encoding {encoding}")

    def headless(self) -> Answer:
        """The same without headers about bytes of a body: the answer to HEAD cannot tell them."""
        kept = [item for item in self.headers if item[0].lower() not in _OF_BODY]
        return replace(self, headers=kept)

    def with_document(self, document: bytes) -> Answer:
        """The same with another document, not encoded."""
        length = ("Content-Length", str(len(document)))
        return replace(self, headers=[*self.headless().headers, length], body=[document])

    def _header(self, name: str) -> str:
        return ",".join(value for header, value in self.headers if header.lower() == name)


def _read(body: Iterable[bytes]) -> bytes:
    parts, size = [], 0
    try:
        for part in body:
            size += len(part)
            if size > MAX_BYTES:
                raise AnswerError(f"the answer has more than {MAX_BYTES} bytes")
            parts.append(part)
    finally:
        if (close := getattr(body, "close", None)) is not None:
            close()
    return b"".join(parts)


def _unzip(body: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = stream.decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        raise AnswerError(f"the compressed answer is damaged: {error}") from error
    if len(plain) > MAX_BYTES:
        raise AnswerError(f"the answer has more than {MAX_BYTES} bytes")
    if not stream.eof or stream.unused_data:
        raise AnswerError("the compressed answer is cut off, or goes on after its end")
    return plain
