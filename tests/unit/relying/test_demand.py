# SPDX-License-Identifier: Apache-2.0
"""Every operation with every level and verdict, and who may ask for what."""

from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.demand import (
    GUEST,
    HOST,
    NEIGHBOURS,
    Demand,
    Level,
    Levels,
    Operation,
    Server,
    levels,
    parse_level,
)
from tests.unit.relying.results import LIFETIME, NOW, cache, signed

SERVER, NEIGHBOUR = uuid.UUID(int=1), uuid.UUID(int=2)
IGNORED, PREFERRED, REQUIRED = Level
TRUSTED, UNTRUSTED, UNKNOWN = Verdict.TRUSTED, Verdict.UNTRUSTED, Verdict.UNKNOWN
LATER = NOW + LIFETIME
NONE = Levels(IGNORED, IGNORED, IGNORED)


def server(operation: Operation = Operation.BUILD, *, running: bool = False) -> Server:
    return Server(SERVER, operation, running, {})


# What is known of something: a verdict that holds, one that is over, or nothing.
KNOWN = (TRUSTED, UNTRUSTED, UNKNOWN, ("stale", TRUSTED), ("stale", UNTRUSTED), ("stale", UNKNOWN), None)

CASES = list(itertools.product(Level, KNOWN))

# By level: what is admitted.
ADMITTED = {
    IGNORED: set(KNOWN),
    PREFERRED: {TRUSTED, UNKNOWN, ("stale", TRUSTED), ("stale", UNKNOWN), None},
    REQUIRED: {TRUSTED},
}


@pytest.mark.parametrize(("level", "known"), CASES)
def test_hosts(level: Level, known: object) -> None:
    verdict = known[1] if isinstance(known, tuple) else known
    trust = cache(signed("h", verdict)) if isinstance(verdict, Verdict) else cache()
    now = LATER if isinstance(known, tuple) else NOW
    demand = Demand(trust, server(), Levels(level, IGNORED, IGNORED), now)
    assert (demand.why_not("h") == "") == (known in ADMITTED[level])


@pytest.mark.parametrize(("level", "known"), CASES)
def test_neighbours(level: Level, known: object) -> None:
    verdict = known[1] if isinstance(known, tuple) else known
    trust = cache(signed("h", TRUSTED, {NEIGHBOUR: verdict})) if isinstance(verdict, Verdict) else cache()
    now = LATER if isinstance(known, tuple) else NOW
    demand = Demand(trust, server(), Levels(IGNORED, IGNORED, level), now)
    assert (demand.why_not("h") == "") == (known in ADMITTED[level])


# Memory that is there must have been measured lately. Of memory that is gone the last verdict stands, and
# what no result ever spoke of is new.
OVER = {
    IGNORED: set(KNOWN),
    PREFERRED: set(KNOWN) - {UNTRUSTED, ("stale", UNTRUSTED)},
    REQUIRED: {TRUSTED, ("stale", TRUSTED), None},
}
OPERATIONS = [
    (Operation.BUILD, False, OVER),
    (Operation.UNSHELVE, False, OVER),
    (Operation.EVACUATE, False, OVER),
    (Operation.MIGRATE, False, OVER),
    (Operation.MIGRATE, True, ADMITTED),
    (Operation.LIVE_MIGRATE, True, ADMITTED),
    (Operation.OTHER, True, ADMITTED),
    (Operation.REBUILD, False, {level: set(KNOWN) for level in Level}),
]


@pytest.mark.parametrize(("operation", "running", "admitted"), OPERATIONS)
@pytest.mark.parametrize(("level", "known"), CASES)
def test_servers_in_every_operation(
    operation: Operation, running: bool, admitted: dict[Level, set[object]], level: Level, known: object
) -> None:
    verdict = known[1] if isinstance(known, tuple) else known
    trust = cache(signed("source", TRUSTED, {SERVER: verdict})) if isinstance(verdict, Verdict) else cache()
    now = LATER if isinstance(known, tuple) else NOW
    trust.ingest(signed("h", issued=now), now)
    asked = Levels(REQUIRED, level, IGNORED)
    demand = Demand(trust, server(operation, running=running), asked, now).with_guest()
    refusal = demand.why_not("h")
    assert (refusal == "") == (known in admitted[level])
    assert refusal == "" or refusal.startswith(f"server {SERVER} is ")


def test_a_host_that_falls_silent_after_it_was_found_untrusted_gains_nothing() -> None:
    demand = Demand(cache(signed("h", UNTRUSTED)), server(), Levels(PREFERRED, IGNORED, IGNORED), LATER)
    assert "stale (last untrusted)" in demand.why_not("h")


def test_the_server_itself_is_not_its_neighbour() -> None:
    trust = cache(signed("h", TRUSTED, {SERVER: UNTRUSTED, NEIGHBOUR: TRUSTED}))
    asked = Levels(IGNORED, IGNORED, REQUIRED)
    assert Demand(trust, server(Operation.REBUILD), asked, NOW).why_not("h") == ""
    stranger = Server(uuid.UUID(int=9), Operation.BUILD, False, {})
    assert "the servers on it are untrusted" in Demand(trust, stranger, asked, NOW).why_not("h")


def test_a_host_without_servers_has_good_neighbours_if_it_is_trusted_itself() -> None:
    asked = Levels(IGNORED, IGNORED, REQUIRED)
    assert Demand(cache(signed("h")), server(), asked, NOW).why_not("h") == ""
    assert Demand(cache(signed("h", UNTRUSTED)), server(), asked, NOW).why_not("h") != ""


def test_one_level_does_not_stand_in_for_another() -> None:
    trust = cache(signed("h", UNTRUSTED, {NEIGHBOUR: TRUSTED}), signed("x", TRUSTED, {SERVER: UNTRUSTED}))
    moved = server(Operation.LIVE_MIGRATE, running=True)
    assert Demand(trust, moved, NONE, NOW).with_guest().why_not("h") == ""
    for asked in (Levels(REQUIRED, IGNORED, IGNORED), Levels(IGNORED, REQUIRED, IGNORED)):
        assert Demand(trust, moved, asked, NOW).with_guest().why_not("h") != ""


def test_grace_is_for_what_was_trusted_and_only_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    asked = Levels(REQUIRED, IGNORED, IGNORED)
    trust = cache(signed("good"), signed("bad", UNTRUSTED))
    assert Demand(trust, server(), asked, LATER + 59, grace=60).why_not("good") == ""
    assert "good passes with an expired result" in caplog.text
    assert Demand(trust, server(), asked, LATER + 60, grace=60).why_not("good") != ""
    assert Demand(trust, server(), asked, LATER, grace=60).why_not("bad") != ""
    assert Demand(trust, server(), asked, LATER, grace=60).why_not("unseen") != ""


def test_scores_are_of_what_is_preferred() -> None:
    trust = cache(
        signed("good"),
        signed("bad", UNTRUSTED),
        signed("unknown", UNKNOWN),
        signed("busy", TRUSTED, {NEIGHBOUR: UNTRUSTED}),
    )
    hosts = ("good", "unknown", "unseen", "bad", "busy")

    def scores(asked: Levels, now: int = NOW) -> list[float]:
        return [Demand(trust, server(), asked, now).score(host) for host in hosts]

    assert scores(Levels(PREFERRED, IGNORED, IGNORED)) == [1.0, 0.5, 0.5, 0.0, 1.0]
    assert scores(Levels(PREFERRED, IGNORED, PREFERRED)) == [1.0, 0.5, 0.5, 0.25, 0.5]
    assert scores(Levels(REQUIRED, PREFERRED, IGNORED)) == [0.0] * 5
    assert scores(Levels(PREFERRED, IGNORED, IGNORED), LATER) == [0.5, 0.5, 0.5, 0.0, 0.5]


DEFAULTS = {HOST: "preferred", GUEST: "required", NEIGHBOURS: "ignored"}


def test_operator_flavor_and_image() -> None:
    assert levels(DEFAULTS, {}, {}) == Levels(PREFERRED, REQUIRED, IGNORED)
    assert levels(DEFAULTS, {HOST: "ignored", GUEST: "preferred"}, {}) == Levels(IGNORED, PREFERRED, IGNORED)
    assert levels(DEFAULTS, {}, {HOST: "required"}) == Levels(REQUIRED, REQUIRED, IGNORED)
    assert levels(DEFAULTS, {HOST: "ignored"}, {HOST: "preferred"}).host is PREFERRED


def test_an_image_never_asks_for_less() -> None:
    for default, image in itertools.product(Level, Level):
        named = {HOST: str(default), GUEST: str(default), NEIGHBOURS: str(default)}
        asked = levels(named, {}, {HOST: str(image), GUEST: str(image)})
        assert asked == Levels(max(default, image), max(default, image), default)
        flavored = levels(DEFAULTS, {HOST: str(default)}, {HOST: str(image)})
        assert flavored.host is max(default, image)


def test_an_image_that_cannot_be_read_asks_for_everything() -> None:
    assert levels(DEFAULTS, {HOST: "ignored"}, None) == Levels(REQUIRED, REQUIRED, REQUIRED)


@given(st.one_of(st.text(max_size=300), st.none(), st.integers(), st.just("Required"), st.just(" ignored")))
def test_what_is_malformed_asks_for_most(value: object) -> None:
    if value not in ("required", "preferred", "ignored"):
        assert parse_level(value, "image property", HOST) is REQUIRED


def test_what_is_malformed_is_logged_once_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        parse_level("\x1b[2J" + "x" * 5000, "image property", HOST)
    assert len(caplog.records) == 1
    assert len(caplog.text) < 400
    assert "\x1b" not in caplog.text


def test_grace_is_not_for_a_clock_that_went_back() -> None:
    """What was issued an hour ahead of the clock as it is now would have an hour of grace more."""
    trust, asked = cache(signed("good")), Levels(REQUIRED, IGNORED, IGNORED)
    assert trust.host("good", NOW - 3600).last is TRUSTED
    assert Demand(trust, server(), asked, NOW - 3600, grace=60).why_not("good") != ""
