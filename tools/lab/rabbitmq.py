# SPDX-License-Identifier: Apache-2.0
"""A RabbitMQ node of our own on free loopback ports, with its own port mapper, cookie, database and logs.

A node that the machine runs is neither asked nor disturbed: name, ports, cookie and directories all differ.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.errors import LabError
from lab.processes import free_ports, stop, until

# Not the wrapper in /usr/sbin: that one switches to the system node's user and directories.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


@dataclass(frozen=True, slots=True)
class Node:
    """How a node and its port mapper are started, whoever starts them. Ports are on 127.0.0.1."""

    directory: Path
    mapper_port: int
    port: int
    distribution_port: int

    def prepare(self) -> None:
        """Write the files that the node reads. Raises LabError when RabbitMQ is not installed."""
        if not SERVER.exists():
            raise LabError(f"there is no {SERVER}", "apt-get install rabbitmq-server")
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "empty.conf").touch()

    @property
    def mapper(self) -> list[str]:
        """The port mapper's command."""
        return ["epmd", "-address", "127.0.0.1", "-port", str(self.mapper_port)]

    @property
    def server(self) -> list[str]:
        """The node's command."""
        return [str(SERVER)]

    @property
    def environment(self) -> dict[str, str]:
        """What the node's command is told through its environment."""
        here = self.directory
        return {
            "HOME": str(here),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.mapper_port),
            "RABBITMQ_NODENAME": f"lab-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(here / "empty.conf"),
            "RABBITMQ_CONFIG_FILE": str(here / "empty.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_PID_FILE": str(here / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(here / "config"),
            # Makes the script become the node instead of waiting for it, so that it is our own process.
            "RUNNING_UNDER_SYSTEMD": "true",
            # Two schedulers that sleep when idle, and no node-to-node listener but on loopback.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }


class RabbitMq:
    """A message bus for the length of the `with` block. Raises LabError when it does not come up."""

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory).absolute()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The transport URL for oslo.messaging; RabbitMQ's default user may come from loopback only."""
        return f"rabbit://guest:guest@127.0.0.1:{self._port}/"

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._port

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the port mapper and the node."""
        return tuple(process.pid for process in self._processes)

    def stop(self) -> None:
        """End the node, then its port mapper. What it stored is thrown away, so nothing waits for it."""
        while self._processes:
            process = self._processes.pop()
            # The node's helpers share its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stop(process, signal.SIGKILL)

    def _start(self) -> None:
        mapper, self._port, distribution = range(first := free_ports(3), first + 3)
        node = Node(self._directory, mapper, self._port, distribution)
        node.prepare()
        self._spawn(node.mapper, {}, "epmd")
        until(lambda: accepts(mapper), "epmd", 10, self._processes[0], self._log("epmd"))
        self._spawn(node.server, node.environment, "server")
        until(lambda: greets(self._port), "RabbitMQ", 90, self._processes[1], self._log("server"))

    def _spawn(self, command: list[str], environment: dict[str, str], name: str) -> None:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))
        }
        with open(self._log(name), "wb") as log:
            try:
                process = subprocess.Popen(
                    command,
                    env={**inherited, **environment},
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(
                    f"{command[0]} cannot be run: {error}", "apt-get install rabbitmq-server"
                ) from error
        self._processes.append(process)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def greets(port: int) -> bool:
    """Say whether a node answers as an AMQP server does, which it does last of all at its start."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(PROTOCOL_HEADER)
            return len(client.recv(16)) > 0
    except OSError:
        return False


def accepts(port: int) -> bool:
    """Say whether something listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
