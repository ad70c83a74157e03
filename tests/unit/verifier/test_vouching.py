# SPDX-License-Identifier: Apache-2.0
"""Results on the word of an operator: at once, without evidence, never longer than they may be."""

from __future__ import annotations

import uuid

import evidence_examples as examples
import pytest

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    ResultError,
    Verdict,
    verify_result,
)
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.vouching import Vouching

NOW = 1_000_000
LIFETIME = 300
KEY = examples.key("verifier")
BAD = Reason("pcr_policy", detail="another value")
GUEST = GuestResult(uuid.UUID(int=1), Verdict.TRUSTED)


class Scene:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.results = Results(database, KEY, "cloud", LIFETIME, 1)
        self.overrides = Overrides(database)
        self.published: list[tuple[str, str]] = []
        self.vouching = self.another()

    def another(self) -> Vouching:
        publish = self.published.append
        return Vouching(self.database, self.results, LIFETIME, lambda host, token: publish((host, token)))

    def appraise(self, verdict: Verdict, now: int, host: str = "h") -> None:
        reasons = () if verdict is Verdict.TRUSTED else (BAD,)
        with self.database.writer() as session:
            self.results.record(session, Appraisal(True, HostResult(host, verdict, reasons), (GUEST,)), now)

    def look(self, now: int) -> list[AttestationResult]:
        """What is published by one look."""
        self.published.clear()
        self.vouching.look(now)
        public = [KEY.public_key()]
        return [verify_result(token, public, "cloud", now) for _, token in self.published]


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_without_overrides_nothing_is_issued(scene: Scene) -> None:
    scene.appraise(Verdict.UNTRUSTED, NOW)
    assert scene.look(NOW) == []


def test_an_untrusted_host_is_vouched_for_at_once(scene: Scene) -> None:
    scene.appraise(Verdict.UNTRUSTED, NOW)
    scene.overrides.set("h", "why", "alice", 3600, NOW + 5)
    (result,) = scene.look(NOW + 6)
    assert (result.host.verdict, result.sequence, result.expires) == (Verdict.TRUSTED, 2, NOW + LIFETIME)
    assert result.guests == (GUEST,), "what is said of the guests neither changes nor lasts longer"
    assert scene.look(NOW + 7) == []


def test_a_trusted_host_that_answers_is_left_alone(scene: Scene) -> None:
    scene.appraise(Verdict.TRUSTED, NOW)
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    assert scene.look(NOW + 200) == []


def test_a_silent_host_is_kept_trusted_without_its_guests(scene: Scene) -> None:
    scene.appraise(Verdict.TRUSTED, NOW)
    scene.overrides.set("h", "its TPM is broken", "alice", 1000, NOW)
    (result,) = scene.look(NOW + 270)
    assert (result.host.verdict, result.guests) == (Verdict.TRUSTED, ())
    assert "not appraised" in result.host.reasons[0].detail
    assert (result.issued, result.expires, result.sequence) == (NOW + 270, NOW + 570, 2)
    assert scene.look(NOW + 300) == []
    assert scene.look(NOW + 800)[0].expires == NOW + 1000
    assert scene.look(NOW + 999) == []
    assert scene.look(NOW + 1000) == []
    newest = scene.results.newest("h")
    assert newest is not None
    assert newest.expires == NOW + 1000


def test_a_host_that_never_answered_can_be_vouched_for(scene: Scene) -> None:
    scene.overrides.set("new", "why", "alice", 1000, NOW)
    (result,) = scene.look(NOW + 1)
    assert (result.host.host, result.sequence, result.guests) == ("new", 1, ())


def test_the_sequence_goes_on_when_the_host_answers(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 1000, NOW)
    scene.look(NOW + 1)
    scene.appraise(Verdict.TRUSTED, NOW + 2)
    assert scene.results.newest("h").sequence == 2  # type: ignore[union-attr]
    assert [item.guest for item in scene.results.guests("h")] == [GUEST.guest]


def test_lifting_brings_back_what_was_found_at_once(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    scene.appraise(Verdict.UNTRUSTED, NOW + 1)
    scene.overrides.lift("h", "bob", NOW + 2)
    (result,) = scene.look(NOW + 3)
    assert (result.host, result.guests) == (HostResult("h", Verdict.UNTRUSTED, (BAD,)), (GUEST,))
    assert result.expires == NOW + 1 + LIFETIME
    assert scene.look(NOW + 4) == []


def test_lifting_leaves_an_unseen_host_unknown(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    scene.look(NOW + 1)
    scene.overrides.lift("h", "bob", NOW + 2)
    (result,) = scene.look(NOW + 3)
    assert result.host.verdict is Verdict.UNKNOWN
    assert scene.look(NOW + 4) == []


def test_a_shorter_override_instead_ends_the_longer_one(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    scene.look(NOW + 1)
    scene.overrides.set("h", "why", "alice", 10, NOW + 2)
    scene.look(NOW + 3)
    (result,) = scene.look(NOW + 13)
    assert result.host.verdict is Verdict.UNKNOWN


def test_of_two_verifiers_one_issues(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    scene.look(NOW + 1)
    scene.another().look(NOW + 1)
    assert len(scene.published) == 1


def test_clocks_that_jump_do_no_harm(scene: Scene) -> None:
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    scene.look(NOW + 1)
    (back,) = scene.look(NOW - 4000)
    assert back.host.verdict is Verdict.UNKNOWN, "an override that is not made yet is none"
    assert scene.look(NOW + 90000) == []


def test_a_result_of_another_key_is_replaced_without_its_guests(scene: Scene) -> None:
    other = Results(scene.database, examples.key("stranger"), "cloud", LIFETIME, 1)
    with scene.database.writer() as session:
        other.record(session, Appraisal(True, HostResult("h", Verdict.UNTRUSTED, (BAD,)), (GUEST,)), NOW)
    scene.overrides.set("h", "why", "alice", 3600, NOW)
    (result,) = scene.look(NOW + 1)
    assert (result.host.verdict, result.guests, result.sequence) == (Verdict.TRUSTED, (), 2)


def test_what_fails_for_one_host_is_no_matter_of_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for host in ("a", "b"):
        scene.overrides.set(host, "why", "alice", 3600, NOW)
    issue = scene.results.issue

    def issue_some(session: object, host: HostResult, *rest: object) -> str:
        if host.host == "a":
            raise ResultError("too large")
        return issue(session, host, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(scene.results, "issue", issue_some)
    assert [item.host.host for item in scene.look(NOW + 1)] == ["b"]
    assert "the override of host a has no effect yet" in caplog.text


@pytest.mark.parametrize("verdict", [Verdict.TRUSTED, Verdict.UNTRUSTED])
def test_a_result_from_the_future_gives_its_guests_no_longer_life(scene: Scene, verdict: Verdict) -> None:
    """Issued by a clock that was five hours ahead: signed anew at the right time it would hold for hours."""
    ahead = NOW + 5 * 3600
    scene.overrides.set("h", "why", "alice", 86400, NOW)
    scene.appraise(verdict, ahead)
    (result,) = scene.look(NOW + 1)
    assert (result.host.verdict, result.guests, result.expires) == (Verdict.TRUSTED, (), NOW + 1 + LIFETIME)
    scene.appraise(verdict, ahead)
    scene.overrides.lift("h", "bob", NOW + 2)
    withdrawn = [] if verdict is Verdict.TRUSTED else [((), NOW + 3 + LIFETIME)]
    assert [(item.guests, item.expires) for item in scene.look(NOW + 3)] == withdrawn
