# SPDX-License-Identifier: Apache-2.0
"""Nova's notifications over a real broker: genuine, forged, malformed, and very many."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import oslo_messaging
import pytest
from lab.rabbitmq import RabbitMq
from oslo_config import cfg

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.verifier.nova_events import POOL, TOPIC, NovaEvents


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    with RabbitMq(tmp_path_factory.mktemp("rabbit")) as broker:
        yield broker


@pytest.fixture
def conf(broker: RabbitMq, tmp_path: Path) -> cfg.ConfigOpts:
    path = tmp_path / "test.conf"
    path.write_text(f"[DEFAULT]\ntransport_url = {broker.url}\n")
    return configuration.load(["--config-file", str(path)], "test")


@pytest.fixture
def nova(broker: RabbitMq, tmp_path: Path) -> oslo_messaging.Notifier:
    """Nova's own end: its exchange, and its topic for versioned notifications."""
    path = tmp_path / "nova.conf"
    path.write_text(f"[DEFAULT]\ntransport_url = {broker.url}\ncontrol_exchange = nova\n")
    conf = cfg.ConfigOpts()
    conf(["--config-file", str(path)])
    transport = oslo_messaging.get_notification_transport(conf)
    return oslo_messaging.Notifier(transport, "nova-compute:compute-1", "messagingv2", topics=[TOPIC])


def payload(guest: uuid.UUID) -> dict[str, Any]:
    return {"nova_object.name": "InstanceActionPayload", "nova_object.data": {"uuid": str(guest)}}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def heard(conf: cfg.ConfigOpts) -> Iterator[list[uuid.UUID]]:
    heard: list[uuid.UUID] = []
    events = NovaEvents(conf, "nova", heard.append)
    events.start()
    yield heard
    events.stop()


def test_a_notification_is_heard_once_among_verifiers(
    conf: cfg.ConfigOpts, nova: oslo_messaging.Notifier, heard: list[uuid.UUID]
) -> None:
    also: list[uuid.UUID] = []
    second = NovaEvents(conf, "nova", also.append)
    second.start()
    try:
        guests = [uuid.uuid4() for _ in range(20)]
        for guest in guests:
            nova.info({}, "instance.power_on.end", payload(guest))
            nova.error({}, "compute.exception", payload(guest))
        wait_until(lambda: len(heard) + len(also) >= 20)
        assert sorted(heard + also, key=str) == sorted(guests, key=str)
    finally:
        second.stop()


def test_garbage_and_floods_are_survived(
    broker: RabbitMq, nova: oslo_messaging.Notifier, heard: list[uuid.UUID]
) -> None:
    last = uuid.uuid4()
    for broken in (
        None,
        7,
        "text",
        [],
        {},
        {"nova_object.data": {"uuid": "x" * 36}},
        {"nova_object.data": 1},
    ):
        nova.info({}, "instance.update", broken)
    with kombu.Connection(broker.url.replace("rabbit://", "amqp://")) as connection:
        exchange = kombu.Exchange("nova", "topic", durable=False, auto_delete=False, passive=True)
        producer = connection.Producer(exchange=exchange, routing_key=f"{TOPIC}.info")
        for body in ("no json", "{}", '{"oslo.message": "no json"}', '{"oslo.message": "{}"}', "[" * 100_000):
            producer.publish(body, content_type="application/json", content_encoding="utf-8")
    for _ in range(500):
        nova.info({}, "instance.update", payload(uuid.uuid4()))
    nova.info({}, "instance.update", payload(last))
    wait_until(lambda: last in heard)
    assert len(heard) == 501
    assert POOL == "nova-vmi-attest"
