# SPDX-License-Identifier: Apache-2.0
"""Which of Nova's calls a request is, as far as server metadata is concerned.

The paths are those that Nova's router (``nova.api.openstack.compute.routes``) maps to the controllers of
servers and of their metadata, in all microversions. The method plays no part here, since a query parameter
can change the one by which Nova routes; the server's name is not checked to be one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PREFIX = "trust:"


class Kind(enum.Enum):
    """What a path stands for. ``SERVER`` is one with its details, or all of them."""

    SERVERS = enum.auto()
    SERVER = enum.auto()
    ACTION = enum.auto()
    METADATA = enum.auto()
    ITEM = enum.auto()


@dataclass(frozen=True, slots=True)
class ComputeRequest:
    """A call that may carry server metadata. ``path`` is the one before the last part of an item's path."""

    kind: Kind
    server: str = ""
    key: str = ""
    path: str = ""


# Nova's own patterns end in a "$", too, which lets one line feed follow. "os-volumes_boot" is an old name of
# "servers", without the calls for metadata.
_PATH = re.compile(
    r"(?:/[0-9a-f-]+)?/(?:"
    r"(?:servers|os-volumes_boot)(?:/(?P<server>[^/]+?)(?P<action>/action)?)?"
    r"|servers/(?P<owner>[^/]+?)/metadata(?:/(?P<key>[^/]+?))?"
    r")$"
)


def recognise(path: str) -> ComputeRequest | None:
    """What a request's path below the API's version (``PATH_INFO``) stands for; ``None`` for all else."""
    match = _PATH.match(path)
    if match is None:
        return None
    if owner := match["owner"]:
        key = match["key"]
        if key is None:
            return ComputeRequest(Kind.METADATA, owner)
        return ComputeRequest(Kind.ITEM, owner, key, path[: match.start("key") - 1])
    server = match["server"]
    if server is None:
        return ComputeRequest(Kind.SERVERS)
    return ComputeRequest(Kind.ACTION if match["action"] else Kind.SERVER, server)


def is_reserved(name: str) -> bool:
    """Whether a metadata key is one of ours, or could be taken for one: white space and case do not count."""
    return "".join(name.split()).lower().startswith(PREFIX)


def written_keys(request: ComputeRequest, body: Any) -> Iterator[str]:
    """The metadata keys that a request with this body, as parsed from JSON, would write to a server."""
    match request.kind:
        case Kind.SERVERS:
            yield from _keys(body, "server", "metadata")
        case Kind.ACTION:
            yield from _keys(body, "rebuild", "metadata")
        case Kind.METADATA:
            yield from _keys(body, "metadata")
        case Kind.ITEM:
            yield request.key
            yield from _keys(body, "meta")


def _keys(body: Any, *names: str) -> Iterator[str]:
    for name in names:
        body = body.get(name) if isinstance(body, dict) else None
    if isinstance(body, dict):
        yield from body
