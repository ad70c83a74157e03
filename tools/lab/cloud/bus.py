# SPDX-License-Identifier: Apache-2.0
"""The message bus of a cloud: a RabbitMQ node of its own, which can be stopped and brought back."""

from __future__ import annotations

from lab import rabbitmq
from lab.cloud.layout import Layout
from lab.cloud.processes import CONTROL, Processes


class Bus:
    """RabbitMQ and its port mapper, on fixed ports of the cloud."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def start(self) -> None:
        """Start a new node and wait until it answers."""
        ports = self._layout.ports
        node = rabbitmq.Node(
            self._layout.state("rabbitmq"), ports["amqp_mapper"], ports["amqp"], ports["amqp_nodes"]
        )
        node.prepare()
        self._processes.start("epmd", node.mapper, environment=node.environment, space=CONTROL)
        self._processes.until(lambda: rabbitmq.accepts(ports["amqp_mapper"]), "epmd", 10)
        self._processes.start("rabbitmq", node.server, environment=node.environment, space=CONTROL)
        self._wait()

    def stop(self) -> None:
        """End the node; what is queued in memory is lost, as in a power cut."""
        self._processes.stop("rabbitmq", patience=0)

    def restart(self) -> None:
        """Bring the node back and wait until it answers."""
        self._processes.restart("rabbitmq")
        self._wait()

    def _wait(self) -> None:
        self._processes.until(lambda: rabbitmq.greets(self._layout.ports["amqp"]), "rabbitmq", 90)
