# SPDX-License-Identifier: Apache-2.0
"""Nova's word against the host's: no host helps or harms a guest that is not its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import evidence_examples as examples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence.result import (
    MAX_REASONS,
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
)
from nova_vmi_attest.verifier.placed import Placed, concerned, hold

MINE, OTHERS, STRANGER, NEW = (uuid.UUID(int=number) for number in range(1, 5))
ONLY_MINE = frozenset({MINE})


def result(guest: uuid.UUID, verdict: Verdict = Verdict.TRUSTED, reasons: int = 0) -> GuestResult:
    found = tuple(Reason("text", f"symbol {number}") for number in range(reasons))
    return GuestResult(guest, verdict, found, release="6.1.0")


def verdicts(results: Iterable[GuestResult]) -> dict[uuid.UUID, tuple[Verdict, str]]:
    return {item.guest: (item.verdict, item.reasons[0].check if item.reasons else "") for item in results}


@pytest.mark.parametrize("verdict", [Verdict.TRUSTED, Verdict.UNTRUSTED, Verdict.UNKNOWN])
@pytest.mark.parametrize("checked", [True, False])
def test_nothing_that_a_host_says_of_anothers_guest_reaches_it(verdict: Verdict, checked: bool) -> None:
    where = Placed(ONLY_MINE, ONLY_MINE, elsewhere=frozenset({OTHERS}), checked=checked)
    guests, notes = hold([result(MINE), result(OTHERS, verdict)], where)
    assert verdicts(guests).keys() == {MINE}
    assert [(note.check, note.symbol) for note in notes] == [("not_placed_here", str(OTHERS))]
    assert concerned([MINE, OTHERS], where) == (MINE,)


def test_a_guest_in_flight_may_be_shown_and_may_be_absent() -> None:
    where = Placed(frozenset(), ONLY_MINE)
    assert verdicts(hold([result(MINE)], where)[0]) == {MINE: (Verdict.TRUSTED, "")}
    assert hold([], where) == ((), ())


def test_a_hidden_guest_is_unknown() -> None:
    where = Placed(ONLY_MINE, ONLY_MINE)
    assert verdicts(hold([], where)[0]) == {MINE: (Verdict.UNKNOWN, "guest_missing")}
    assert concerned([], where) == (MINE,)


def test_a_domain_that_nova_does_not_know_is_reported_and_never_trusted() -> None:
    where = Placed(ONLY_MINE, ONLY_MINE, foreign=frozenset({STRANGER}))
    guests, _ = hold([result(MINE), result(STRANGER), result(NEW, Verdict.UNTRUSTED)], where)
    assert verdicts(guests) == {
        MINE: (Verdict.TRUSTED, ""),
        STRANGER: (Verdict.UNKNOWN, "not_known_to_nova"),
        NEW: (Verdict.UNKNOWN, "placement_unchecked"),
    }


def test_when_nova_is_away_for_long_nothing_is_trusted_and_what_was_found_stands() -> None:
    both = frozenset({MINE, OTHERS})
    where = Placed(both | {NEW}, both | {NEW}, checked=False)
    guests, _ = hold([result(MINE), result(OTHERS, Verdict.UNTRUSTED, 70)], where)
    assert verdicts(guests) == {
        MINE: (Verdict.UNKNOWN, "placement_unchecked"),
        OTHERS: (Verdict.UNTRUSTED, "placement_unchecked"),
        NEW: (Verdict.UNKNOWN, "placement_unchecked"),
    }
    assert all(len(item.reasons) <= MAX_REASONS for item in guests)


def test_a_host_that_makes_up_guests_fills_neither_table_nor_result() -> None:
    made_up = [result(uuid.UUID(int=number)) for number in range(10, 2010)]
    guests, notes = hold(made_up, Placed(ONLY_MINE, ONLY_MINE))
    assert len(guests) == 257
    assert [note.check for note in notes] == ["not_known_to_nova"]
    assert "1744 more" in notes[0].detail
    everybody = frozenset(item.guest for item in made_up)
    guests, notes = hold(made_up, Placed(ONLY_MINE, ONLY_MINE, elsewhere=everybody))
    assert len(guests) == 1
    assert len(notes) == 17


def test_what_is_doubtful_is_what_both_do_not_agree_on() -> None:
    where = Placed(ONLY_MINE, frozenset({MINE, NEW}), frozenset({OTHERS}), frozenset({STRANGER}))
    assert where.doubtful([MINE]) == where.doubtful([MINE, NEW, STRANGER]) == frozenset()
    assert where.doubtful([OTHERS]) == {MINE, OTHERS}
    assert where.doubtful([MINE, uuid.UUID(int=9)]) == {uuid.UUID(int=9)}


_guests = st.frozensets(st.integers(1, 12).map(lambda number: uuid.UUID(int=number)))


@settings(max_examples=100, deadline=None)
@given(_guests, _guests, _guests, _guests, _guests, st.booleans(), st.sampled_from([0, 70]))
def test_whatever_is_placed_and_shown_a_result_can_be_signed(
    required: frozenset[uuid.UUID],
    more: frozenset[uuid.UUID],
    elsewhere: frozenset[uuid.UUID],
    foreign: frozenset[uuid.UUID],
    shown: frozenset[uuid.UUID],
    checked: bool,
    reasons: int,
) -> None:
    allowed = required | more
    where = Placed(required, allowed, elsewhere - allowed, foreign - allowed - elsewhere, checked)
    guests, notes = hold([result(guest, reasons=min(reasons, MAX_REASONS)) for guest in shown], where)
    host = HostResult("compute-1", Verdict.TRUSTED, notes)
    assert sign_result(AttestationResult(host, guests, 100, 200, 1), examples.key("verifier"), "x")
    trusted = {item.guest for item in guests if item.verdict is Verdict.TRUSTED}
    assert trusted == (allowed & shown if checked else frozenset())
    assert {item.guest for item in guests}.isdisjoint(elsewhere - allowed)
    assert required - shown <= {item.guest for item in guests}
