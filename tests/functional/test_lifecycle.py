# SPDX-License-Identifier: Apache-2.0
"""Following real guests of a real libvirt: starts, pauses, resets, saves, crashes, migrations, restarts.

How long a step took is printed, and no test depends on it (``pytest -s`` shows it).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import oslo_messaging
import pytest
from lab import kernels
from lab.errors import LabError
from lab.hypervisor import Hypervisor, LibvirtGuest
from oslo_config import cfg

from nova_vmi_attest.attester.following import GuestFollower
from nova_vmi_attest.attester.guests import GuestState
from nova_vmi_attest.evidence.measurement import Measurement, Status
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.kernel.vmlinux import Vmlinux

PATIENCE = 90.0


class OneReference:
    """The lab's kernel, at hand."""

    def __init__(self) -> None:
        files = {path.stem.replace("-", "_"): path for path in kernels.modules_dir("cloud").rglob("*.ko")}
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        paths = {digest: files[name] for name, digest in digests.items()}
        vmlinux = Vmlinux.load(kernels.boot_image("cloud").read_bytes())
        self._reference = Reference("0" * 64, vmlinux, digests, lambda digest: paths[digest].read_bytes())

    def candidates(self) -> tuple[Reference]:
        return (self._reference,)

    def missing(self, banner: bytes) -> None:
        """Never approved here."""

    def fetch_missing(self) -> bool:
        return False


@dataclass
class Host:
    """One hypervisor and what an agent beside it makes of its guests, without the TPM and the bus."""

    hypervisor: Hypervisor
    references: OneReference
    directory: Path
    requests: list[tuple[float, str]] = field(default_factory=list)

    def start(self, interval: int = 3600) -> GuestFollower:
        """Only events and hints are left to follow by: no timer helps within a test."""
        options = SimpleNamespace(
            reader="",
            measure_threads=1,
            libvirt_uri=self.hypervisor.uri,
            reconcile_interval=interval,
            hint_socket=str(self.directory / "hints.sock"),
            hint_group="",
        )
        self.follower = GuestFollower(options, self.references, self._request)  # type: ignore[arg-type]
        self.follower.start()
        return self.follower

    def _request(self, reason: str) -> None:
        self.requests.append((time.monotonic(), reason))

    def settled(self) -> Callable[[], bool]:
        """Whether the agent asks, from now on, because a guest has settled."""
        already = len(self.requests)
        return lambda: any("settled" in reason for _, reason in self.requests[already:])

    def known(self) -> dict[uuid.UUID, GuestState]:
        return {record.guest: record.state for record in self.follower._registry.snapshot()}

    def measured(self) -> dict[uuid.UUID, Measurement]:
        return {found.guest: found for found in self.follower.measure()}


@pytest.fixture(scope="module")
def references() -> OneReference:
    return OneReference()


@pytest.fixture
def host(tmp_path: Path, references: OneReference) -> Iterator[Host]:
    with Hypervisor(tmp_path / "libvirt") as hypervisor:
        host = Host(hypervisor, references, tmp_path)
        host.start()
        yield host
        host.follower.stop()


def wait(what: str, ready: Callable[[], Any]) -> float:
    """Wait until it is so; the seconds that it took."""
    started = time.monotonic()
    while not ready():
        if time.monotonic() - started > PATIENCE:
            raise LabError(f"{what} did not happen in {PATIENCE:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - started


def console_says(guest: LibvirtGuest, times: int = 1) -> bool:
    return guest.console.text().count("Linux version") >= times


def test_a_guest_is_settled_soon_after_its_kernel_runs(host: Host) -> None:
    settled = host.settled()
    guest = host.hypervisor.start("fresh")
    wait("the guest to be known", lambda: guest.uuid in host.known())
    wait("its kernel to begin", lambda: console_says(guest))
    print(f"settled {wait('a request', settled):.1f} s after the kernel's first line")
    found = host.measured()[guest.uuid]
    assert found.integrity.status is Status.MEASURED
    # The pass of the round builds on what settling learnt.
    assert found.observation.bytes_read < 200 << 20
    assert host.follower._settler.turn() is None


def test_pauses_saves_and_crashes(host: Host) -> None:
    settled = host.settled()
    guest = host.hypervisor.start("moody").wait_up()
    wait("a request", settled)

    guest.pause()
    wait("the pause", lambda: host.known() == {guest.uuid: GuestState.PAUSED})
    assert host.measured()[guest.uuid].integrity.status is Status.MEASURED
    guest.resume()
    wait("the end of the pause", lambda: host.known() == {guest.uuid: GuestState.RUNNING})

    image = host.directory / "saved"
    guest.domain.save(str(image))
    wait("the guest to be saved", lambda: host.known() == {})
    assert host.measured() == {}
    connection = host.hypervisor._connection
    assert connection is not None
    settled = host.settled()
    connection.restore(str(image))
    wait("the guest to be restored", lambda: host.known() == {guest.uuid: GuestState.RUNNING})
    print(f"settled {wait('a request', settled):.1f} s after it was restored")
    assert host.measured()[guest.uuid].integrity.status is Status.MEASURED

    pid = int((host.hypervisor._pid_files / f"{guest.name}.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait("the crash", lambda: host.known() == {})
    assert host.measured() == {}
    wait("a request", lambda: "left" in host.requests[-1][1])


def test_a_reset_forgets_the_kernel_that_ended(host: Host) -> None:
    settled = host.settled()
    guest = host.hypervisor.start("reset").wait_up()
    wait("a request", settled)
    first = host.known()
    settled = host.settled()
    guest.console.close()  # whoever is connected and does not listen holds the guest's console up
    guest.domain.setLifecycleAction(
        libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART
    )
    guest.domain.reset()
    reasons = set()

    def up_again() -> bool:
        found = host.measured()[guest.uuid]
        if found.integrity.status is Status.MEASURED:
            assert console_says(guest, 2), "the kernel that ended was measured"
            return True
        reasons.add(found.integrity.reason)
        return False

    print(f"measured {wait('the new kernel', up_again):.1f} s after a reset, before that {sorted(reasons)}")
    assert reasons
    assert host.known() == first


def test_neither_libvirtd_nor_the_agent_loses_a_guest_by_its_restart(host: Host) -> None:
    settled = host.settled()
    guest = host.hypervisor.start("lasting").wait_up()
    wait("a request", settled)
    opened = host.follower._measurer._open[guest.uuid]
    host.hypervisor.kill_daemon()
    assert host.measured()[guest.uuid].integrity.status is Status.MEASURED
    host.hypervisor._socket.unlink()
    host.hypervisor._daemon("libvirtd", host.hypervisor._socket)
    assert host.hypervisor._connection is not None
    host.hypervisor._connection = libvirt.open(host.hypervisor.uri)
    # Warm all the time, and events arrive again without any timer.
    assert host.measured()[guest.uuid].integrity.status is Status.MEASURED
    assert host.follower._measurer._open[guest.uuid] is opened
    second = host.hypervisor.start("later")
    print(f"a start was seen {wait('the second', lambda: second.uuid in host.known()):.2f} s after it")
    # Out of our way: it outlives the agent as a guest does.
    host.follower.stop()
    settled = host.settled()
    host.start()
    print(f"settled {wait('a request', settled):.1f} s after the agent started")
    assert host.measured()[guest.uuid].integrity.status is Status.MEASURED


def test_an_agent_that_starts_first_waits_for_libvirt(tmp_path: Path, references: OneReference) -> None:
    hypervisor = Hypervisor(tmp_path / "libvirt")
    early = Host(hypervisor, references, tmp_path)
    early.start()
    try:
        with hypervisor:
            guest = hypervisor.start("late")
            print(f"known {wait('the guest', lambda: guest.uuid in early.known()):.1f} s after its start")
    finally:
        early.follower.stop()


def test_a_hint_of_nova_compute_is_a_reason_to_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(
        host.follower._lifecycle, "reconcile", lambda: looks.append(time.monotonic()), raising=True
    )
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    transport = oslo_messaging.get_notification_transport(conf, "fake:/")
    notifier = oslo_messaging.Notifier(transport, "nova-compute:compute-1", driver="vmi_attest", topics=["x"])
    conf.set_override("hint_socket", str(host.directory / "hints.sock"), group="relying")
    payload = {"nova_object.data": {"uuid": str(uuid.uuid4())}}
    started = time.monotonic()
    notifier.info({}, "instance.create.end", payload)
    wait("a look", lambda: looks)
    print(f"looked {looks[0] - started:.3f} s after the notification")
    # A guest that no libvirt has is no guest, whoever says so.
    monkeypatch.undo()
    assert host.measured() == {}
    for _ in range(2000):
        notifier.info({}, "instance.create.end", payload)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\0" * 3000, str(host.directory / "hints.sock"))
    assert host.measured() == {}


@contextmanager
def migrated(guest: LibvirtGuest, source: Hypervisor, target: Hypervisor) -> Iterator[None]:
    """Move a running guest over a unix socket, since the hypervisors have no network in common."""
    assert target._connection is not None
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    parameters = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix:{target.directory}/migration.sock",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml.replace(str(source.directory), str(target.directory)),
    }
    guest.console.close()
    moved = guest.domain.migrate3(target._connection, parameters, libvirt.VIR_MIGRATE_LIVE)
    try:
        yield
    finally:
        moved.destroy()


def test_a_live_migration_has_one_side_at_most_at_any_time(
    host: Host, tmp_path: Path, references: OneReference
) -> None:
    settled = host.settled()
    guest = host.hypervisor.start("moving").wait_up()
    wait("a request", settled)
    with Hypervisor(tmp_path / "other") as hypervisor:
        other = Host(hypervisor, references, tmp_path / "other")
        other.start()
        sides: list[tuple[bool, bool]] = []
        states: set[tuple[int, int]] = set()
        over = threading.Event()

        def watch() -> None:
            connection = libvirt.openReadOnly(hypervisor.uri)
            while not over.is_set():
                # The destination first: a guest that moves between the two questions is in neither.
                there = guest.uuid in other.known()
                sides.append((guest.uuid in host.known(), there))
                with contextlib.suppress(libvirt.libvirtError):
                    states.add(tuple(connection.lookupByUUID(guest.uuid.bytes).state()))
                time.sleep(0.001)
            connection.close()

        watcher = threading.Thread(target=watch)
        watcher.start()
        arrived = other.settled()
        try:
            with migrated(guest, host.hypervisor, hypervisor):
                wait("the arrival", lambda: other.known() == {guest.uuid: GuestState.RUNNING})
                wait("the departure", lambda: host.known() == {})
                print(f"settled {wait('a request', arrived):.1f} s after the migration")
                over.set()
                watcher.join()
                assert host.measured() == {}
                assert other.measured()[guest.uuid].integrity.status is Status.MEASURED
        finally:
            over.set()
            watcher.join()
            other.follower.stop()
        assert (sides[0], sides[-1]) == ((True, False), (False, True))
        assert (True, True) not in sides
        # What libvirt said of the destination's domain, while it was one, before it ran.
        paused = {reason for state, reason in states if state == libvirt.VIR_DOMAIN_PAUSED}
        assert paused <= {libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, libvirt.VIR_DOMAIN_PAUSED_MIGRATION}
        assert libvirt.VIR_DOMAIN_PAUSED_MIGRATION in paused
