# SPDX-License-Identifier: Apache-2.0
"""The challenges that wait for the next round.

Anybody on the bus can send one, so only those that a configured verifier signed for this host, that are
fresh, and whose nonce was not seen before, are kept; and never more than a bounded number of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import Challenge, verify_challenge

# How many challenges wait at most; one verifier has one open at a time.
_WAITING = 64

# How many nonces are remembered, beyond which the oldest are expired anyway.
_REMEMBERED = 4096


class ChallengeRefusedError(AttestError):
    """A challenge that is replayed, or one too many."""


class ChallengeQueue:
    """Thread-safe. ``keys`` are the public keys of the verifiers."""

    def __init__(self, host: str, keys: Sequence[EllipticCurvePublicKey]) -> None:
        self._host = host
        self._keys = keys
        self._condition = threading.Condition()
        self._waiting: dict[bytes, list[Challenge]] = {}
        self._seen: dict[bytes, int] = {}

    def offer(self, token: str, now: int) -> None:
        """Keep a challenge for the next round.

        :param now: seconds since the epoch.
        :raises ChallengeError: not signed by a verifier, not for this host, expired, or malformed.
        :raises ChallengeRefusedError: replayed, or too many wait already.
        """
        challenge, thumbprint = verify_challenge(token, self._keys, self._host, now)
        with self._condition:
            self._seen = {nonce: expires for nonce, expires in self._seen.items() if expires >= now}
            if challenge.nonce in self._seen:
                raise ChallengeRefusedError(f"challenge {challenge.nonce.hex()[:16]} was received before")
            if sum(map(len, self._waiting.values())) >= _WAITING or len(self._seen) >= _REMEMBERED:
                raise ChallengeRefusedError("too many challenges wait for an answer")
            self._seen[challenge.nonce] = challenge.expires
            self._waiting.setdefault(thumbprint, []).append(challenge)
            self._condition.notify_all()

    def take(self, timeout: float, now: int) -> dict[bytes, tuple[Challenge, ...]]:
        """All waiting challenges by the verifier's thumbprint; empty when none came within ``timeout``
        seconds.

        Those that expired while they waited are left out: nobody listens for their answer any more.
        """
        with self._condition:
            if not self._waiting:
                self._condition.wait(timeout)
            waiting, self._waiting = self._waiting, {}
        fresh = {key: tuple(item for item in items if item.expires >= now) for key, items in waiting.items()}
        return {key: items for key, items in fresh.items() if items}

    def wake(self) -> None:
        """Let a waiting :meth:`take` return at once."""
        with self._condition:
            self._condition.notify_all()
