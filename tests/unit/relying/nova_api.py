# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Nova behind the filter of server properties, and one request through both."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.validate import validator

import evidence_examples as examples
import webob
from oslo_config import cfg

from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
)
from nova_vmi_attest.relying.server_properties import ServerProperties
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
    """The stand-in: it answers what it is told to, and remembers what it was asked."""

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


def trusting(*tokens: str) -> TrustCache:
    """A cache that took these results in; without any, one that trusts :data:`SERVER`."""
    cache = TrustCache([KEY.public_key()], "cloud")
    for each in tokens or (token(SERVER, Verdict.TRUSTED),):
        cache.ingest(each, time.time())
    return cache
