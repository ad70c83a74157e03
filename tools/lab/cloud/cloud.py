# SPDX-License-Identifier: Apache-2.0
"""The cloud as a whole: started, found again, used, and ended."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

from openstack.compute.v2.server import Server
from openstack.connection import Connection

from lab.cloud import disk, images, web
from lab.cloud.attestation import Attestation
from lab.cloud.backing import Glance, Neutron, Placement
from lab.cloud.bus import Bus
from lab.cloud.database import Database, seed_password
from lab.cloud.host import Host
from lab.cloud.identity import Identity, connect
from lab.cloud.layout import HOSTS, Layout
from lab.cloud.nova import Nova
from lab.cloud.processes import CONTROL, Processes
from lab.cloud.steps import Say, Steps
from lab.errors import LabError

SERVER_TIMEOUT = 120.0


class Cloud:
    """A running cloud. :meth:`start` makes one, :meth:`attach` finds one that another process started."""

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
    def start(cls, directory: Path, say: Say) -> Cloud:
        """Start a new cloud in ``directory``, which is emptied before. Needs root; takes a minute or two.

        Raises LabError, with the end of the log of what failed, after it has ended what it had started.
        """
        if os.geteuid() != 0:
            raise LabError("a cloud needs root", "run as root or with sudo")
        Processes(directory).stop_all()
        shutil.rmtree(directory, ignore_errors=True)
        layout = Layout.plan(directory)
        if password := seed_password():
            layout = Layout(layout.directory, layout.ports, password)
        layout.save()
        cloud = cls(layout)
        try:
            with Steps(say, cloud.processes.stop_all) as steps:
                cloud._bring_up(steps, seeded=bool(password))
        except BaseException:
            cloud.processes.stop_all()
            raise
        return cloud

    @classmethod
    def attach(cls, directory: Path) -> Cloud:
        """Return the cloud that runs in ``directory``. Raises LabError when none does."""
        cloud = cls(Layout.load(directory))
        if not cloud.running:
            raise LabError(f"the cloud in {directory} does not run", "start one with make cloud")
        return cloud

    @property
    def running(self) -> bool:
        """Whether anything of it runs."""
        return self.processes.alive(CONTROL)

    def stop(self) -> None:
        """End every process of the cloud, guests included, and remove what it stored; logs stay."""
        for connection in self._connections.values():
            connection.close()
        self.processes.stop_all()
        for path in self.layout.directory.iterdir():
            if path == self.layout.logs:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def restart(self, name: str) -> None:
        """End one process and start it again, as it was started at first."""
        self.processes.stop(name)
        self.processes.restart(name)

    def _bring_up(self, steps: Steps, *, seeded: bool) -> None:
        layout, processes = self.layout, self.processes
        glance, placement, neutron = (part(layout, processes) for part in (Glance, Placement, Neutron))
        for part in (self.identity, glance, placement, neutron, self.nova):
            part.configure()
        processes.space(CONTROL, "")
        go = steps.go
        go("database", self.database.start)
        go("bus", self.bus.start)
        go("our configuration", self.attestation.configure)
        go("our keys", self.attestation.make_keys, "our configuration")
        if seeded:
            go("databases", self.database.restore, "database")
            go("endpoints", lambda: self.identity.move_endpoints(self.database), "databases")
            go("keystone", self.identity.start, "endpoints")
            schemas = ("keystone",)
        else:
            for name, part in (
                ("keystone", self.identity), ("glance", glance), ("placement", placement),
                ("neutron", neutron), ("nova", self.nova),
            ):  # fmt: skip
                go(f"{name} schema", part.migrate, "database")
            go("keystone", self.identity.start, "keystone schema")
            go("users", self.identity.populate, "keystone")
            schemas = ("users", "glance schema", "placement schema", "neutron schema", "nova schema")
            go("copy of the databases", self.database.keep, *schemas)
            schemas = ("copy of the databases",)
        go("nova", self.nova.start, "bus", "our keys", *schemas)
        for name, one in (("glance", glance), ("placement", placement), ("neutron", neutron)):
            go(name, lambda one=one: one.start(), "keystone", *schemas)
        go("disk image", disk.bootable)
        self._bring_up_hosts(steps)
        go("images", lambda: self._register_images(), "nova", "glance", "neutron", "placement", "disk image")
        go("neutron answers", neutron.wake, "images")

    def _bring_up_hosts(self, steps: Steps) -> None:
        go = steps.go
        previous: tuple[str, ...] = ()
        go("our references", self.attestation.prepare, "our configuration", "database")
        for name, host in self.computes.items():
            go(f"{name} libvirt", host.start_libvirt, *previous)
            previous = (f"{name} libvirt",)
            go(f"{name} TPM", lambda name=name: self.attestation.start_tpm(name), f"{name} libvirt")
            go(
                f"{name} registered",
                lambda name=name: self.attestation.register(name),
                f"{name} TPM",
                "our references",
            )
        for name, host in self.computes.items():
            go(
                f"{name} nova-compute",
                host.start_compute,
                *(f"{one} libvirt" for one in HOSTS),
                "nova",
                "placement",
                "neutron",
                "glance",
            )
        go("hosts in cell", self._discover_hosts, *(f"{one} nova-compute" for one in HOSTS))
        go("authority and verifier", self.attestation.start, "bus", *(f"{one} registered" for one in HOSTS))
        for name in HOSTS:
            go(
                f"{name} agent",
                lambda name=name: self.attestation.start_agent(name),
                "authority and verifier",
            )

    def _register_images(self) -> None:
        for service in ("glance", "placement", "neutron", "nova", "metadata"):
            web.wait(self.layout, self.processes, service)
        images.register(self.admin)

    def _discover_hosts(self) -> None:
        web.wait(self.layout, self.processes, "nova")
        until(self._computes_up, "every nova-compute to be up", 120)
        self.nova.manage("cell_v2", "discover_hosts", "--by-service")

    def _computes_up(self) -> bool:
        for name in HOSTS:
            self.processes.pid(f"nova-compute-{name}")
        services = self.admin.compute.services(binary="nova-compute")
        return {service.host for service in services if service.state == "up"} >= set(HOSTS)

    # --- What tests use

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the compute hosts."""
        return HOSTS

    @cached_property
    def admin(self) -> Connection:
        """A connection of openstacksdk as the administrator."""
        return self.user("admin")

    def user(self, name: str) -> Connection:
        """A connection as any user (``alpha``, ``alpha-reader``, ``beta``, ``beta-reader``, ``admin``)."""
        if name not in self._connections:
            self._connections[name] = connect(self.layout, name)
        return self._connections[name]


def until(ready: Callable[[], Any], what: str, timeout: float) -> Any:
    """Return the first true answer of ``ready``. Raises LabError after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not (answer := ready()):
        if time.monotonic() > end:
            raise LabError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.2)
    return answer
