# SPDX-License-Identifier: Apache-2.0
"""Where a cloud keeps its things, and by which names, ports and passwords its parts find each other."""

from __future__ import annotations

import json
import random
import secrets
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError

HOSTS = ("compute-1", "compute-2")
REGION = "RegionOne"

PORTS = (
    "keystone", "glance", "placement", "neutron", "nova", "metadata", "attestation",
    "amqp", "amqp_mapper", "amqp_nodes",
)  # fmt: skip
# Below Linux's range for outgoing connections (ip_local_port_range, 32768 on), so that none of those takes
# one of our ports between the choice and the service's start.
LOWEST_PORT, HIGHEST_PORT = 10240, 32000

DATABASES = ("keystone", "glance", "placement", "neutron", "nova_api", "nova", "nova_cell0", "attest")


@dataclass(frozen=True, slots=True)
class Layout:
    """The plan of one cloud. It is written down at its start, so that other processes find the cloud.

    :param directory: absolute; everything the cloud writes lies in it.
    :param ports: by the names of PORTS, on 127.0.0.1.
    :param password: of every user of every service.
    """

    directory: Path
    ports: dict[str, int] = field(default_factory=dict)
    password: str = ""

    @classmethod
    def plan(cls, directory: Path) -> Layout:
        """Choose free ports and a password for a new cloud."""
        return cls(directory.absolute(), _free_ports(), secrets.token_hex(16))

    @classmethod
    def load(cls, directory: Path) -> Layout:
        """Return the plan of a cloud that was started. Raises LabError when there is none."""
        try:
            known = json.loads((directory / "layout.json").read_text())
        except FileNotFoundError as error:
            raise LabError(f"there is no cloud in {directory}", "start one with make cloud") from error
        return cls(directory.absolute(), known["ports"], known["password"])

    def save(self) -> None:
        """Write the plan down, for root alone because of the password."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        path = self.directory / "layout.json"
        path.touch(0o600)
        plan: dict[str, Any] = asdict(self)
        del plan["directory"]
        path.write_text(json.dumps(plan, indent=1))

    @property
    def logs(self) -> Path:
        """One log file for each service."""
        return self.directory / "log"

    @property
    def database_socket(self) -> Path:
        """MariaDB's socket; it listens nowhere else."""
        return self.directory / "mariadb.sock"

    @property
    def verifier_keys(self) -> Path:
        """The verifiers' public keys, which hosts and relying parties need."""
        return self.config("nova-vmi-attest") / "verifier.jwks"

    def config(self, service: str) -> Path:
        """The directory of a service's configuration."""
        return self.directory / "etc" / service

    def state(self, *parts: str) -> Path:
        """A directory below the one for what services store."""
        return self.directory.joinpath("state", *parts)

    def host(self, name: str) -> Path:
        """The directory of one compute host."""
        return self.directory / name

    def url(self, service: str, path: str = "") -> str:
        """The base URL of an API, without a slash at the end unless ``path`` has one."""
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def database(self, name: str) -> str:
        """SQLAlchemy's URL of a database."""
        return (
            f"mysql+pymysql://cloud:{self.password}@localhost/{name}"
            f"?charset=utf8mb4&unix_socket={self.database_socket}"
        )

    @property
    def transport_url(self) -> str:
        """oslo.messaging's URL of the bus."""
        return f"rabbit://guest:guest@127.0.0.1:{self.ports['amqp']}/"

    def libvirt_socket(self, host: str) -> Path:
        """The socket of a host's libvirtd, as seen from everywhere."""
        return self.host(host) / "run" / "libvirt" / "libvirt-sock"

    def libvirt_uri(self, host: str) -> str:
        """What a libvirt client opens to reach a host."""
        return f"qemu+unix:///system?socket={self.libvirt_socket(host)}"


def program(name: str) -> str:
    """The path of a Python program that is installed beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise LabError(f"there is no {path}", "tools/bootstrap.sh cloud")
    return str(path)


def _free_ports() -> dict[str, int]:
    """Neighbouring ports from a random place, so that two clouds that start at once hardly meet."""
    for _ in range(200):
        first = random.randrange(LOWEST_PORT, HIGHEST_PORT)
        if all(_free(first + offset) for offset in range(len(PORTS))):
            return {name: first + offset for offset, name in enumerate(PORTS)}
    raise LabError(f"found no {len(PORTS)} neighbouring free ports on 127.0.0.1")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
