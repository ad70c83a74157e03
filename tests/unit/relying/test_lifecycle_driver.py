# SPDX-License-Identifier: Apache-2.0
"""The driver in nova-compute: the right hints, no delay, no exception, and no flood in the log."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg

from nova_vmi_attest.relying import lifecycle_driver
from nova_vmi_attest.relying.lifecycle_driver import LifecycleDriver, hint

GUEST = "8a6e7c1e-5b3d-4f0a-9a7e-0d3b8f6f2c11"
UNVERSIONED = {
    "publisher_id": "compute.compute-1",
    "event_type": "compute.instance.create.end",
    "payload": {"instance_id": GUEST, "host": "compute-1", "state": "active"},
}
VERSIONED = {
    "publisher_id": "nova-compute:compute-1",
    "event_type": "instance.create.end",
    "payload": {"nova_object.name": "InstanceCreatePayload", "nova_object.data": {"uuid": GUEST}},
}
JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.just(GUEST),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("nova_object.data"), inner),
    max_leaves=10,
)


def configuration(path: str) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    LifecycleDriver(conf, [], None)
    conf.set_override("hint_socket", path, group="relying")
    return conf


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(tmp_path / "hints.sock"))
        agent.settimeout(10)
        yield agent


@pytest.fixture
def driver(tmp_path: Path) -> LifecycleDriver:
    return LifecycleDriver(configuration(str(tmp_path / "hints.sock")), [], None)


def received(agent: socket.socket) -> Any:
    return json.loads(agent.recv(65536))


@pytest.mark.parametrize(
    ("message", "event"),
    [(UNVERSIONED, "compute.instance.create.end"), (VERSIONED, "instance.create.end")],
)
def test_an_instance_event_is_passed_on(
    driver: LifecycleDriver, agent: socket.socket, message: dict[str, Any], event: str
) -> None:
    driver.notify({}, message, "info", None)
    assert received(agent) == {"event": event, "instance": GUEST}


def test_nova_loads_it_by_its_name(agent: socket.socket, tmp_path: Path) -> None:
    conf = configuration(str(tmp_path / "hints.sock"))
    transport = oslo_messaging.get_notification_transport(conf, "fake:/")
    notifier = oslo_messaging.Notifier(transport, "nova-compute:compute-1", driver="vmi_attest", topics=["x"])
    notifier.info({}, "instance.delete.end", VERSIONED["payload"])
    assert received(agent) == {"event": "instance.delete.end", "instance": GUEST}
    # nova-api says the same words of its own part of the work, and is on another host.
    notifier.prepare(publisher_id="nova-api:control").info({}, "instance.update", VERSIONED["payload"])
    notifier.info({}, "service.update", VERSIONED["payload"])
    notifier.info({}, "instance.power_on.end", VERSIONED["payload"])
    assert received(agent)["event"] == "instance.power_on.end"


@pytest.mark.parametrize(
    "change",
    [
        {"publisher_id": "nova-api:control"},
        {"publisher_id": "api.control"},
        {"publisher_id": "nova-compute-lookalike:x"},
        {"publisher_id": None},
        {"event_type": "service.update"},
        {"event_type": "compute.exception"},
        {"event_type": 7},
        {"event_type": "instance." + "x" * 5000},
        {"payload": None},
        {"payload": []},
        {"payload": {}},
        {"payload": {"instance_id": 7}},
        {"payload": {"instance_id": "../../etc/passwd"}},
        {"payload": {"nova_object.data": {"uuid": None}}},
        {"payload": {"nova_object.data": None}},
    ],
)
def test_what_is_no_instance_event_of_this_host_is_not(change: dict[str, Any]) -> None:
    assert hint({**VERSIONED, **change}) is None


@settings(max_examples=100, deadline=None)
@given(JSON, JSON, JSON)
def test_no_notification_raises(publisher: object, event: object, payload: object) -> None:
    for message in (
        {"publisher_id": publisher, "event_type": event, "payload": payload},
        {"publisher_id": "nova-compute:x", "event_type": "instance.x", "payload": payload},
        payload,
    ):
        data = hint(message)
        assert data is None or uuid.UUID(json.loads(data)["instance"])


def test_an_agent_that_does_not_read_delays_nothing(driver: LifecycleDriver, agent: socket.socket) -> None:
    sending = threading.Thread(
        target=lambda: [driver.notify({}, VERSIONED, "info", None) for _ in range(20_000)], daemon=True
    )
    sending.start()
    sending.join(60)
    assert not sending.is_alive()
    assert received(agent)["instance"] == GUEST


def test_an_agent_that_is_away_is_said_once_in_a_while(
    driver: LifecycleDriver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        driver.notify({}, VERSIONED, "info", None)
    assert len(caplog.records) == 1
    assert "no agent takes hints" in caplog.text
    monkeypatch.setattr(lifecycle_driver, "_QUIET", 0.0)
    driver.notify({}, VERSIONED, "info", None)
    assert len(caplog.records) == 2


def test_an_agent_that_comes_back_is_heard_at_once(driver: LifecycleDriver, tmp_path: Path) -> None:
    path = tmp_path / "hints.sock"
    for _ in range(2):
        driver.notify({}, VERSIONED, "info", None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
            agent.bind(str(path))
            agent.settimeout(10)
            driver.notify({}, VERSIONED, "info", None)
            assert received(agent)["instance"] == GUEST
        path.unlink()


@pytest.mark.parametrize("path", ["", "x" * 300, "/dev/null", "nul\0byte"])
def test_no_path_raises(path: str) -> None:
    driver = LifecycleDriver(configuration(path), [], None)
    driver.notify({}, VERSIONED, "info", None)
    assert path or driver._own is None


def test_each_process_has_a_socket_of_its_own(driver: LifecycleDriver, agent: socket.socket) -> None:
    driver.notify({}, VERSIONED, "info", None)
    received(agent)
    first = driver._own_socket()
    child = os.fork()
    if child == 0:
        driver.notify({}, UNVERSIONED, "info", None)
        os._exit(0 if driver._own_socket() is not first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert received(agent)["event"] == "compute.instance.create.end"
    assert driver._own_socket() is first
    driver.notify({}, VERSIONED, "info", None)
    assert received(agent)["event"] == "instance.create.end"
