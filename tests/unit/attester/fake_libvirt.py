# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that can be stopped, with domains that tests put there, behind libvirt's own functions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import libvirt


class NoDomain(libvirt.libvirtError):  # type: ignore[misc]
    """The domain ended."""

    def get_error_code(self) -> int:
        return int(libvirt.VIR_ERR_NO_DOMAIN)


@dataclass
class Domain:
    """An active domain; ``ended`` makes it vanish between the list and the question."""

    guest: uuid.UUID
    number: int = 1
    status: tuple[int, int] = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)
    ended: bool = False

    def state(self) -> tuple[int, int]:
        if self.ended:
            raise NoDomain("domain not found")
        return self.status

    def ID(self) -> int:  # noqa: N802 - libvirt's name
        return self.number

    def name(self) -> str:
        return f"instance-{self.guest.int:08x}"

    def UUID(self) -> bytes:  # noqa: N802 - libvirt's name
        return self.guest.bytes

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's name
        return f"<domain><uuid>{self.guest}</uuid></domain>"


class Connection:
    """A client's connection; it dies with the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.alive = True
        self.callbacks: dict[int, Callable[..., None]] = {}
        self.on_close: Callable[..., None] | None = None

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.alive

    def setKeepAlive(self, interval: int, count: int) -> None:  # noqa: N802 - libvirt's name
        self._require()

    def domainEventRegisterAny(  # noqa: N802 - libvirt's name
        self, domain: None, event: int, callback: Callable[..., None], opaque: object
    ) -> int:
        self._require()
        self.callbacks[event] = callback
        return event

    def registerCloseCallback(self, callback: Callable[..., None], opaque: object) -> None:  # noqa: N802 - same
        self.on_close = callback

    def unregisterCloseCallback(self) -> None:  # noqa: N802 - libvirt's name
        self.on_close = None

    def listAllDomains(self, flags: int) -> list[Domain]:  # noqa: N802 - libvirt's name
        self._require()
        return list(self._daemon.domains)

    def lookupByUUID(self, guest: bytes) -> Domain:  # noqa: N802 - libvirt's name
        self._require()
        for domain in self._daemon.domains:
            if domain.UUID() == guest:
                return domain
        raise NoDomain("domain not found")

    def close(self) -> None:
        self.alive = False

    def _require(self) -> None:
        if not self.alive:
            raise libvirt.libvirtError("end of file while reading data")


@dataclass
class Daemon:
    """What :func:`libvirt.openReadOnly` is replaced by: ``open``."""

    domains: list[Domain] = field(default_factory=list)
    runs: bool = True
    connections: list[Connection] = field(default_factory=list)

    def open(self, uri: str) -> Connection:
        if not self.runs:
            raise libvirt.libvirtError("Failed to connect socket: No such file or directory")
        self.connections.append(Connection(self))
        return self.connections[-1]

    def stop(self) -> None:
        self.runs = False
        for connection in self.connections:
            connection.alive = False
            if connection.on_close is not None:
                connection.on_close(connection, libvirt.VIR_CONNECT_CLOSE_REASON_EOF, None)

    def lifecycle_event(self) -> None:
        self._emit(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, None, 0, 0)

    def reset_event(self, domain: Domain) -> None:
        self._emit(libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, domain)

    def _emit(self, event: int, *arguments: Any) -> None:
        connection = self.connections[-1]
        connection.callbacks[event](connection, *arguments, None)
