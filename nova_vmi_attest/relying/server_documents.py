# SPDX-License-Identifier: Apache-2.0
"""Nova's answers about servers, with our properties among the metadata of each, and no others that look so.

Whatever Nova has stored under one of our names was not written by us: a tenant may have done so before this
was in place. It is never shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nova_vmi_attest.relying.compute_requests import ComputeRequest, Kind, is_reserved
from nova_vmi_attest.relying.splice import Document

# What is known of a server, by its name and status as Nova states them.
Look = Callable[[str, str], dict[str, str]]

SHOWING = frozenset({Kind.SERVER, Kind.ACTION, Kind.METADATA})
"""The calls whose answers may have the metadata of a server."""


def annotate(body: bytes, request: ComputeRequest, look: Look) -> bytes:
    """An answer with the properties of every server in it; nothing else is changed.

    A server without metadata, such as one in a cell that is down, stays without.

    :raises SpliceError: if the answer is not JSON, so that nobody can tell what it shows.
    """
    document = Document(body)
    if not document.at("{"):
        document.value()
        return document.result()
    for name, _ in document.members():
        if request.kind is Kind.METADATA:
            if name == "metadata" and document.at("{"):
                document.amend(is_reserved, look(request.server, ""))
        elif name == "server":
            _server(document, look)
        elif name == "servers" and document.at("["):
            for _ in document.elements():
                _server(document, look)
    return document.result()


def _server(document: Document, look: Look) -> None:
    start = document.position
    server = document.value()
    if not isinstance(server, dict) or "metadata" not in server:
        return
    properties = look(_text(server.get("id")), _text(server.get("status")))
    for _ in document.again(start, "metadata"):
        if document.at("{"):
            document.amend(is_reserved, properties)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
