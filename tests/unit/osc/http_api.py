# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that answers what a test says, and a client of it: the boundary where the API is played."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

from keystoneauth1 import noauth, session

from nova_vmi_attest.osc.client import AttestationClient

Reply = tuple[int, Any]


@dataclass
class PlayedApi:
    """``answer`` gives status and document (or bytes) for each request; ``requests`` keeps them all."""

    answer: Callable[[str, str], Reply] = lambda method, path: (200, {})
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""

    @property
    def client(self) -> AttestationClient:
        """A client that needs no token and no catalogue."""
        return AttestationClient(session.Session(auth=noauth.NoAuth(endpoint=self.url)))

    @property
    def app(self) -> Any:
        """As much of the openstack command as ours look at."""
        return SimpleNamespace(
            client_manager=SimpleNamespace(attestation=self.client), stdout=None, options=None
        )


@contextlib.contextmanager
def serve() -> Iterator[PlayedApi]:
    api = PlayedApi()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            api.requests.append((self.command, self.path, body))
            status, document = api.answer(self.command, self.path)
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            """A test says what it needs by its assertions."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
