# SPDX-License-Identifier: Apache-2.0
"""However many verdicts turn at once: no more is done than an operator can look after."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.verifier.responses.scene import NOW, UNTRUSTED, Scene, guest

G1, G2 = str(guest(1)), str(guest(2))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, on_guest_untrusted="lock,pause", on_host_untrusted="disable_service")


def test_one_bad_policy_does_not_stop_a_cloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock", limit=3)
    scene.turn(**{f"g{number}": UNTRUSTED for number in range(1, 51)})
    assert len(scene.run()) == 3
    assert scene.states().count("limited") == 47
    assert scene.reports.outcomes.count(("lock", "limit_reached")) == 1
    assert caplog.text.count("the limit is reached") == 1
    scene.later(601)
    assert scene.run() == [], "what went beyond is not done later, either"


def test_the_limit_is_for_a_window_and_a_response(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock,pause", limit=1, window=100)
    scene.turn(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1), ("pause", G1)]
    scene.turn(g1=UNTRUSTED, g2=UNTRUSTED)
    assert scene.run() == []
    scene.later(100)
    scene.turn(g3=UNTRUSTED)
    assert len(scene.run()) == 2


def test_the_limit_holds_for_all_verifiers_together(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock", limit=4)
    scene.turn(**{f"g{number}": UNTRUSTED for number in range(1, 31)})
    verifiers = [scene.verifier() for _ in range(4)]
    threads = [threading.Thread(target=verifier.run_once) for verifier in verifiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for _ in range(3):
        scene.run()
    assert len(scene.nova.done) == 4
    assert len(set(scene.nova.done)) == 4
    assert sorted(set(scene.states())) == ["done", "limited"]


def test_a_clock_that_jumps_neither_opens_nor_closes_the_limit_for_good(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock", limit=1, window=100, confirm_after=0)
    scene.later(10 * 86400)
    scene.turn(g1=UNTRUSTED)
    assert len(scene.run()) == 1
    scene.now = NOW
    scene.turn(g2=UNTRUSTED)
    assert len(scene.run()) == 1, "an action of the future does not count"
    scene.turn(g3=UNTRUSTED)
    assert scene.run() == []


def test_a_change_from_the_future_is_not_acted_on(scene: Scene) -> None:
    scene.later(86400)
    scene.turn(g1=UNTRUSTED)
    scene.now = NOW
    assert scene.run() == []
    assert scene.states() == ["failed", "failed"]


# -- hosts ---------------------------------------------------------------------------------------------------


def test_an_untrusted_host_gets_no_more_servers(scene: Scene) -> None:
    scene.show()
    scene.show(verdict=UNTRUSTED)
    scene.later(60)
    scene.show(verdict=UNTRUSTED)
    assert scene.run() == [("disable", "h")]
    assert scene.nova.services["h"].reason.startswith("attestation: untrusted")


def test_only_a_part_of_the_hosts_is_ever_disabled(scene: Scene) -> None:
    for host in ("h0", "h1", "h2"):
        scene.show(host)
        scene.show(host, UNTRUSTED)
    scene.later(60)
    for host in ("h0", "h1", "h2"):
        scene.show(host, UNTRUSTED)
    assert len(scene.run()) == 1
    assert sorted(scene.states()) == ["done", "limited", "limited"]
    assert scene.reports.outcomes.count(("disable_service", "limit_reached")) == 1


@pytest.mark.parametrize(("percent", "done"), [(0, 0), (1, 1), (20, 2), (100, 3)])
def test_the_part_is_the_operators(tmp_path: Path, percent: int, done: int) -> None:
    scene = Scene(
        tmp_path, on_host_untrusted="disable_service", disabled_hosts_percent=percent, confirm_after=0
    )
    for host in ("h0", "h1", "h2"):
        scene.show(host)
        scene.show(host, UNTRUSTED)
    assert len(scene.run()) == done


def test_hosts_that_are_disabled_for_other_reasons_do_not_count(scene: Scene) -> None:
    for name in ("h1", "h2", "h3"):
        service = scene.nova.services[name]
        scene.nova.services[name] = replace(service, is_disabled=True, reason="maintenance")
    scene.show()
    scene.show(verdict=UNTRUSTED)
    scene.later(60)
    scene.show(verdict=UNTRUSTED)
    assert scene.run() == [("disable", "h")]
