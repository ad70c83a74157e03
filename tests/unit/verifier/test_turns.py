# SPDX-License-Identifier: Apache-2.0
"""When hosts are challenged: in turn, after events, on demand, and never as often as a stranger likes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.verifier.hosts import Hosts, KnownHost
from nova_vmi_attest.verifier.turns import ChallengeRefusedError, Turns

HOST = "compute-1"
NONCE = "ab" * 32
NOW = 1_800_000_000


@dataclass
class Options:
    """As [verifier] has them."""

    interval: int = 3600
    interval_jitter: int = 0
    minimum_event_interval: int = 2
    result_lifetime: int = 7200


@dataclass
class Rounds:
    """Notes which hosts are challenged; takes turns in the database as the real one does."""

    hosts: Hosts
    challenged: list[str] = field(default_factory=list)
    chosen: list[bytes] = field(default_factory=list)

    def challenge_in_turn(self, host: KnownHost, now: int) -> bool:
        if not self.hosts.claim(host, now):
            return False
        self.challenged.append(host.name)
        return True

    def challenge(self, host: str, now: int) -> bytes:
        self.hosts.challenged(host, now)
        self.challenged.append(host)
        return bytes(32)

    def challenge_with(self, host: str, nonce: bytes, now: int) -> None:
        if nonce in self.chosen:
            raise DuplicateError("open")
        self.chosen.append(nonce)


@pytest.fixture
def rounds(database: Database) -> Rounds:
    hosts = Hosts(database)
    hosts.remember(HOST, "tpm", "certificate", NOW)
    hosts.challenged(HOST, NOW)
    return Rounds(hosts)


def turns_of(rounds: Rounds) -> Turns:
    return Turns(rounds.hosts, rounds, Options())  # type: ignore[arg-type]


def look(turns: Turns, rounds: Rounds, seconds: int) -> None:
    """One look at all hosts, that many seconds after the last challenge."""
    turns.look(lambda: NOW + seconds)


def test_an_event_brings_the_next_challenge_forward_and_is_not_lost(rounds: Rounds) -> None:
    turns = turns_of(rounds)
    look(turns, rounds, 0)
    turns.soon(HOST)
    look(turns, rounds, 0)
    assert rounds.challenged == []
    look(turns, rounds, 3)
    look(turns, rounds, 30)
    assert rounds.challenged == [HOST]


def test_a_flood_of_events_is_a_challenge_each_minimum_interval(rounds: Rounds) -> None:
    turns = turns_of(rounds)
    for second in range(21):
        for _ in range(50):
            turns.soon(HOST)
        look(turns, rounds, second)
    assert len(rounds.challenged) == 10


@pytest.mark.parametrize("host", ["compute-9", "", "x" * 100_000, "a\nb", "a\0", None, 7, {"a": 1}])
def test_events_and_demands_of_strangers_are_refused(rounds: Rounds, host: Any) -> None:
    turns = turns_of(rounds)
    for ask in (lambda: turns.soon(host), lambda: turns.demand(host, "")):
        with pytest.raises(ChallengeRefusedError, match="never announced") as caught:
            ask()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
    assert rounds.challenged == []


def test_two_verifiers_send_one_challenge_for_one_event(rounds: Rounds) -> None:
    both = [turns_of(rounds), turns_of(rounds)]
    read = rounds.hosts.all()[0]
    now = NOW + 10
    for turns in both:
        turns._events_left = 1
        turns.soon(HOST)
        turns._look_after(read, now)
    assert rounds.challenged == [HOST]


def test_an_event_that_lost_its_turn_to_another_verifier_is_kept(rounds: Rounds) -> None:
    """The other one's challenge may have been before the event."""
    turns = turns_of(rounds)
    read = rounds.hosts.all()[0]
    rounds.hosts.challenged(HOST, NOW + 9)
    turns._events_left = 1
    turns.soon(HOST)
    turns._look_after(read, NOW + 10)
    assert rounds.challenged == []
    look(turns, rounds, 12)
    assert rounds.challenged == [HOST]


def test_a_demand_gives_the_nonce_and_is_rationed(rounds: Rounds) -> None:
    turns = turns_of(rounds)
    assert turns.demand(HOST, "") == bytes(32)
    assert turns.demand(HOST, NONCE) == bytes.fromhex(NONCE)
    assert rounds.chosen == [bytes.fromhex(NONCE)]
    for number in range(2):
        turns.demand(HOST, f"{number:064x}")
    for number in range(2, 10):
        with pytest.raises(ChallengeRefusedError, match="often lately"):
            turns.demand(HOST, f"{number:064x}")
    assert len(rounds.chosen) == 3


def test_a_nonce_counts_once(rounds: Rounds) -> None:
    turns = turns_of(rounds)
    turns.demand(HOST, NONCE)
    with pytest.raises(ChallengeRefusedError, match="used before"):
        turns.demand(HOST, NONCE)
    with pytest.raises(ChallengeRefusedError, match="used before"):
        turns_of(rounds).demand(HOST, NONCE)
    assert len(rounds.chosen) == 1


@pytest.mark.parametrize("nonce", ["ab", NONCE.upper(), NONCE + "00", "g" * 64, " " * 64, None, 7, "٣" * 64])
def test_a_nonce_that_is_none_is_refused_before_anything_happens(rounds: Rounds, nonce: Any) -> None:
    turns = turns_of(rounds)
    with pytest.raises(ChallengeRefusedError, match="hex digits"):
        turns.demand(HOST, nonce)
    assert rounds.challenged == []
    for _ in range(4):
        turns.demand(HOST, "")


def test_a_clock_that_was_ahead_does_not_silence_the_verifier(rounds: Rounds) -> None:
    now, turns = NOW, turns_of(rounds)
    for challenged_at, due in ((now + 86400, True), (now + 30, False), (now, False), (now - 4000, True)):
        assert turns.is_due(KnownHost(HOST, "tpm", now, challenged_at, None, ""), now) is due


def test_a_flood_of_events_asks_the_database_once(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, asked, get = turns_of(rounds), [], rounds.hosts.get
    monkeypatch.setattr(rounds.hosts, "get", lambda host: asked.append(host) or get(host))
    for _ in range(100):
        turns.soon(HOST)
    assert asked == [HOST]


def many(rounds: Rounds, count: int) -> list[str]:
    names = [f"node-{number:03}" for number in range(count)]
    for name in names:
        rounds.hosts.remember(name, "tpm", "certificate", NOW)
        rounds.hosts.challenged(name, NOW)
    return names


def test_a_flood_of_events_of_all_hosts_is_no_flood_of_challenges(rounds: Rounds) -> None:
    """One host with credentials to the bus can speak for ten thousand."""
    turns, names = turns_of(rounds), many(rounds, 60)
    for second in range(10, 16):
        for name in names:
            turns.soon(name)
        look(turns, rounds, second)
    assert len(rounds.challenged) == 60
    assert set(rounds.challenged) == set(names), "nobody waits for those with the first names"


def test_hosts_in_their_turn_wait_for_nobodys_events(rounds: Rounds) -> None:
    turns, names = turns_of(rounds), many(rounds, 30)
    for name in names:
        turns.soon(name)
    rounds.hosts.challenged(HOST, NOW)
    look(turns, rounds, 3600)
    assert set(rounds.challenged) == {HOST, *names}


def test_demands_of_all_hosts_are_bounded_together(rounds: Rounds) -> None:
    turns, names, done = turns_of(rounds), many(rounds, 60), 0
    for name in names * 4:
        try:
            turns.demand(name, "")
            done += 1
        except ChallengeRefusedError:
            continue
    assert 100 <= done < 150
