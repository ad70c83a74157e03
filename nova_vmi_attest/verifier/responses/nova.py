# SPDX-License-Identifier: Apache-2.0
"""The few things that responses ask of Nova's API, and do through it.

Shapes and microversions are those of the Compute API reference: reasons of locks came with 2.73, services
named by UUID with 2.53.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from nova_vmi_attest.verifier.openstack import COMPUTE, NotFoundError, OpenStack, OpenStackError
from nova_vmi_attest.verifier.responses.base import ComputeService, Moot, NovaServer, ResponseError

_MICROVERSION = "2.73"
# More services than any cloud has.
_MAX_SERVICES = 100_000


class ComputeApi:
    """See :class:`nova_vmi_attest.verifier.responses.base.Nova`.

    :param openstack: with the credentials of an operator.
    """

    def __init__(self, openstack: OpenStack) -> None:
        self._openstack = openstack

    def server(self, server: UUID) -> NovaServer | None:
        """A server; ``None`` when there is none."""
        try:
            body = self._call("GET", f"/servers/{server}")
        except NotFoundError:
            return None
        found = _member(body, "server", dict)
        return NovaServer(
            host=_text(found, "OS-EXT-SRV-ATTR:host"),
            status=_text(found, "status"),
            task_state=_text(found, "OS-EXT-STS:task_state"),
            is_locked=_member(found, "locked", bool),
        )

    def lock(self, server: UUID, reason: str) -> None:
        """Lock a server against its project."""
        self._do("POST", f"/servers/{server}/action", {"lock": {"locked_reason": reason}})

    def pause(self, server: UUID) -> None:
        """Stop a server's processors and keep its memory."""
        self._do("POST", f"/servers/{server}/action", {"pause": None})

    def compute_services(self) -> tuple[ComputeService, ...]:
        """Every nova-compute service."""
        body = self._call("GET", "/os-services", binary="nova-compute")
        services = _member(body, "services", list)
        if len(services) > _MAX_SERVICES:
            raise ResponseError(f"Nova has more than {_MAX_SERVICES} compute services")
        return tuple(
            ComputeService(
                id=_member(item, "id", str),
                host=_member(item, "host", str),
                is_disabled=_member(item, "status", str) == "disabled",
                reason=_text(item, "disabled_reason"),
            )
            for item in services
        )

    def disable(self, service: ComputeService, reason: str) -> None:
        """Keep new servers off a service."""
        said = {"status": "disabled", "disabled_reason": reason}
        self._do("PUT", f"/os-services/{service.id}", said)

    def _do(self, method: str, path: str, body: object) -> None:
        try:
            self._call(method, path, body)
        except NotFoundError as error:
            raise Moot(f"Nova has it no more: {error.message}") from error

    def _call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        try:
            return self._openstack.call(COMPUTE, method, path, _MICROVERSION, query, body)
        except NotFoundError:
            raise
        except OpenStackError as error:
            raise ResponseError(error.message, error.remedy) from error


def _member(value: Any, name: str, kind: type) -> Any:
    member = value.get(name) if isinstance(value, dict) else None
    if not isinstance(member, kind):
        raise ResponseError(f"Nova's answer has no {name}")
    return member


def _text(value: Any, name: str) -> str:
    """A member that is text, or null. One that is missing is hidden from us, which says nothing."""
    if not isinstance(value, dict) or not isinstance(value.get(name, 0), str | None):
        raise ResponseError(f"Nova's answer has no {name}", "give the user in [openstack] the role admin")
    return value[name] or ""
