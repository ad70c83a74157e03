# SPDX-License-Identifier: Apache-2.0
"""The cloud as a whole: found again, used, and ended."""

from __future__ import annotations

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

from openstack.compute.v2.server import Server
from openstack.connection import Connection

from lab.cloud import images
from lab.cloud.attestation import Attestation
from lab.cloud.bus import Bus
from lab.cloud.database import Database
from lab.cloud.guests import GuestConsole
from lab.cloud.host import Host
from lab.cloud.identity import Identity, connect
from lab.cloud.layout import HOSTS, Layout
from lab.cloud.nova import Nova
from lab.cloud.processes import CONTROL, Processes
from lab.cloud.waiting import until
from lab.errors import LabError
from nova_vmi_attest.db.session import Database as ResultDatabase
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.results import ResultReader, StoredGuest

SERVER_TIMEOUT = 120.0
VERDICT_TIMEOUT = 60.0


class Cloud:
    """A running cloud. :func:`lab.cloud.launch.start` makes one, :meth:`attach` finds one.

    ``computes`` are the hosts by name, each with handles on its nova-compute, agent and libvirtd;
    ``attestation`` runs our own commands; ``processes`` stops and restarts any service by its name; ``bus``
    and ``database`` are the infrastructure. Methods that wait raise LabError when it takes too long.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.processes = Processes(layout.directory)
        self.database = Database(layout, self.processes)
        self.bus = Bus(layout, self.processes)
        self.identity = Identity(layout, self.processes)
        self.nova = Nova(layout, self.processes)
        self.attestation = Attestation(layout, self.processes)
        self.computes = {name: Host(layout, self.processes, name) for name in HOSTS}
        self._connections: dict[str, Connection] = {}

    @classmethod
    def attach(cls, directory: Path) -> Cloud:
        """Return the cloud that runs in ``directory``. Raises LabError when none does."""
        cloud = cls(Layout.load(directory))
        if not cloud.processes.alive(CONTROL):
            raise LabError(f"the cloud in {directory} does not run", "start one with make cloud")
        return cloud

    def stop(self) -> None:
        """End every process of the cloud, guests included, and remove what it stored; logs stay."""
        for connection in self._connections.values():
            connection.close()
        self.processes.stop_all()
        for path in self.layout.directory.iterdir():
            if path == self.layout.logs:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # --- Who acts

    @property
    def admin(self) -> Connection:
        """A connection of openstacksdk as the administrator."""
        return self.user("admin")

    def user(self, name: str) -> Connection:
        """A connection as any user: ``admin``, ``alpha`` and ``beta`` (members of the project of that name),
        ``alpha-reader`` and ``beta-reader``.
        """
        if name not in self._connections:
            self._connections[name] = connect(self.layout, name)
        return self._connections[name]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the compute hosts."""
        return HOSTS

    # --- Servers

    def boot(
        self,
        name: str,
        *,
        image: str = images.DISK_IMAGE,
        flavor: str = "small",
        host: str = "",
        user: str = "alpha",
        up: bool = True,
        **more: Any,
    ) -> Server:
        """Create a server and wait until it is ACTIVE and, with ``up``, its guest has started.

        :param image: ``disk`` (boots by itself, can be moved while it runs) or ``kernel`` (see images).
        :param host: the compute host, chosen as an operator does with ``nova:<host>``, which skips the
            scheduler's filters; empty to let the scheduler choose.
        :param more: further arguments of ``create_server``.
        """
        if host:
            more["availability_zone"] = f"nova:{host}"
        # Only an administrator may name a host; the server is the user's all the same.
        compute = self._as_admin_of(user).compute if host else self.user(user).compute
        server = compute.create_server(
            name=name,
            image_id=self.admin.image.find_image(image, ignore_missing=False).id,
            flavor_id=self.admin.compute.find_flavor(flavor, ignore_missing=False).id,
            networks="none",
            **more,
        )
        server = self.wait(server)
        if up:
            self.console(server).wait_up()
        return server

    def wait(
        self, server: Server | str, status: str = "ACTIVE", *, host: str = "", timeout: float = SERVER_TIMEOUT
    ) -> Server:
        """Wait until a server has a status (and runs on ``host``) and nothing is under way with it.

        Returns it as the administrator sees it. Raises LabError at once when it goes to ERROR instead.
        """
        seen = self.server(server)

        def there() -> Server | None:
            nonlocal seen
            seen = self.server(server)
            if seen.status == "ERROR" != status:
                raise LabError(f"server {seen.name} is in ERROR: {(seen.fault or {}).get('message')}")
            fits = seen.status == status and not seen.task_state and host in ("", seen.compute_host)
            return seen if fits else None

        found = until(
            there,
            f"server {seen.name} to be {status} {host}",
            timeout,
            lambda: f"it is {seen.status} on {seen.compute_host}, doing {seen.task_state}",
        )
        assert found is not None
        return found

    def server(self, server: Server | str) -> Server:
        """A server as the administrator sees it now."""
        return self.admin.compute.get_server(server if isinstance(server, str) else server.id)

    def delete(self, server: Server | str) -> None:
        """Delete a server and wait until it is gone."""
        identifier = server if isinstance(server, str) else str(server.id)
        self.admin.compute.delete_server(identifier, ignore_missing=True)
        until(
            lambda: not any(self.admin.compute.servers(all_projects=True, uuid=identifier)),
            f"server {identifier} to be gone",
            SERVER_TIMEOUT,
        )

    def host_of(self, server: Server | str) -> Host:
        """The host on which Nova says a server is."""
        return self.computes[self.server(server).compute_host]

    def console(self, server: Server | str) -> GuestConsole:
        """The console of a running server."""
        current = self.server(server)
        return self.computes[current.compute_host].console(current.id)

    # --- Verdicts

    @cached_property
    def results(self) -> ResultReader:
        """What the verifiers stored, read from their database."""
        return ResultReader(ResultDatabase(self.layout.database("attest")))

    def host_trusted(self, host: str) -> bool:
        """Whether the newest result of a host says trusted and is valid."""
        newest = self.results.newest(host)
        return newest is not None and newest.verdict is Verdict.TRUSTED and newest.expires > time.time()

    def guest(self, server: Server | str, host: str = "") -> StoredGuest | None:
        """The newest verdict on a server (by ``host``, or by any); None when there is none."""
        identifier = UUID(server if isinstance(server, str) else server.id)
        found = [one for one in self.results.guests(host or None) if one.guest == identifier]
        return max(found, key=lambda one: one.issued, default=None)

    def wait_verdict(
        self,
        server: Server | str,
        verdict: Verdict = Verdict.TRUSTED,
        *,
        host: str = "",
        timeout: float = VERDICT_TIMEOUT,
    ) -> StoredGuest:
        """Wait until the newest verdict on a server (by ``host``, or by any) is this one."""

        def given() -> StoredGuest | None:
            found = self.guest(server, host)
            return found if found is not None and found.verdict is verdict else None

        found = until(given, f"verdict {verdict}", timeout, lambda: f"it is {self.guest(server, host)}")
        assert found is not None
        return found

    def _as_admin_of(self, user: str) -> Connection:
        """The administrator in a user's project, to create servers there on a host of choice."""
        project = user.removesuffix("-reader")
        name = f"admin@{project}"
        if name not in self._connections:
            self._connections[name] = connect(self.layout, "admin", project)
        return self._connections[name]
