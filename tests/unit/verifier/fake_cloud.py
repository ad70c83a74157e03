# SPDX-License-Identifier: Apache-2.0
"""Keystone, Nova and Placement as the verifiers see them: over HTTP, small, and able to misbehave.

Tests set what there is, read which requests came, and may put an answer of their own before the right one.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from keystoneauth1 import session
from keystoneauth1.identity import v3

from nova_vmi_attest.verifier.openstack import OpenStack


@dataclass(frozen=True)
class Request:
    """One request; ``path`` begins with the name of the service."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What is sent back; ``raw`` instead of ``body`` for what is no JSON. ``seconds`` go by before it."""

    status: int = 200
    body: Any = None
    raw: bytes | None = None
    seconds: float = 0.0


def server(guest: uuid.UUID, host: str | None = "compute-1", **values: Any) -> dict[str, Any]:
    """A server as Nova shows it: running, and settled for long."""
    return {
        "id": str(guest),
        "tenant_id": "project-a",
        "name": "web",
        "status": "ACTIVE",
        "updated": "2020-01-01T00:00:00Z",
        "OS-EXT-SRV-ATTR:host": host,
        "OS-EXT-STS:vm_state": "active",
        "OS-EXT-STS:task_state": None,
        "OS-EXT-STS:power_state": 1,
        **values,
    }


@dataclass
class FakeCloud:
    """One cloud; :meth:`start` and :meth:`stop` it."""

    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    migrations: list[dict[str, Any]] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    traits: dict[str, set[str]] = field(default_factory=dict)
    known_traits: set[str] = field(default_factory=lambda: {"HW_CPU_X86_VMX"})
    generations: dict[str, int] = field(default_factory=dict)
    page: int = 1000
    requests: list[Request] = field(default_factory=list)
    before: Callable[[Request], Answer | None] = lambda request: None
    tokens: int = 0

    def start(self) -> None:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                cloud._serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def openstack(self, timeout: float = 10) -> OpenStack:
        auth = v3.Password(
            f"{self.url}/identity/v3", username="attest", password="secret", project_name="service",
            user_domain_id="default", project_domain_id="default",
        )  # fmt: skip
        return OpenStack(session.Session(auth, timeout=timeout))

    def add(self, *servers: dict[str, Any]) -> None:
        self.servers.update((item["id"], item) for item in servers)

    def asked(self, method: str, prefix: str) -> list[Request]:
        return [item for item in self.requests if item.method == method and item.path.startswith(prefix)]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length", 0))
        body = json.loads(handler.rfile.read(length)) if length else None
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, parts.path, query, headers, body)
        self.requests.append(request)
        answer = self.before(request) or self._answer(request)
        time.sleep(answer.seconds)
        data = json.dumps(answer.body).encode() if answer.raw is None else answer.raw
        try:
            handler.send_response(answer.status)
            if request.path == "/identity/v3/auth/tokens":
                handler.send_header("X-Subject-Token", f"token-{self.tokens}")
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            handler.close_connection = True

    def _answer(self, request: Request) -> Answer:
        service, _, path = request.path.removeprefix("/").partition("/")
        if service == "identity":
            return self._identity(path)
        if request.headers.get("x-auth-token") != f"token-{self.tokens}":
            return Answer(401, {"error": "token expired"})
        if service == "compute":
            return self._compute(path, request)
        return self._placement(path, request)

    def _identity(self, path: str) -> Answer:
        if path != "v3/auth/tokens":
            links = [{"rel": "self", "href": f"{self.url}/identity/v3/"}]
            return Answer(body={"version": {"id": "v3.14", "status": "stable", "links": links}})
        self.tokens += 1
        token = {
            "methods": ["password"],
            "user": {"id": "u", "name": "attest", "domain": {"id": "d", "name": "d"}},
            "issued_at": "2020-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "catalog": [self._service(kind) for kind in ("compute", "placement")],
        }
        return Answer(201, {"token": token})

    def _service(self, kind: str) -> dict[str, Any]:
        endpoint = {"interface": "internal", "region": "One", "region_id": "One", "id": kind}
        return {"type": kind, "name": kind, "endpoints": [{**endpoint, "url": f"{self.url}/{kind}"}]}

    def _compute(self, path: str, request: Request) -> Answer:
        query = request.query
        if path == "servers/detail":
            found = [item for item in self.servers.values() if self._wanted(item, query)]
            return self._paged(found, "servers", query)
        if path.startswith("servers/"):
            item = self.servers.get(path.removeprefix("servers/"))
            gone = item is None or item["status"] == "DELETED"
            return Answer(404, {"itemNotFound": {}}) if gone else Answer(body={"server": item})
        if path == "os-migrations":
            wanted = [item for item in self.migrations if item["instance_uuid"] == query["instance_uuid"]]
            return Answer(body={"migrations": wanted})
        if path == "os-hypervisors/detail":
            items = [{"id": node, "service": {"host": host}} for node, host in self.nodes.items()]
            return self._paged(items, "hypervisors", query)
        return Answer(404, {})

    @staticmethod
    def _wanted(item: dict[str, Any], query: dict[str, str]) -> bool:
        if "changes-since" in query:
            return item.get("updated", "") >= query["changes-since"]
        if item["status"] in ("DELETED", "UNKNOWN"):
            return False
        return "host" not in query or item["OS-EXT-SRV-ATTR:host"] == query["host"]

    def _paged(self, items: list[dict[str, Any]], name: str, query: dict[str, str]) -> Answer:
        limit = min(int(query["limit"]), self.page)
        start = 0
        if marker := query.get("marker"):
            ids = [item["id"] for item in items]
            if marker not in ids:
                return Answer(400, {"badRequest": {"message": f"marker [{marker}] not found"}})
            start = ids.index(marker) + 1
        shown = items[start : start + limit]
        body: dict[str, Any] = {name: shown}
        if len(shown) == limit:
            body[f"{name}_links"] = [{"rel": "next", "href": "http://elsewhere.example/never/followed"}]
        return Answer(body=body)

    def _placement(self, path: str, request: Request) -> Answer:
        if path.startswith("traits/") and request.method == "PUT":
            self.known_traits.add(path.removeprefix("traits/"))
            return Answer(201, raw=b"")
        if path == "resource_providers":
            trait = request.query["required"]
            if trait not in self.known_traits:
                return Answer(400, {"errors": [{"detail": "No such trait(s)"}]})
            having = [{"uuid": node} for node, traits in self.traits.items() if trait in traits]
            return Answer(body={"resource_providers": having})
        provider = path.split("/")[1]
        if provider not in self.traits:
            return Answer(404, {})
        if request.method == "PUT":
            if request.body["resource_provider_generation"] != self.generations.get(provider, 0):
                return Answer(409, {"errors": [{"code": "placement.concurrent_update"}]})
            self.traits[provider] = set(request.body["traits"])
            self.generations[provider] = self.generations.get(provider, 0) + 1
        generation = self.generations.get(provider, 0)
        traits = sorted(self.traits[provider])
        return Answer(body={"traits": traits, "resource_provider_generation": generation})
