# SPDX-License-Identifier: Apache-2.0
"""Challenges are signed, bounded, and closed once by an answer."""

from __future__ import annotations

import evidence_examples as examples
import pytest

from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.evidence.challenge import ChallengeError, verify_challenge
from nova_vmi_attest.verifier.challenges import Challenges, Closed, close

NOW = 1_000_000
HOST = "compute-1"
KEY = examples.key("verifier")


@pytest.fixture
def challenges(database: Database) -> Challenges:
    return Challenges(database, KEY, lifetime=60, per_host=3)


def closed(database: Database, nonces: list[bytes], now: int = NOW, host: str = HOST) -> Closed:
    with database.writer() as session:
        return close(session, host, nonces, now)


def test_a_challenge_is_signed_for_the_host_and_open(challenges: Challenges) -> None:
    token, nonce = challenges.create(HOST, 17, NOW)
    challenge, thumbprint = verify_challenge(token, [KEY.public_key()], HOST, NOW)
    assert (challenge.nonce, challenge.since, challenge.expires) == (nonce, 17, NOW + 60)
    assert thumbprint == examples.verifier_thumbprint()
    assert challenges.open_nonces(HOST, NOW) == {nonce}
    assert challenges.open_nonces("compute-2", NOW) == frozenset()


def test_an_answer_counts_once(challenges: Challenges, database: Database) -> None:
    _, nonce = challenges.create(HOST, 0, NOW)
    assert closed(database, [nonce]) is Closed.OWN
    assert closed(database, [nonce]) is Closed.NOTHING
    assert challenges.open_nonces(HOST, NOW) == frozenset()


def test_reading_the_open_nonces_closes_none(challenges: Challenges, database: Database) -> None:
    _, nonce = challenges.create(HOST, 0, NOW)
    assert challenges.open_nonces(HOST, NOW) == challenges.open_nonces(HOST, NOW) == {nonce}


def test_an_expired_challenge_is_not_open(challenges: Challenges, database: Database) -> None:
    _, nonce = challenges.create(HOST, 0, NOW)
    assert challenges.open_nonces(HOST, NOW + 61) == frozenset()
    assert closed(database, [nonce], NOW + 61) is Closed.NOTHING


def test_an_answer_closes_older_challenges_and_no_newer_one(
    challenges: Challenges, database: Database
) -> None:
    """All within one second, as when a host announces itself and is asked for at the same time."""
    _, first = challenges.create(HOST, 0, NOW)
    _, second = challenges.create(HOST, 0, NOW)
    _, third = challenges.create(HOST, 0, NOW)
    assert closed(database, [second, examples.octets("a tenant's")]) is Closed.OWN
    assert challenges.open_nonces(HOST, NOW) == {third}
    assert closed(database, [first]) is Closed.NOTHING


def test_an_answer_of_one_host_closes_nothing_of_another(challenges: Challenges, database: Database) -> None:
    _, other = challenges.create("compute-2", 0, NOW)
    assert closed(database, [other]) is Closed.NOTHING
    assert challenges.open_nonces("compute-2", NOW) == {other}


def test_challenges_are_bounded_per_host_and_expired_ones_pruned(challenges: Challenges) -> None:
    made = [challenges.create(HOST, 0, NOW)[1] for _ in range(5)]
    assert challenges.open_nonces(HOST, NOW) == set(made[2:])
    _, late = challenges.create(HOST, 0, NOW + 100)
    assert challenges.open_nonces(HOST, NOW) == {late}


def test_an_answer_to_a_chosen_nonce_alone_closes_none_of_ours(
    challenges: Challenges, database: Database
) -> None:
    """Who chose a nonce may have had the host answer it long before."""
    _, own = challenges.create(HOST, 0, NOW)
    _, chosen = challenges.create(HOST, 0, NOW, examples.octets("a tenant's"))
    assert closed(database, [chosen]) is Closed.CHOSEN
    assert challenges.open_nonces(HOST, NOW) == {own}
    assert closed(database, [chosen]) is Closed.NOTHING
    _, again = challenges.create(HOST, 0, NOW, examples.octets("another"))
    assert closed(database, [again], NOW + 61) is Closed.NOTHING
    assert closed(database, [own, again]) is Closed.OWN


def test_a_chosen_nonce_is_open_once_and_crowds_out_none_of_ours(challenges: Challenges) -> None:
    _, own = challenges.create(HOST, 0, NOW)
    chosen = [examples.octets(f"chosen {number}") for number in range(5)]
    for nonce in chosen:
        challenges.create(HOST, 0, NOW, nonce)
    assert challenges.open_nonces(HOST, NOW) == {own, *chosen[2:]}
    with pytest.raises(DuplicateError):
        challenges.create("compute-2", 0, NOW, chosen[4])
    with pytest.raises(ChallengeError):
        challenges.create(HOST, 0, NOW, b"short")


def test_a_name_that_no_host_has_is_refused(challenges: Challenges) -> None:
    with pytest.raises(ChallengeError):
        challenges.create("", 0, NOW)
