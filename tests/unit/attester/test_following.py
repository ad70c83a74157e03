# SPDX-License-Identifier: Apache-2.0
"""What a round measures when guests come, go and restart around it, and what happens without libvirt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import libvirt
import pytest

from nova_vmi_attest.attester import libvirt_events
from nova_vmi_attest.attester.following import GuestFollower
from nova_vmi_attest.attester.lifecycle import HypervisorError
from tests.unit.attester.fake_libvirt import Daemon, Domain

A, B = (uuid.UUID(int=number) for number in (1, 2))


class NoReferences:
    def candidates(self) -> tuple[()]:
        return ()

    def missing(self, banner: bytes) -> None:
        raise AssertionError(banner)

    def fetch_missing(self) -> bool:
        return False


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon([Domain(A)])
    monkeypatch.setattr(libvirt, "openReadOnly", daemon.open)
    monkeypatch.setattr(libvirt_events, "ensure_loop", lambda: None)
    return daemon


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def follower(daemon: Daemon, requests: list[str], tmp_path: Path) -> Iterator[GuestFollower]:
    options = SimpleNamespace(
        reader="",
        measure_threads=1,
        libvirt_uri="qemu:///stand-in",
        reconcile_interval=3600,
        hint_socket=str(tmp_path / "nowhere" / "hints.sock"),
        hint_group="",
    )
    follower = GuestFollower(options, NoReferences(), requests.append)  # type: ignore[arg-type]
    yield follower
    follower.stop()


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, follower: GuestFollower, happen: Callable[[], object]
) -> list[int]:
    """Have something happen during the first pass; the incarnations that were measured, in order."""
    genuine, seen = follower._measurer.measure_all, []

    def measure_all(records):  # type: ignore[no-untyped-def]
        first = not seen
        seen.extend(record.incarnation for record in records)
        result = genuine(records)
        if first:
            happen()
        return result

    monkeypatch.setattr(follower._measurer, "measure_all", measure_all)
    return seen


def test_a_round_knows_the_newest_list_without_any_event(follower: GuestFollower, daemon: Daemon) -> None:
    assert [found.guest for found in follower.measure()] == [A]
    daemon.domains.append(Domain(B, 2))
    assert [found.guest for found in follower.measure()] == [A, B]


def test_a_guest_that_leaves_during_the_pass_is_left_out(
    follower: GuestFollower, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def migrate() -> None:
        daemon.domains[0].status = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)

    meanwhile(monkeypatch, follower, migrate)
    assert follower.measure() == ()


def test_a_guest_that_appears_during_the_pass_waits_for_the_next_round(
    follower: GuestFollower, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, follower, lambda: daemon.domains.append(Domain(B, 2)))
    assert [found.guest for found in follower.measure()] == [A]
    assert B in follower._settler._tries


def test_a_guest_that_restarts_during_the_pass_is_measured_as_what_it_is_now(
    follower: GuestFollower, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = meanwhile(monkeypatch, follower, lambda: setattr(daemon.domains[0], "number", 9))
    assert [found.guest for found in follower.measure()] == [A]
    assert seen == [1, 9]


def test_no_round_without_a_word_of_libvirt(follower: GuestFollower, daemon: Daemon) -> None:
    daemon.runs = False
    with pytest.raises(HypervisorError, match="is libvirtd running"):
        follower.measure()


def test_guests_go_on_being_measured_while_libvirt_is_away(
    follower: GuestFollower, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    follower.measure()
    daemon.stop()
    assert [found.guest for found in follower.measure()] == [A]
    assert "libvirt is away" in caplog.text


def test_it_starts_without_libvirt_and_without_a_place_for_hints(
    follower: GuestFollower, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.runs = False
    follower.start()
    assert "no hints from nova-compute" in caplog.text
    follower.stop()
    follower.stop()


def test_a_reset_is_forgotten_and_settled_anew(follower: GuestFollower) -> None:
    follower._reset(A)
    assert A in follower._settler._tries
    assert "reset" in follower.measure()[0].integrity.detail
