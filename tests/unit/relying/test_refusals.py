# SPDX-License-Identifier: Apache-2.0
"""Telling the verifiers never delays the scheduler, and what is lost is counted."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import oslo_messaging
import pytest
from oslo_config import cfg

from nova_vmi_attest.relying.refusals import MAX_HOSTS, MAX_REASON, Refusal, RefusalReporter

SERVER = str(uuid.UUID(int=1))


class Bus:
    """Takes messages while its gate is open, and fails as often as it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.failures = 0
        self.taken: list[Mapping[str, Any]] = []

    def refused(self, refusal: Mapping[str, Any]) -> None:
        assert self.gate.wait(20)
        if self.failures:
            self.failures -= 1
            raise oslo_messaging.MessageDeliveryFailure("the bus is away")
        self.taken.append(refusal)


def refusal(server: str = SERVER, hosts: int = 1) -> Refusal:
    names = [(f"compute-{number}", "it is stale") for number in range(hosts)]
    return Refusal(1, server, "p", "build req-1", "required", names)


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def reporter(bus: Bus) -> RefusalReporter:
    made = RefusalReporter(oslo_messaging.get_rpc_transport(cfg.ConfigOpts(), url="fake:/"))
    made._verifiers = bus  # type: ignore[assignment]
    made.start()
    return made


def wait(bus: Bus, messages: int) -> None:
    end = time.monotonic() + 20
    while len(bus.taken) < messages:
        assert time.monotonic() < end, f"only {len(bus.taken)} of {messages} messages came"
        time.sleep(0.01)


def test_refusals_are_sent_in_order(bus: Bus, reporter: RefusalReporter) -> None:
    bus.gate.set()
    for number in range(5):
        reporter.put(refusal(str(uuid.UUID(int=number))))
    wait(bus, 5)
    assert [message["server"][-1] for message in bus.taken] == list("01234")


def test_a_message_is_bounded() -> None:
    message = refusal(hosts=10_000).message()
    assert (message["total"], len(message["hosts"])) == (10_000, MAX_HOSTS)
    long = Refusal(1, SERVER, "p" * 999, "r" * 999, "required", [("h" * 999, "r" * 9999)]).message()
    assert (len(long["project"]), len(long["request"])) == (64, 64)
    assert (len(long["hosts"][0]["host"]), len(long["hosts"][0]["reason"])) == (253, MAX_REASON)


def test_a_bus_that_hangs_costs_messages_and_no_time(
    bus: Bus, reporter: RefusalReporter, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        reporter.put(refusal())
    assert bus.taken == []
    assert "refusals do not reach the verifiers: too many are waiting" in caplog.text
    bus.gate.set()
    wait(bus, 256)
    lost = 1000 - len(bus.taken)
    assert 0 < lost <= 744
    assert caplog.text.count("refusals do not reach the verifiers") == 1


def test_what_fails_is_counted_and_told_when_the_bus_is_back(
    bus: Bus, reporter: RefusalReporter, caplog: pytest.LogCaptureFixture
) -> None:
    bus.failures = 3
    bus.gate.set()
    for _ in range(4):
        reporter.put(refusal())
    wait(bus, 1)
    end = time.monotonic() + 20
    while "3 refusals did not reach the verifiers" not in caplog.text:
        assert time.monotonic() < end, caplog.text
        time.sleep(0.01)
    assert caplog.text.count("refusals do not reach the verifiers: the bus is away") == 1
