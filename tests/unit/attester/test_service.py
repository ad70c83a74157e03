# SPDX-License-Identifier: Apache-2.0
"""What the agent does while the message bus is away, seen at the edge where oslo.messaging begins."""

from __future__ import annotations

import threading
from typing import Any

import oslo_messaging
import pytest

from nova_vmi_attest import messaging
from nova_vmi_attest.attester import service
from nova_vmi_attest.attester.challenges import ChallengeQueue
from nova_vmi_attest.attester.service import AttesterService
from nova_vmi_attest.conf import load


class BlockedServer:
    """An RPC server that starts when the bus is there, and no sooner."""

    def __init__(self) -> None:
        self.bus = threading.Event()
        self.started, self.stopped = threading.Event(), threading.Event()

    def start(self) -> None:
        self.bus.wait(20)
        self.started.set()

    def stop(self) -> None:
        self.stopped.set()

    def wait(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> BlockedServer:
    server = BlockedServer()
    monkeypatch.setattr(messaging, "get_server", lambda *arguments: server)
    return server


@pytest.fixture
def agent() -> AttesterService:
    agent = AttesterService(load([], "nova-vmi-attest-agent", []), None)
    agent._challenges = ChallengeQueue("compute-1", [])
    return agent


def listening(agent: AttesterService) -> threading.Thread:
    thread = threading.Thread(target=agent._listen, daemon=True)
    thread.start()
    return thread


def test_challenges_are_taken_as_soon_as_the_bus_is_there(
    agent: AttesterService, server: BlockedServer
) -> None:
    thread = listening(agent)
    server.bus.set()
    assert server.started.wait(10)
    assert agent._listening.wait(10)
    agent._join([thread])
    assert not thread.is_alive()
    assert server.stopped.is_set()


def test_a_bus_that_never_comes_does_not_keep_the_agent_from_ending(
    agent: AttesterService, server: BlockedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LAST_WORK", 0.1)
    threads = [listening(agent) for _ in range(3)]
    agent._join(threads)
    assert all(thread.is_alive() and thread.daemon for thread in threads)
    server.bus.set()


def test_a_request_that_cannot_be_sent_is_logged_and_forgotten(
    agent: AttesterService, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def event(self, *arguments: Any) -> None:
            raise oslo_messaging.MessageDeliveryFailure("no bus")

    agent._verifier = Away()  # type: ignore[assignment]
    agent._request("settled")
    assert "no bus" in caplog.text
