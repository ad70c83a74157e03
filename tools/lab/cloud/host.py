# SPDX-License-Identifier: Apache-2.0
"""One compute host: mounts and a host name of its own, libvirt, and nova-compute."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from uuid import NAMESPACE_DNS, UUID, uuid5

import libvirt

from lab.cloud import ini
from lab.cloud.guests import GuestConsole
from lab.cloud.layout import HOSTS, Layout, program
from lab.cloud.nova import common_options
from lab.cloud.processes import Processes, Service
from lab.errors import LabError
from lab.hypervisor import HIDDEN, mounts, stand_in, write_etc

RAM_MIB = 4096
# Both hypervisors share one network, which has nothing in it but these.
ADDRESSES = {name: f"127.0.0.{number}" for number, name in enumerate(HOSTS, 1)}
NETWORK = HOSTS[0]

WIRE = """#!/bin/sh -e
while :; do case $1 in -o) shift 2;; -*) shift;; *) break;; esac; done
"""
SSH = """space "$1"; shift
exec nsenter --target=$pid --root --mount --uts -- "$@"
"""
SCP = """place() { case $1 in *:*) space "${1%%:*}"; place="/proc/$pid/root${1#*:}";; *) place=$1;; esac; }
place "$1"; from=$place
place "$2"
exec cp -r "$from" "$place"
"""


class Host:
    """A hypervisor with nova-compute. Everything of it runs in a namespace that carries the host's name."""

    def __init__(self, layout: Layout, processes: Processes, name: str) -> None:
        self.name = name
        self.directory = layout.host(name)
        self._layout = layout
        self._processes = processes

    def start_libvirt(self) -> None:
        """Make the namespace, and start virtlogd and libvirtd in it."""
        here = self.directory
        ram = here / "ram"
        # Where the agent listens for hints; its service manager would make it.
        hints = stand_in(here, "/run") / "nova-vmi-attest"
        for path in (
            *(stand_in(here, hidden) for hidden in HIDDEN),
            hints,
            ram,
            here / "instances",
            self.instances,
        ):
            path.mkdir(parents=True, exist_ok=True)
        table = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        write_etc(
            stand_in(here, "/etc"),
            ram,
            libvirtd=f'host_uuid = "{uuid5(NAMESPACE_DNS, str(here))}"\n',
            hosts=table,
        )
        own = f"mount -t tmpfs -o size={RAM_MIB}m,mode=0700 guests '{ram}'\n"
        # Nova wants servers in the same place on all hosts.
        own += f"mount --bind '{here}/instances' '{self.instances}'\n"
        self._processes.space(self.name, own + mounts(here), hostname=self.name)
        for daemon, ready in (("virtlogd", "virtlogd-sock"), ("libvirtd", "libvirt-sock")):
            socket = self._layout.libvirt_socket(self.name).with_name(ready)
            name = f"{daemon}-{self.name}"
            self._processes.start(
                name,
                [daemon, "--config", f"/etc/libvirt/{daemon}.conf"],
                space=self.name,
                network=NETWORK,
            )
            self._processes.until(socket.exists, name, 30)

    def start_compute(self) -> None:
        """Start nova-compute."""
        self._write_wires()
        ini.write(self._file, self._options())
        self._processes.start(
            f"nova-compute-{self.name}",
            [program("nova-compute"), "--config-file", str(self._file)],
            environment={
                "PATH": f"{self.directory}/bin:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
            },
            space=self.name,
        )

    @cached_property
    def compute(self) -> Service:
        """nova-compute."""
        return Service(self._processes, f"nova-compute-{self.name}")

    @cached_property
    def agent(self) -> Service:
        """nova-vmi-attest-agent."""
        return Service(self._processes, f"agent-{self.name}")

    @cached_property
    def libvirtd(self) -> Service:
        """libvirtd; guests run on without it."""
        return Service(self._processes, f"libvirtd-{self.name}")

    @contextlib.contextmanager
    def libvirt(self) -> Iterator[libvirt.virConnect]:
        """A connection to this host's libvirtd."""
        connection = libvirt.open(self._layout.libvirt_uri(self.name))
        try:
            yield connection
        finally:
            connection.close()

    def domains(self) -> set[UUID]:
        """The domains that libvirt knows here, running or not."""
        with self.libvirt() as connection:
            return {UUID(domain.UUIDString()) for domain in connection.listAllDomains()}

    def console(self, server: str) -> GuestConsole:
        """The console of a server that runs here. Raises LabError when its domain does not."""
        connection = libvirt.open(self._layout.libvirt_uri(self.name))
        try:
            domain = connection.lookupByUUIDString(server)
        except libvirt.libvirtError as error:
            raise LabError(f"no domain {server} runs on {self.name}: {error}") from error
        return GuestConsole(domain, self.directory / "instances" / server / "console.log")

    @property
    def instances(self) -> Path:
        """Where Nova keeps servers, as every host names it."""
        return self._layout.directory / "instances"

    @property
    def _file(self) -> Path:
        return self._layout.config(self.name) / "nova.conf"

    def _write_wires(self) -> None:
        """Stand-ins for ssh and scp between hosts: a step into the other host's namespace.

        Nova copies disks between hosts with them (resize, cold migration).
        """
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        spaces = "".join(
            f"{address}|{name}) pid={self._processes.pid(name)};;\n" for name, address in ADDRESSES.items()
        )
        prelude = f"{WIRE}space() {{ case $1 in\n{spaces}*) exit 255;; esac; }}\n"
        (tools / "ssh").write_text(f"{prelude}{SSH}")
        (tools / "scp").write_text(f"{prelude}{SCP}")
        for name in ("ssh", "scp"):
            (tools / name).chmod(0o755)

    def _options(self) -> dict[str, dict[str, ini.Value]]:
        options = common_options(self._layout, self.directory / "nova", self._file)
        # A compute asks the conductor.
        del options["api_database"], options["database"]
        options["DEFAULT"] |= {
            "host": self.name,
            "my_ip": ADDRESSES[self.name],
            "instances_path": self.instances,
            "compute_driver": "libvirt.LibvirtDriver",
            # File-backed memory is all that there is of memory.
            "reserved_host_memory_mb": 0,
            "ram_allocation_ratio": "1.0",
            "reserved_host_disk_mb": 0,
            "resume_guests_state_on_host_boot": "false",
            # The guests' busybox does not hear ACPI.
            "shutdown_timeout": 1,
        }
        options["oslo_messaging_notifications"]["driver"] = ["messagingv2", "vmi_attest"]
        options["vnc"] = {"enabled": "false"}
        options["libvirt"] = {
            "virt_type": "qemu",
            "connection_uri": self._layout.libvirt_uri(self.name),
            "file_backed_memory": RAM_MIB,
            "images_type": "qcow2",
            "inject_partition": -2,
            "swtpm_enabled": "false",
            "live_migration_inbound_addr": self.name,
            # The hypervisors reach each other by their sockets: nothing listens without authentication.
            "live_migration_uri": (
                f"qemu+unix:///system?socket={self._layout.directory}/%s/run/libvirt/libvirt-sock"
            ),
            "live_migration_permit_post_copy": "false",
        }
        return options
