# SPDX-License-Identifier: Apache-2.0
"""Following libvirt: events, resets, a daemon that restarts or is not there yet."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import libvirt
import pytest

from nova_vmi_attest.attester import libvirt_events, lifecycle
from nova_vmi_attest.attester.guests import Changes, GuestRegistry, GuestState
from nova_vmi_attest.attester.lifecycle import HypervisorError, Lifecycle
from tests.unit.attester.fake_libvirt import Daemon, Domain

A, B = (uuid.UUID(int=number) for number in (1, 2))
URI = "qemu:///stand-in"


@dataclass
class Scene:
    """A daemon and who follows it. The interval is long: what happens is no timer's doing."""

    daemon: Daemon
    forgotten: list[uuid.UUID] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    resets: list[uuid.UUID] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = GuestRegistry(self.forgotten.append)
        self.lifecycle = Lifecycle(
            URI, self.registry, 3600, on_change=self.changes.append, on_reset=self.resets.append
        )

    def guests(self) -> set[uuid.UUID]:
        return {record.guest for record in self.registry.snapshot()}


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    daemon = Daemon([Domain(A)])
    monkeypatch.setattr(libvirt, "openReadOnly", daemon.open)
    monkeypatch.setattr(libvirt_events, "ensure_loop", lambda: None)
    monkeypatch.setattr(lifecycle, "_RETRY", 0.05)
    scene = Scene(daemon)
    yield scene
    scene.lifecycle.stop()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_guests_that_run_already_are_known_soon_after_the_start(scene: Scene) -> None:
    assert not scene.lifecycle.known
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    assert scene.lifecycle.known
    assert scene.changes == [Changes(appeared=(A,))]


def test_an_event_is_a_reason_to_look(scene: Scene) -> None:
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    scene.daemon.domains.append(Domain(B, 2))
    scene.daemon.lifecycle_event()
    until(lambda: scene.guests() == {A, B})
    del scene.daemon.domains[0]
    scene.lifecycle.look()  # as a hint does
    until(lambda: scene.guests() == {B})
    assert scene.forgotten == [A]


def test_an_event_alone_changes_nothing(scene: Scene) -> None:
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    for _ in range(1000):
        scene.daemon.lifecycle_event()
    scene.lifecycle.reconcile()
    assert scene.changes == [Changes(appeared=(A,))]


def test_a_storm_of_events_is_a_look_now_and_then(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that does nothing but reset itself must not keep libvirt and us busy."""
    monkeypatch.setattr(lifecycle, "_APART", 3600.0)
    looks: list[int] = []
    genuine = scene.lifecycle.reconcile
    monkeypatch.setattr(scene.lifecycle, "reconcile", lambda: (looks.append(1), genuine()))
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    scene.daemon.reset_event(scene.daemon.domains[0])
    until(lambda: scene.resets == [A])
    for _ in range(1000):
        scene.daemon.reset_event(scene.daemon.domains[0])
    scene.lifecycle.stop()
    assert len(looks) == 1


def test_a_reset_is_told_apart_from_other_events(scene: Scene) -> None:
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    scene.daemon.lifecycle_event()
    scene.daemon.reset_event(scene.daemon.domains[0])
    until(lambda: scene.resets == [A])
    assert scene.changes == [Changes(appeared=(A,))]


def test_states_and_reasons_are_taken_from_libvirt(scene: Scene) -> None:
    scene.daemon.domains[0].status = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
    scene.lifecycle.reconcile()
    assert scene.guests() == set()
    scene.daemon.domains[0].status = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED)
    scene.lifecycle.reconcile()
    assert [record.state for record in scene.registry.snapshot()] == [GuestState.RUNNING]


@pytest.mark.parametrize("gone", [Domain(B, ended=True), Domain(B, number=-1)])
def test_a_domain_that_ends_within_a_look_is_left_out(scene: Scene, gone: Domain) -> None:
    scene.daemon.domains.append(gone)
    scene.lifecycle.reconcile()
    assert scene.guests() == {A}


def test_a_daemon_that_restarts_is_found_again_at_once_and_nothing_is_forgotten(scene: Scene) -> None:
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    scene.daemon.stop()
    with pytest.raises(HypervisorError, match="is libvirtd running"):
        scene.lifecycle.reconcile()
    assert scene.guests() == {A}
    scene.daemon.domains.append(Domain(B, 2))
    scene.daemon.runs = True
    until(lambda: scene.guests() == {A, B})
    assert scene.forgotten == []
    # Events come over the new connection.
    del scene.daemon.domains[1]
    scene.daemon.lifecycle_event()
    until(lambda: scene.guests() == {A})


def test_a_daemon_that_is_away_at_the_start_is_waited_for(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.daemon.runs = False
    scene.lifecycle.start()
    until(lambda: "is libvirtd running?" in caplog.text)
    assert not scene.lifecycle.known
    scene.daemon.runs = True
    until(lambda: scene.guests() == {A})
    assert "Traceback" not in caplog.text


def test_a_connection_that_fails_half_made_is_not_kept(scene: Scene) -> None:
    opened = scene.daemon.open(URI)
    opened.alive = False
    scene.lifecycle._connection = None
    genuine, scene.daemon.open = scene.daemon.open, lambda uri: opened  # type: ignore[method-assign]
    libvirt.openReadOnly = scene.daemon.open
    with pytest.raises(HypervisorError):
        scene.lifecycle.reconcile()
    libvirt.openReadOnly = genuine
    scene.lifecycle.reconcile()
    assert scene.guests() == {A}


def test_an_older_list_does_not_overwrite_a_newer_one(scene: Scene) -> None:
    scene.lifecycle.reconcile()
    old = [*scene.daemon.domains]
    listing, go_on = threading.Event(), threading.Event()

    def slow_list(flags: int) -> list[Domain]:
        listing.set()
        assert go_on.wait(10)
        return old

    connection = scene.daemon.connections[-1]
    genuine, connection.listAllDomains = connection.listAllDomains, slow_list  # type: ignore[method-assign]
    slow = threading.Thread(target=scene.lifecycle.reconcile)
    slow.start()
    assert listing.wait(10)
    connection.listAllDomains = genuine  # type: ignore[method-assign]
    scene.daemon.domains.append(Domain(B, 2))
    fast = threading.Thread(target=scene.lifecycle.reconcile)
    fast.start()
    fast.join(0.1)
    go_on.set()
    for thread in (slow, fast):
        thread.join(10)
    assert scene.guests() == {A, B}


def test_the_xml_of_a_domain_that_is_gone_is_an_error(scene: Scene) -> None:
    assert str(A) in scene.lifecycle.live_xml(A)
    with pytest.raises(HypervisorError, match=str(B)):
        scene.lifecycle.live_xml(B)


def test_stopping_ends_the_thread_and_the_connection(scene: Scene) -> None:
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    thread = scene.lifecycle._thread
    scene.lifecycle.stop()
    scene.lifecycle.stop()
    assert thread is not None
    assert not thread.is_alive()
    assert not scene.daemon.connections[-1].alive


def test_a_defect_in_what_is_told_does_not_end_the_following(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(guest: uuid.UUID) -> None:
        scene.forgotten.append(guest)
        raise ZeroDivisionError("a defect")

    scene.registry._on_forget = defect
    scene.lifecycle.start()
    until(lambda: scene.guests() == {A})
    scene.daemon.domains[:] = [Domain(B, 2)]
    scene.daemon.lifecycle_event()
    until(lambda: "a defect" in caplog.text)
    scene.daemon.domains.append(Domain(A, 3))
    scene.daemon.lifecycle_event()
    until(lambda: scene.guests() == {A, B})
