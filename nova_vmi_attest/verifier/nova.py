# SPDX-License-Identifier: Apache-2.0
"""What the verifiers ask Nova: its servers, where one that is on the move goes, and its compute nodes.

Answers are checked for form, and an answer that is not as Nova's API reference says teaches nothing. Servers
in a cell that is down come without their details; they are left out, which says nothing about them.

Source: Nova's Compute API reference, microversions 2.53 (hypervisors), 2.59 (migrations), 2.69 (servers).
"""

from __future__ import annotations

import calendar
import datetime
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nova_vmi_attest.verifier.openstack import COMPUTE, BadRequestError, OpenStack, UnavailableError

_SERVERS = "2.69"
_MIGRATIONS = "2.59"
_HYPERVISORS = "2.53"

_PAGE = 1000
_MAX_PAGES = 10000
# Nova may answer with fewer than were asked for, never with many more.
_MAX_ITEMS = 20000
# How many servers of a page are tried as the mark after which the next one begins.
_MARKS = 5

# A migration in one of these states is over, and only the server's own host counts.
_ENDED = frozenset({"completed", "confirmed", "reverted", "error", "failed", "cancelled", "done", "deleted"})
# The source of an evacuation is held to be dead: what it still runs is not the server any more.
_EVACUATION = "evacuation"


@dataclass(frozen=True, slots=True)
class NovaServer:
    """One server as Nova shows it to an administrator. ``host`` is empty when it is on none.

    ``power_state`` is libvirt's number as Nova last saw it; ``updated`` is in seconds since 1970.
    """

    guest: uuid.UUID
    project: str
    name: str
    host: str
    status: str
    vm_state: str
    task_state: str
    power_state: int
    updated: int

    @property
    def deleted(self) -> bool:
        """Whether it is gone for good."""
        return self.status == "DELETED" or self.vm_state == "deleted"


@dataclass(frozen=True, slots=True)
class ComputeNode:
    """A compute node; ``provider`` is its resource provider in Placement. Some hosts have several."""

    provider: uuid.UUID
    host: str


class Nova:
    """Every method raises :class:`OpenStackError` when Nova does not answer, or not as it should."""

    def __init__(self, openstack: OpenStack) -> None:
        self._openstack = openstack

    def servers(
        self, changed_since: int | None = None, host: str | None = None
    ) -> Iterator[tuple[NovaServer, ...]]:
        """All servers of all projects, a page at a time; each page is asked for when it is needed.

        :param changed_since: only those changed since then (seconds since 1970), deleted ones too.
        :param host: only those on this host, as Nova says.
        """
        query = {"all_tenants": "1", "limit": str(_PAGE)}
        if changed_since is not None:
            moment = datetime.datetime.fromtimestamp(changed_since, datetime.UTC)
            query["changes-since"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        if host is not None:
            query["host"] = host
        answer = self._get("/servers/detail", query, _SERVERS)
        for _ in range(_MAX_PAGES):
            items = _list(answer, "servers")
            yield tuple(server for server in map(_server, items) if server is not None)
            if not items or not _has_next(answer, "servers_links"):
                return
            answer = self._following(items, query)
        raise UnavailableError(f"Nova has more than {_MAX_PAGES} pages of servers")

    def server(self, guest: uuid.UUID) -> NovaServer | None:
        """One server; ``None`` when its cell is down.

        :raises NotFoundError: there is no such server (any more).
        """
        answer = self._get(f"/servers/{guest}", {}, _SERVERS)
        server = _server(_mapping(answer, "server"))
        if server is not None and server.guest != guest:
            raise UnavailableError(f"Nova was asked for server {guest} and answered with {server.guest}")
        return server

    def other_host(self, guest: uuid.UUID, host: str) -> str:
        """The other host of a server that migrates or is being resized; empty when there is none.

        :param host: the one that Nova says it is on.
        """
        query = {"instance_uuid": str(guest), "limit": "10"}
        answer = self._get("/os-migrations", query, _MIGRATIONS)
        for item in _list(answer, "migrations"):
            if _text(item, "instance_uuid") != str(guest) or _text(item, "status") in _ENDED:
                continue
            source, target = _text(item, "source_compute"), _text(item, "dest_compute")
            if target and target != host:
                return target
            if source != host and _text(item, "migration_type") != _EVACUATION:
                return source
        return ""

    def compute_nodes(self) -> tuple[ComputeNode, ...]:
        """Every compute node of every host."""
        query, nodes = {"limit": str(_PAGE)}, []
        for _ in range(_MAX_PAGES):
            answer = self._get("/os-hypervisors/detail", query, _HYPERVISORS)
            items = _list(answer, "hypervisors")
            nodes += [ComputeNode(_uuid(item), _text(_mapping(item, "service"), "host")) for item in items]
            if not items or not _has_next(answer, "hypervisors_links"):
                return tuple(nodes)
            query["marker"] = _text(items[-1], "id")
        raise UnavailableError(f"Nova has more than {_MAX_PAGES} pages of hypervisors")

    def _following(self, items: list[dict[str, Any]], query: dict[str, str]) -> Any:
        """The next page. A server that was deleted and archived meanwhile is no mark any more, but one before
        it is.
        """
        refusal: BadRequestError | None = None
        for item in reversed(items[-_MARKS:]):
            try:
                return self._get("/servers/detail", {**query, "marker": _text(item, "id")}, _SERVERS)
            except BadRequestError as error:
                refusal = error
        raise UnavailableError("Nova knows none of the last servers of its own page") from refusal

    def _get(self, path: str, query: dict[str, str], microversion: str) -> Any:
        return self._openstack.call(COMPUTE, "GET", path, microversion, query)


def _server(item: dict[str, Any]) -> NovaServer | None:
    if "OS-EXT-STS:vm_state" not in item:
        if item.get("status") == "UNKNOWN":
            return None
        raise UnavailableError(
            "Nova shows servers without their states", "give the user in [openstack] the role admin"
        )
    if "OS-EXT-SRV-ATTR:host" not in item:
        raise UnavailableError(
            "Nova shows servers without their hosts", "give the user in [openstack] the role admin"
        )
    return NovaServer(
        guest=_uuid(item),
        project=_text(item, "tenant_id"),
        name=_text(item, "name"),
        host=_text(item, "OS-EXT-SRV-ATTR:host"),
        status=_text(item, "status"),
        vm_state=_text(item, "OS-EXT-STS:vm_state"),
        task_state=_text(item, "OS-EXT-STS:task_state"),
        power_state=_number(item, "OS-EXT-STS:power_state"),
        updated=_moment(item, "updated"),
    )


def _list(answer: Any, name: str) -> list[dict[str, Any]]:
    items = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) > _MAX_ITEMS:
        raise UnavailableError(f"Nova's answer has no list of {name}, or one that is too long")
    if not all(isinstance(item, dict) for item in items):
        raise UnavailableError(f"Nova's list of {name} holds something else")
    return items


def _has_next(answer: dict[str, Any], name: str) -> bool:
    links = answer.get(name)
    return isinstance(links, list) and any(
        isinstance(link, dict) and link.get("rel") == "next" for link in links
    )


def _mapping(answer: Any, name: str) -> dict[str, Any]:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, dict):
        raise UnavailableError(f"Nova's answer has no {name}")
    return value


def _text(item: dict[str, Any], name: str) -> str:
    """A text of at most 255 characters, empty for null or nothing."""
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 255:
        raise UnavailableError(f"{name} in Nova's answer is no text of at most 255 characters")
    return value


def _number(item: dict[str, Any], name: str) -> int:
    value = item.get(name)
    if value is None:
        return 0
    if type(value) is not int:
        raise UnavailableError(f"{name} in Nova's answer is no number")
    return value


def _uuid(item: dict[str, Any]) -> uuid.UUID:
    try:
        return uuid.UUID(_text(item, "id"))
    except ValueError as error:
        raise UnavailableError("an id in Nova's answer is no UUID") from error


def _moment(item: dict[str, Any], name: str) -> int:
    try:
        return calendar.timegm(time.strptime(_text(item, name), "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError as error:
        raise UnavailableError(f"{name} in Nova's answer is no moment") from error
