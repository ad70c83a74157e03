# SPDX-License-Identifier: Apache-2.0
"""The queue of challenges: who may put one in, and how many."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.attester import challenges as module
from nova_vmi_attest.attester.challenges import ChallengeQueue, ChallengeRefusedError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.challenge import Challenge, ChallengeError, sign_challenge

NOW = 1_800_000_000
KEY, OTHER, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))


def queue() -> ChallengeQueue:
    return ChallengeQueue("compute-1", [KEY.public_key(), OTHER.public_key()])


def token(
    number: int = 0, key: ec.EllipticCurvePrivateKey = KEY, host: str = "compute-1", expires: int = NOW + 60
) -> str:
    return sign_challenge(Challenge(host, number.to_bytes(32, "big"), 0, NOW - 1, expires), key)


def test_challenges_are_grouped_by_verifier() -> None:
    waiting = queue()
    for number, key in enumerate((KEY, KEY, OTHER)):
        waiting.offer(token(number, key), NOW)
    taken = waiting.take(0, NOW)
    assert {name: len(items) for name, items in taken.items()} == {
        keys.thumbprint(KEY.public_key()): 2,
        keys.thumbprint(OTHER.public_key()): 1,
    }
    assert waiting.take(0, NOW) == {}


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(token(key=STRANGER), id="signed by a stranger"),
        pytest.param(token(host="compute-2"), id="for another host"),
        pytest.param(token(expires=NOW - 1 + 1)[:-4] + "AAAA", id="altered"),
        pytest.param("", id="empty"),
    ],
)
def test_a_forged_challenge_is_dropped(forged: str) -> None:
    waiting = queue()
    with pytest.raises(ChallengeError):
        waiting.offer(forged, NOW)
    assert waiting.take(0, NOW) == {}


def test_an_expired_challenge_is_dropped() -> None:
    with pytest.raises(ChallengeError):
        queue().offer(token(expires=NOW + 1), NOW + 2)


def test_a_replayed_challenge_is_refused_even_after_it_was_answered() -> None:
    waiting = queue()
    waiting.offer(token(), NOW)
    waiting.take(0, NOW)
    with pytest.raises(ChallengeRefusedError):
        waiting.offer(token(), NOW + 1)


def test_a_challenge_that_expired_while_it_waited_is_left_out() -> None:
    waiting = queue()
    waiting.offer(token(expires=NOW + 5), NOW)
    assert waiting.take(0, NOW + 6) == {}


def test_no_more_than_a_bounded_number_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 3)
    waiting = queue()
    for number in range(3):
        waiting.offer(token(number), NOW)
    with pytest.raises(ChallengeRefusedError):
        waiting.offer(token(3), NOW)
    assert sum(map(len, waiting.take(0, NOW).values())) == 3
