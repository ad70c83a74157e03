# SPDX-License-Identifier: Apache-2.0
"""Agent, authority and verifier as processes of their own: a real RabbitMQ, guest and software TPM."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from lab import kernels
from lab.deployment import Deployment
from lab.errors import LabError
from lab.hypervisor import Hypervisor, LibvirtGuest
from lab.processes import stop
from lab.rabbitmq import RabbitMq
from lab.tpm import TPM_CC_QUOTE, SoftwareTpm

from nova_vmi_attest import messaging

PATIENCE = 60.0


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hypervisor, LibvirtGuest]]:
    with Hypervisor(tmp_path_factory.mktemp("libvirt")) as hypervisor:
        yield hypervisor, hypervisor.start("tenant").wait_up()


@pytest.fixture
def cloud(tmp_path: Path, guest: tuple[Hypervisor, LibvirtGuest]) -> Iterator[tuple[Deployment, SoftwareTpm]]:
    with (
        RabbitMq(tmp_path / "rabbit") as broker,
        SoftwareTpm(tmp_path / "tpm") as tpm,
        Deployment(tmp_path / "cloud", tpm, guest[0].uri, transport_url=broker.url, interval=2) as deployment,
    ):
        deployment.prepare()
        deployment.approve(kernels.package())
        deployment.register_host()
        yield deployment, tpm


def wait_for(what: str, ready: Callable[[], Any], deployment: Deployment) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := ready()):
        if time.monotonic() > end:
            raise LabError(f"{what} did not happen in {PATIENCE:.0f} s; {deployment.last_words()}")
        time.sleep(0.2)
    return value


def shown(deployment: Deployment, guest: uuid.UUID) -> dict[str, Any]:
    """The newest result of a guest, as the operator's command shows it."""
    rows = json.loads(deployment.manage("result", "list", "--json"))
    return next((row for row in rows if row["subject"] == str(guest)), {})


def publish_garbage(url: str) -> None:
    """What no client of oslo.messaging sends: octets, JSON without an end, and nested beyond any parser."""
    deep = "[" * 200_000 + "]" * 200_000
    envelope = json.dumps({"oslo.version": "2.0", "oslo.message": deep})
    bodies = (b"\xff\x00garbage", b"{", deep.encode(), envelope.encode(), b'{"method": 7}', b"null")
    with kombu.Connection(url.replace("rabbit://", "amqp://")) as connection:
        producer = connection.Producer(serializer="raw")
        for topic in (messaging.VERIFIER_TOPIC, messaging.AUTHORITY_TOPIC, messaging.ATTESTER_TOPIC):
            for body in bodies:
                for kind in ("application/json", "application/octet-stream"):
                    producer.publish(
                        body, exchange=messaging.EXCHANGE, routing_key=topic, content_type=kind,
                        content_encoding="utf-8",
                    )  # fmt: skip


def test_a_round_over_a_real_bus_and_what_strangers_on_it_achieve(
    cloud: tuple[Deployment, SoftwareTpm], guest: tuple[Hypervisor, LibvirtGuest]
) -> None:
    deployment, tpm = cloud
    processes = deployment.spawn()
    victim = guest[1].uuid
    first = wait_for("a verdict", lambda: shown(deployment, victim), deployment)
    assert first["verdict"] == "trusted"

    # A stranger with the bus's credentials: forged challenges, evidence and announcements.
    transport = messaging.get_transport(deployment.conf)
    quotes = tpm.count(TPM_CC_QUOTE)
    for forged in ("", "a.b.c", "x" * 100_000):
        messaging.AttesterClient(transport).attest(deployment.host, forged)
        messaging.VerifierClient(transport).submit(forged.encode())
        messaging.VerifierClient(transport).announce("compute-9", forged)
    publish_garbage(deployment.transport_url)
    with pytest.raises(messaging.RefusedError):
        messaging.VerifierClient(transport, timeout=10).blob("../../etc/passwd", 0)
    asked = time.time()
    later = wait_for(
        "two more rounds",
        lambda: (row := shown(deployment, victim))["issued"] > asked + 3 and row,
        deployment,
    )
    assert later["verdict"] == "trusted"
    # Rounds came at the verifier's pace of one in two seconds, not at the stranger's.
    assert tpm.count(TPM_CC_QUOTE) - quotes <= (time.time() - asked) / 2 + 2
    assert "compute-9" not in deployment.manage("host", "list", "--json")
    transport.cleanup()

    # Each service goes away and comes back: rounds go on with the same certificate and the same log.
    certificate = (deployment.directory / "agent" / "ak.pem").read_bytes()
    for name in ("verifier", "agent"):
        stop(processes[name])
        assert processes[name].returncode == 0, deployment.last_words()
        before = time.time()
        processes.update(deployment.spawn([name]))
        row = wait_for(
            f"a round after {name} came back",
            lambda before=before: (row := shown(deployment, victim))["issued"] > before and row,
            deployment,
        )
        assert row["verdict"] == "trusted"
    assert (deployment.directory / "agent" / "ak.pem").read_bytes() == certificate


def test_a_service_that_cannot_start_says_why_and_ends(
    cloud: tuple[Deployment, SoftwareTpm], tmp_path: Path
) -> None:
    deployment, _ = cloud
    deployment.verifier_keys.unlink()
    process = deployment.spawn(["agent"])["agent"]
    assert process.wait(60) == 1
    said = (deployment.directory / "agent.log").read_text()
    assert str(deployment.verifier_keys) in said
    assert "Traceback" not in said
