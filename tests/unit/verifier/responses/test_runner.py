# SPDX-License-Identifier: Apache-2.0
"""Responses act on what stands, once, within the limit; and whatever goes wrong, the rest goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from nova_vmi_attest.db import models
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.responses import Outcome
from nova_vmi_attest.verifier.responses.base import NovaServer
from nova_vmi_attest.verifier.staleness import Staleness
from tests.unit.verifier.responses.scene import NOW, TRUSTED, UNKNOWN, UNTRUSTED, Scene, guest

G1, G2 = str(guest(1)), str(guest(2))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, on_guest_untrusted="lock,pause", on_host_untrusted="disable_service")


def test_nothing_is_done_by_default(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.turn(g1=UNTRUSTED)
    scene.show(verdict=UNTRUSTED)
    assert scene.run() == []
    assert scene.outcomes() == []


def test_an_altered_guest_is_locked_and_paused(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED, g2=TRUSTED)
    assert scene.run() == [("lock", G1), ("pause", G1)]
    assert scene.nova.calls[0][2] == "attestation: untrusted, text sys_read altered (change 4)"
    assert scene.outcomes() == [
        ("lock", "done", "the server is locked"),
        ("pause", "done", "the server is paused"),
    ]
    assert scene.reports.outcomes == [("lock", "done"), ("pause", "done")]
    assert scene.run() == []


def test_what_was_before_is_history(tmp_path: Path) -> None:
    first = Scene(tmp_path)
    first.turn(g1=UNTRUSTED)
    first.run()
    later = Scene(tmp_path, on_guest_untrusted="lock")
    assert later.outcomes() == []


def test_a_verdict_that_passes_is_not_responded_to(scene: Scene) -> None:
    scene.show(g1=TRUSTED)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == []
    assert scene.states() == ["pending", "pending"]
    scene.later(10)
    scene.show(g1=TRUSTED)
    scene.later(60)
    assert scene.run() == []
    assert scene.outcomes()[0] == ("lock", "moot", "the verdict changed to trusted meanwhile")


def test_of_a_verdict_that_comes_and_goes_the_last_one_counts_once(scene: Scene) -> None:
    for verdict in (TRUSTED, UNTRUSTED, TRUSTED, UNTRUSTED):
        scene.show(g1=verdict)
    scene.later(60)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1), ("pause", G1)]
    assert sorted(scene.states()) == ["done", "done", "moot", "moot"]


def test_without_confirmation_the_first_result_decides(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock", confirm_after=0)
    scene.show(g1=TRUSTED)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1)]


def test_a_host_that_falls_silent_after_the_verdict_does_not_evade(scene: Scene) -> None:
    scene.show(g1=TRUSTED)
    scene.show(g1=UNTRUSTED)
    scene.later(299)
    assert scene.run() == []
    scene.later(11)
    scene.is_settled = False
    assert scene.run() == [], "this verifier was away itself"
    scene.is_settled = True
    scene.later(11)
    assert scene.run() == [("lock", G1), ("pause", G1)]


def test_a_guest_that_is_gone_is_left_alone(scene: Scene) -> None:
    scene.show(g1=TRUSTED)
    scene.show(g1=UNTRUSTED)
    scene.later(60)
    scene.show()
    assert scene.run() == []
    assert scene.outcomes()[0] == ("lock", "moot", "the host shows it no more")


def test_first_verdicts_are_left_alone(scene: Scene) -> None:
    scene.show(g1=UNTRUSTED)
    scene.later(60)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == []
    assert scene.outcomes() == []


def test_first_verdicts_count_where_the_operator_says_so(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_untrusted="lock", first_verdicts="true", confirm_after=0)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1)]


def test_stopping_or_moving_makes_no_verdict_the_first_again(scene: Scene) -> None:
    """A guest that is started with an altered kernel was known before."""
    scene.show(g1=TRUSTED)
    scene.show()
    scene.show(g1=UNTRUSTED)
    scene.later(60)
    scene.show(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1), ("pause", G1)]
    scene.nova.servers[guest(2)] = NovaServer("h2", "ACTIVE", "", False)
    scene.show(g2=TRUSTED)
    scene.show("h2", g2=UNTRUSTED)
    scene.later(60)
    scene.show("h2", g2=UNTRUSTED)
    assert scene.run() == [("lock", G2), ("pause", G2)]


def test_a_decoy_on_another_host_has_nobodys_server_locked(scene: Scene) -> None:
    """A compromised host shows an altered guest under the name of a server that is elsewhere."""
    scene.show(g1=TRUSTED)
    scene.show("evil", g1=UNTRUSTED)
    scene.later(60)
    scene.show("evil", g1=UNTRUSTED)
    assert scene.run() == []
    assert scene.outcomes()[0] == ("lock", "moot", "Nova has it on h, not on evil")


def test_a_server_on_the_move_is_asked_for_again(scene: Scene) -> None:
    scene.nova.servers[guest(1)] = NovaServer("source", "MIGRATING", "migrating", False)
    scene.turn(g1=UNTRUSTED)
    assert scene.run() == []
    assert scene.states() == ["pending", "pending"]
    scene.nova.servers[guest(1)] = NovaServer("h", "ACTIVE", "", False)
    scene.later(11)
    assert scene.run() == [("lock", G1), ("pause", G1)]


def test_what_is_so_already_is_not_done_twice(scene: Scene) -> None:
    scene.nova.servers[guest(1)] = NovaServer("h", "PAUSED", "", True)
    scene.turn(g1=UNTRUSTED)
    assert scene.run() == []
    assert [detail for _, _, detail in scene.outcomes()] == [
        "the server was locked already",
        "the server was paused already",
    ]


@pytest.mark.parametrize("status", ["SHUTOFF", "SUSPENDED", "SHELVED_OFFLOADED"])
def test_what_does_not_run_is_not_paused(scene: Scene, status: str) -> None:
    scene.nova.servers[guest(1)] = NovaServer("h", status, "", False)
    scene.turn(g1=UNTRUSTED)
    assert scene.run() == [("lock", G1)]
    assert scene.states() == ["done", "moot"]


def test_a_server_that_nova_does_not_know_is_left_alone(scene: Scene) -> None:
    scene.turn(g777=UNTRUSTED)
    assert scene.run() == []
    assert scene.outcomes()[0] == ("lock", "moot", "Nova knows no such server")


def test_when_nova_is_away_it_is_tried_again_and_given_up_in_the_end(scene: Scene) -> None:
    scene.nova.is_away = True
    scene.turn(g1=UNTRUSTED)
    for _ in range(3):
        scene.run()
        scene.later(11)
    assert scene.states() == ["pending", "pending"]
    scene.later(3600)
    scene.run()
    assert scene.outcomes()[0] == ("lock", "failed", "given up after 3600 s; Nova cannot be reached")
    assert scene.reports.outcomes == [("lock", "failed"), ("pause", "failed")]
    scene.nova.is_away = False
    assert scene.run() == []


def test_when_nova_comes_back_it_is_done(scene: Scene) -> None:
    scene.nova.is_away = True
    scene.turn(g1=UNTRUSTED)
    scene.run()
    scene.nova.is_away = False
    assert scene.run() == [], "not at once again"
    scene.later(10)
    assert scene.run() == [("lock", G1), ("pause", G1)]


# -- the limit -----------------------------------------------------------------------------------------------


def test_what_an_operator_overrides_is_left_alone(scene: Scene) -> None:
    scene.show()
    scene.show(verdict=UNTRUSTED)
    Overrides(scene.database).set("h", "known", "alice", 3600, scene.now)
    scene.later(60)
    assert scene.run() == []
    assert scene.outcomes() == [("disable_service", "moot", "alice overrides the verdict: known")]
    scene.show(verdict=UNTRUSTED)
    assert scene.run() == []


def test_a_host_that_is_stale(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_host_stale="disable_service")
    with scene.database.writer() as session:
        session.add(models.KnownHost(name="h", tpm="t", certificate="c", announced_at=NOW, last_error=""))
    scene.show()
    scene.later(360)
    assert Staleness(scene.database, 300, 0).look(scene.now, 1000) == ("h",)
    assert scene.run() == []
    scene.later(30)
    assert scene.run() == [("disable", "h")]


def test_a_bad_host_escapes_nothing_by_silence_while_nova_is_away(scene: Scene) -> None:
    """It is marked as stale, which is a change of its verdict, before Nova can be told."""
    with scene.database.writer() as session:
        session.add(models.KnownHost(name="h", tpm="t", certificate="c", announced_at=NOW, last_error=""))
    scene.show()
    scene.show(verdict=UNTRUSTED)
    scene.nova.is_away = True
    scene.later(360)
    assert Staleness(scene.database, 300, 0).look(scene.now, 1000) == ("h",)
    assert scene.run() == []
    scene.nova.is_away = False
    scene.later(60)
    assert scene.run() == [("disable", "h")]


def test_a_stale_host_that_answers_in_time_is_left_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_host_stale="disable_service", on_guest_unknown="notify")
    with scene.database.writer() as session:
        session.add(models.KnownHost(name="h", tpm="t", certificate="c", announced_at=NOW, last_error=""))
    scene.show()
    scene.later(360)
    Staleness(scene.database, 300, 0).look(scene.now, 1000)
    scene.show(g1=UNKNOWN)
    scene.later(30)
    assert scene.run() == []
    assert scene.states() == ["moot"]


# -- crashes -------------------------------------------------------------------------------------------------


def test_a_crash_between_the_cursor_and_the_action_loses_nothing(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED)
    while scene.runner._queue.collect(scene.runner._responses_to, scene.now):
        pass
    assert scene.run(scene.verifier()) == [("lock", G1), ("pause", G1)]
    assert scene.run() == []


def test_what_a_dead_verifier_took_is_taken_over(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED)
    while scene.runner._queue.collect(scene.runner._responses_to, scene.now):
        pass
    lock = scene.runner._queue.due(scene.now)[0]
    assert scene.runner._queue.take(lock, scene.now) is Outcome.ACTING
    other = scene.verifier()
    assert scene.run(other) == [("pause", G1)]
    scene.later(180)
    assert scene.run(other) == []
    scene.later(1)
    assert scene.run(other) == [("lock", G1)]
    mine = replace(lock, outcome=Outcome.ACTING)
    assert not scene.runner._queue.finish(mine, Outcome.FAILED, "too late", scene.now)
    assert scene.states() == ["done", "done"]


def test_one_action_of_a_response_at_a_time(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED, g2=UNTRUSTED)
    while scene.runner._queue.collect(scene.runner._responses_to, scene.now):
        pass
    locks = [item for item in scene.runner._queue.due(scene.now) if item.response == "lock"]
    assert scene.runner._queue.take(locks[0], scene.now) is Outcome.ACTING
    assert scene.runner._queue.take(locks[0], scene.now) is Outcome.PENDING
    assert scene.runner._queue.take(locks[1], scene.now) is Outcome.PENDING


def test_a_verifier_without_the_response_leaves_it_to_the_others(scene: Scene, tmp_path: Path) -> None:
    other = Scene(tmp_path)
    scene.turn(g1=UNTRUSTED)
    while scene.runner._queue.collect(scene.runner._responses_to, scene.now):
        pass
    assert scene.run(other.runner) == []
    assert scene.states() == ["pending", "pending"]
    assert scene.run() == [("lock", G1), ("pause", G1)]


def test_a_change_that_is_no_longer_there(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED)
    while scene.runner._queue.collect(scene.runner._responses_to, scene.now):
        pass
    with scene.database.writer() as session:
        session.execute(update(models.ResponseRow).values(change_id=777))
    assert scene.run() == []
    assert scene.states() == ["moot", "moot"]


def test_responses_end_with_the_history(scene: Scene) -> None:
    scene.turn(g1=UNTRUSTED)
    scene.run()
    scene.later(91 * 86400)
    scene.turn(g2=UNTRUSTED)
    scene.run()
    assert {detail for _, _, detail in scene.outcomes()} == {"the server is locked", "the server is paused"}
    assert len(scene.outcomes()) == 2


def test_alerts_need_no_nova(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_guest_unknown="notify", on_host_untrusted="notify", confirm_after=0)
    scene.show(g1=TRUSTED)
    scene.show(verdict=UNTRUSTED, g1=UNKNOWN)
    scene.run()
    assert [(item.change.kind, item.change.verdict) for item in scene.reports.alerts] == [
        ("host", Verdict.UNTRUSTED),
        ("guest", Verdict.UNKNOWN),
    ]
