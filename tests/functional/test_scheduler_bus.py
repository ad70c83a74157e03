# SPDX-License-Identifier: Apache-2.0
"""The bus is down when nova-scheduler starts, comes, goes and comes again, and the scheduler never waits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nova.conf
import oslo_messaging
import pytest
from lab.processes import free_ports, stop, until
from lab.rabbitmq import Node, accepts, greets
from nova import objects
from nova.scheduler import filters, host_manager

from nova_vmi_attest import messaging
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    HostResult,
    Verdict,
    sign_result,
)
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.relying.demand import Operation, Server
from nova_vmi_attest.relying.scheduler_filter import VMIAttestationFilter
from nova_vmi_attest.relying.shared import SharedTrust
from tests.unit.relying.results import KEY

objects.register_all()

HOSTS = [host_manager.HostState(name, name, uuid.uuid4()) for name in ("good", "late")]
PATIENCE = 120.0


class Broker:
    """A node that the test starts and kills, always on the same port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        first = free_ports(3)
        self.node = Node(directory, first, first + 1, first + 2)
        self.node.prepare()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._spawn(self.node.mapper, lambda: accepts(first))

    @property
    def url(self) -> str:
        return f"rabbit://guest:guest@127.0.0.1:{self.node.port}/"

    def start(self) -> None:
        self._spawn(self.node.server, lambda: greets(self.node.port))

    def kill(self) -> None:
        process = self.processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        stop(process, signal.SIGKILL)

    def _spawn(self, command: list[str], ready: Callable[[], bool]) -> None:
        log = self.directory / f"{Path(command[0]).name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **self.node.environment}, cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        until(ready, command[0], 90, process, log)


class Verifier:
    """Answers as a verifier does: with the newest results, and by keeping refusals."""

    def __init__(self, refusals: Refusals) -> None:
        self.refusals = refusals

    @messaging.exposed
    def results(self, ctxt: Mapping[str, Any], after: str) -> dict[str, Any]:
        return {"results": [] if after else [token("good")], "next": "" if after else "good"}

    @messaging.exposed
    def refused(self, ctxt: Mapping[str, Any], refusal: dict[str, Any]) -> None:
        self.refusals.add(refusal, int(time.time()))


def token(host: str) -> str:
    now = int(time.time())
    result = AttestationResult(HostResult(host, Verdict.TRUSTED), (), now, now + 3600, 1)
    return sign_result(result, KEY, "nova-vmi-attest")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "rabbit")
    yield broker
    while broker.processes:
        broker.kill()


@pytest.fixture
def scheduler(broker: Broker, tmp_path: Path) -> Iterator[VMIAttestationFilter]:
    shared = SharedTrust()
    made = VMIAttestationFilter(shared, new_server)
    path = tmp_path / "verifier.jwks"
    path.write_bytes(keys.encode_jwks([KEY.public_key()]))
    nova.conf.CONF.set_override("verifier_keys", str(path), "relying")
    nova.conf.CONF.set_override("transport_url", broker.url, "relying")
    yield made
    parts = shared._parts
    if parts is not None and parts.listener is not None:
        parts.listener.stop()
    for name in ("verifier_keys", "transport_url"):
        nova.conf.CONF.clear_override(name, "relying")


def new_server(spec: objects.RequestSpec) -> Server:
    return Server(uuid.UUID(spec.instance_uuid), Operation.BUILD, running=False, properties={})


def passing(scheduler: VMIAttestationFilter) -> list[str]:
    spec = objects.RequestSpec(
        instance_uuid=str(uuid.uuid4()), project_id="p", flavor=objects.Flavor(extra_specs={})
    )
    kept = filters.HostFilterHandler().get_filtered_objects([scheduler], HOSTS, spec)
    return [host.host for host in kept or ()]


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE:.0f} s"
        time.sleep(0.3)


def test_a_bus_that_comes_and_goes(
    broker: Broker, scheduler: VMIAttestationFilter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody can be asked: every host is refused, and what was refused waits to be told.
    with monkeypatch.context() as patched:
        patched.setattr("nova_vmi_attest.relying.requests._PATIENCE", 1.0)
        assert passing(scheduler) == []

    broker.start()
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    refusals = Refusals(database)
    transport = oslo_messaging.get_rpc_transport(nova.conf.CONF, url=broker.url)
    server = messaging.get_server(transport, messaging.VERIFIER_TOPIC, "verifier", Verifier(refusals))
    server.start()
    wait_for("a trusted host", lambda: passing(scheduler) == ["good"])
    wait_for("a refusal from before the bus came", lambda: any(one.total == 2 for one in refusals.list()))
    assert refusals.list()[-1].hosts[0].reason.startswith("it is unknown")

    # What is known stays until it expires.
    broker.kill()
    assert passing(scheduler) == ["good"]

    broker.start()
    verifiers = messaging.ResultsClient(transport)

    def published() -> bool:
        verifiers.result(token("late"))
        return passing(scheduler) == ["good", "late"]

    wait_for("a result after the bus came back", published)
    server.stop()
    server.wait()


def test_the_first_request_finds_the_cache_filled(
    broker: Broker, scheduler: VMIAttestationFilter, tmp_path: Path
) -> None:
    broker.start()
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    transport = oslo_messaging.get_rpc_transport(nova.conf.CONF, url=broker.url)
    verifier = Verifier(Refusals(database))
    server = messaging.get_server(transport, messaging.VERIFIER_TOPIC, "verifier", verifier)
    server.start()
    assert passing(scheduler) == ["good"]
    server.stop()
    server.wait()
