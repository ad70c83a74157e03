# SPDX-License-Identifier: Apache-2.0
"""The few things that responses ask of Nova's API, and do through it.

Shapes and microversions are those of the Compute API reference: reasons of locks came with 2.73, services
named by UUID with 2.53.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from keystoneauth1 import exceptions
from keystoneauth1.adapter import Adapter

from nova_vmi_attest.verifier.responses.base import ComputeService, NovaServer, ResponseError

MICROVERSION = "2.73"
_GONE = 404


class ComputeApi:
    """See :class:`nova_vmi_attest.verifier.responses.base.Nova`.

    :param adapter: for the compute service, with the credentials of an operator.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def server(self, server: UUID) -> NovaServer | None:
        """A server; ``None`` when there is none."""
        body = self._request("GET", f"/servers/{server}", missing=True)
        if body is None:
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
        self._request("POST", f"/servers/{server}/action", {"lock": {"locked_reason": reason}})

    def pause(self, server: UUID) -> None:
        """Stop a server's processors and keep its memory."""
        self._request("POST", f"/servers/{server}/action", {"pause": None})

    def compute_services(self) -> tuple[ComputeService, ...]:
        """Every nova-compute service."""
        body = self._request("GET", "/os-services?binary=nova-compute")
        return tuple(
            ComputeService(
                id=_member(item, "id", str),
                host=_member(item, "host", str),
                is_disabled=_member(item, "status", str) == "disabled",
                reason=_text(item, "disabled_reason"),
            )
            for item in _member(body, "services", list)
        )

    def disable(self, service: ComputeService, reason: str) -> None:
        """Keep new servers off a service."""
        said = {"status": "disabled", "disabled_reason": reason}
        self._request("PUT", f"/os-services/{service.id}", said)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, missing: bool = False
    ) -> Any | None:
        """The decoded answer; ``None`` for an empty one, and when nothing is there and that is an answer."""
        try:
            answer = self._adapter.request(path, method, json=body, microversion=MICROVERSION)
            return answer.json() if answer.content else None
        except exceptions.HttpError as error:
            if missing and error.http_status == _GONE:
                return None
            raise ResponseError(f"Nova refused {method} {path}: {error.message}") from error
        except exceptions.ClientException as error:
            raise ResponseError(
                f"Nova cannot be reached: {error}", "check [openstack] and that nova-api runs"
            ) from error
        except ValueError as error:
            raise ResponseError(f"Nova's answer to {method} {path} is not JSON") from error


def _member(value: Any, name: str, kind: type) -> Any:
    member = value.get(name) if isinstance(value, dict) else None
    if not isinstance(member, kind):
        raise ResponseError(f"Nova's answer has no {name}")
    return member


def _text(value: Any, name: str) -> str:
    """A member that is text, or null."""
    member = value.get(name) if isinstance(value, dict) else 0
    if not isinstance(member, str | None):
        raise ResponseError(f"Nova's answer has no {name}")
    return member or ""
