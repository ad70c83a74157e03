# SPDX-License-Identifier: Apache-2.0
"""The newest valid result counts, and what is not known, old or forged never becomes trust."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import evidence_examples as examples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    ResultError,
    Verdict,
    sign_result,
)
from nova_vmi_attest.relying.trust import TrustCache
from tests.unit.relying import results

NOW = 1_000_000
KEY = examples.key("verifier")
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
BAD = Reason("text", "f", 1, 2, "patched")


@pytest.fixture
def cache() -> TrustCache:
    return TrustCache([KEY.public_key()], "cloud")


def token(
    guests: dict[uuid.UUID, Verdict] | None = None,
    *,
    host: str = "h",
    verdict: Verdict = Verdict.TRUSTED,
    sequence: int = 1,
    issued: int = NOW,
    lifetime: int = 300,
    key: str = "verifier",
    audience: str = "cloud",
) -> str:
    shown = tuple(
        GuestResult(guest, judged, () if judged is Verdict.TRUSTED else (BAD,))
        for guest, judged in (guests or {}).items()
    )
    result = AttestationResult(HostResult(host, verdict), shown, issued, issued + lifetime, sequence)
    return sign_result(result, examples.key(key), audience)


def test_what_was_never_seen_is_unknown(cache: TrustCache) -> None:
    assert cache.host("h", NOW).verdict is Verdict.UNKNOWN
    assert cache.guest(ONE, NOW).verdict is Verdict.UNKNOWN
    assert not cache.guest(ONE, NOW).seen


def test_a_result_is_believed_until_it_ends(cache: TrustCache) -> None:
    assert cache.ingest(token({ONE: Verdict.TRUSTED, TWO: Verdict.UNTRUSTED}), NOW)
    assert cache.host("h", NOW + 299).verdict is Verdict.TRUSTED
    assert cache.guest(ONE, NOW + 299).verdict is Verdict.TRUSTED
    assert "patched" in cache.guest(TWO, NOW).why
    for trust in (cache.host("h", NOW + 300), cache.guest(ONE, NOW + 300), cache.guest(TWO, NOW + 300)):
        assert trust.verdict is Verdict.STALE
        assert trust.seen
        assert trust.why.startswith("stale (last ")


@pytest.mark.parametrize(
    "forged",
    [
        token(key="another"),
        token(audience="another cloud"),
        token(issued=NOW - 300),
        token(issued=NOW + 3600),
        "",
        "a.b.c",
        token()[:-8] + "AAAAAAAA",
    ],
    ids=["key", "audience", "expired", "future", "empty", "nonsense", "signature"],
)
def test_what_is_forged_or_over_changes_nothing(cache: TrustCache, forged: str) -> None:
    with pytest.raises(ResultError):
        cache.ingest(forged, NOW)
    assert not cache.host("h", NOW).seen


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_arbitrary_text_is_no_result(text: str) -> None:
    with pytest.raises(ResultError):
        TrustCache([KEY.public_key()], "cloud").ingest(text, NOW)


def test_without_keys_nothing_is_believed() -> None:
    with pytest.raises(ResultError):
        TrustCache((), "cloud").ingest(token(), NOW)


def test_an_older_result_never_replaces_a_newer_one(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.UNTRUSTED}, sequence=5, issued=NOW), NOW)
    assert not cache.ingest(token({ONE: Verdict.TRUSTED}, sequence=4, issued=NOW - 60), NOW)
    assert not cache.ingest(token({ONE: Verdict.TRUSTED}, sequence=5, issued=NOW), NOW)
    assert not cache.ingest(token({ONE: Verdict.TRUSTED}, sequence=6, issued=NOW - 1), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.UNTRUSTED
    assert cache.ingest(token({ONE: Verdict.TRUSTED}, sequence=6, issued=NOW), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.TRUSTED


def test_a_verifier_that_lost_its_database_is_heard_once_its_results_have_ended(cache: TrustCache) -> None:
    cache.ingest(token(sequence=900), NOW)
    assert not cache.ingest(token(sequence=1, issued=NOW + 299), NOW + 299)
    assert cache.ingest(token(sequence=1, issued=NOW + 300), NOW + 300)


def test_a_guest_that_left_is_forgotten(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.UNTRUSTED}), NOW)
    cache.ingest(token({}, sequence=2), NOW)
    assert not cache.guest(ONE, NOW).seen


def test_of_two_hosts_that_show_a_guest_the_worse_verdict_counts(cache: TrustCache) -> None:
    """A clean decoy on another host does not cover the guest that was altered."""
    cache.ingest(token({ONE: Verdict.UNTRUSTED}, host="real"), NOW)
    cache.ingest(token({ONE: Verdict.TRUSTED}, host="decoy"), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.UNTRUSTED
    cache.ingest(token({ONE: Verdict.UNKNOWN}, host="real", sequence=2), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.UNKNOWN


def test_after_a_migration_the_new_host_speaks_for_the_guest(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.UNTRUSTED}, host="old"), NOW)
    cache.ingest(token({ONE: Verdict.TRUSTED}, host="new"), NOW)
    cache.ingest(token({}, host="old", sequence=2), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.TRUSTED


def test_the_result_of_a_dead_host_gives_way_when_it_has_ended(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.UNKNOWN}, host="dead", lifetime=10), NOW)
    cache.ingest(token({ONE: Verdict.TRUSTED}, host="new"), NOW)
    assert cache.guest(ONE, NOW + 9).verdict is Verdict.UNKNOWN
    assert cache.guest(ONE, NOW + 10).verdict is Verdict.TRUSTED


def test_an_untrusted_host_is_untrusted(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.UNKNOWN}, verdict=Verdict.UNTRUSTED), NOW)
    assert cache.host("h", NOW).verdict is Verdict.UNTRUSTED


def test_a_result_from_the_future_neither_counts_nor_stays(cache: TrustCache) -> None:
    """The clocks of verifier and relying party ran a day ahead, and were then put right."""
    tomorrow = NOW + 86400
    cache.ingest(token({ONE: Verdict.TRUSTED}, issued=tomorrow, sequence=5), tomorrow)
    assert cache.host("h", tomorrow).verdict is Verdict.TRUSTED
    assert cache.host("h", NOW).verdict is Verdict.STALE
    assert cache.guest(ONE, NOW).verdict is Verdict.STALE
    assert cache.ingest(token({ONE: Verdict.UNTRUSTED}, issued=NOW, sequence=6), NOW)
    assert cache.guest(ONE, NOW).verdict is Verdict.UNTRUSTED


def test_names_are_compared_letter_for_letter(cache: TrustCache) -> None:
    cache.ingest(token(host="Compute-1"), NOW)
    assert cache.host("compute-1", NOW).verdict is Verdict.UNKNOWN
    assert cache.host("Compute-1", NOW).verdict is Verdict.TRUSTED


def test_the_moment_of_expiry_is_too_late(cache: TrustCache) -> None:
    cache.ingest(token({ONE: Verdict.TRUSTED}), NOW)
    assert cache.host("h", NOW + 299).verdict is Verdict.TRUSTED
    assert cache.host("h", NOW + 300).verdict is Verdict.STALE
    assert cache.guest(ONE, NOW + 300).verdict is Verdict.STALE


def test_a_verdict_says_whose_result_it_is_and_which_kernel_was_measured() -> None:
    cache = results.cache(results.signed("h", Verdict.TRUSTED, {ONE: Verdict.TRUSTED}))
    trust = cache.guest(ONE, NOW)
    assert (trust.host, trust.release, trust.last) == ("h", "6.1.0-9", None)
    assert cache.host("h", NOW).host == "h"
    stale = cache.guest(ONE, NOW + 300)
    assert (stale.verdict, stale.last, stale.release) == (Verdict.STALE, Verdict.TRUSTED, "6.1.0-9")


def test_of_two_results_that_are_over_the_newer_one_is_the_last() -> None:
    cache = results.cache(
        results.signed("old", Verdict.TRUSTED, {ONE: Verdict.UNTRUSTED}),
        results.signed("new", Verdict.TRUSTED, {ONE: Verdict.TRUSTED}, issued=NOW + 1),
    )
    assert cache.guest(ONE, NOW + 301).last is Verdict.TRUSTED
    cache.ingest(
        results.signed(
            "decoy", Verdict.TRUSTED, {TWO: Verdict.TRUSTED, ONE: Verdict.UNKNOWN}, issued=NOW + 1
        ),
        NOW,
    )
    assert cache.guest(ONE, NOW + 301).last is Verdict.UNKNOWN


def test_neighbours_are_as_good_as_the_worst_of_them() -> None:
    cache = results.cache(
        results.signed("h", Verdict.TRUSTED, {ONE: Verdict.TRUSTED, TWO: Verdict.UNTRUSTED}),
        results.signed("empty"),
        results.signed("liar", Verdict.UNTRUSTED),
        results.signed("unsure", Verdict.UNKNOWN, {ONE: Verdict.UNTRUSTED}),
    )
    assert cache.neighbours("h", NOW).verdict is Verdict.UNTRUSTED
    assert "patched" in cache.neighbours("h", NOW).why
    assert cache.neighbours("h", NOW, ONE).verdict is Verdict.UNTRUSTED
    assert cache.neighbours("h", NOW, TWO).verdict is Verdict.TRUSTED
    assert cache.neighbours("empty", NOW, ONE).verdict is Verdict.TRUSTED
    assert cache.neighbours("liar", NOW).verdict is Verdict.UNKNOWN
    assert cache.neighbours("unsure", NOW).verdict is Verdict.UNTRUSTED
    assert cache.neighbours("unsure", NOW, ONE).verdict is Verdict.UNKNOWN
    assert cache.neighbours("nobody", NOW).verdict is Verdict.UNKNOWN
    for name in ("h", "empty"):
        assert cache.neighbours(name, NOW + 300, TWO).verdict is Verdict.STALE


def test_neighbours_follow_newer_results() -> None:
    cache = results.cache(results.signed("h", Verdict.TRUSTED, {ONE: Verdict.UNTRUSTED}))
    cache.ingest(results.signed("h", sequence=2), NOW)
    assert cache.neighbours("h", NOW).verdict is Verdict.TRUSTED
    assert not cache.guest(ONE, NOW).seen


def test_four_threads_never_see_more_trust_than_any_result_gave(cache: TrustCache) -> None:
    """Two write results of two hosts that both show a guest, one of them as altered, and two look."""
    bad, good, rounds = {ONE: Verdict.UNTRUSTED}, {ONE: Verdict.TRUSTED, TWO: Verdict.TRUSTED}, 150
    writers = [
        [token(bad, host="a", sequence=number) for number in range(1, rounds)],
        [
            token(good if number % 2 else {TWO: Verdict.TRUSTED}, host="b", sequence=number)
            for number in range(1, rounds)
        ],
    ]
    wrong: list[object] = []
    taken: list[bool] = []
    done, ready = threading.Event(), threading.Barrier(4)
    cache.ingest(token(bad, host="a", sequence=0), NOW)
    cache.ingest(token(good, host="b", sequence=0), NOW)

    def write(tokens: list[str]) -> None:
        ready.wait()
        taken.extend(cache.ingest(item, NOW) for item in tokens)

    def look() -> None:
        ready.wait()
        while not done.is_set():
            seen = (
                cache.guest(ONE, NOW).verdict, cache.guest(TWO, NOW).verdict,
                cache.neighbours("a", NOW).verdict, cache.neighbours("b", NOW, TWO).verdict,
            )  # fmt: skip
            if seen != (Verdict.UNTRUSTED, Verdict.TRUSTED, Verdict.UNTRUSTED, Verdict.TRUSTED):
                wrong.append(seen)
                return

    threads = [threading.Thread(target=write, args=(item,)) for item in writers]
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads + lookers:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in lookers:
        thread.join()
    assert wrong == []
    assert taken == [True] * 2 * (rounds - 1)
    assert cache.guest(ONE, NOW).host == "a"


def test_hosts_may_come_and_go_while_others_look(cache: TrustCache) -> None:
    """Guests that appear and leave in one thread are no surprise in another."""
    both = [token({ONE: Verdict.TRUSTED}, host="h", sequence=2 * number) for number in range(1, 100)]
    none = [token({}, host="h", sequence=2 * number + 1) for number in range(1, 100)]
    seen: set[Verdict] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(cache.guest(ONE, NOW).verdict)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    for pair in zip(both, none, strict=True):
        assert [cache.ingest(item, NOW) for item in pair] == [True, True]
    done.set()
    for thread in lookers:
        thread.join()
    assert seen <= {Verdict.TRUSTED, Verdict.UNKNOWN}
    assert not cache.guest(ONE, NOW).seen


@pytest.mark.parametrize(
    "forged", [None, 1, 1.5, True, b"a.b.c", [], {}, "", "..", "a.b.c", "é.é.é", "\ud800.a.b", "e30.e30.e30"]
)
def test_whatever_somebody_on_the_bus_sends_is_refused_in_words(cache: TrustCache, forged: Any) -> None:
    with pytest.raises(ResultError):
        cache.ingest(forged, NOW)
