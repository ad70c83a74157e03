# SPDX-License-Identifier: Apache-2.0
"""What a relying party believes right now: the newest valid result of every host, looked up without any I/O.

A result counts because a verifier signed it, not because of who sent it. An older one never replaces a newer
one, and every one ends: a host that nobody hears of becomes stale by itself. What was never seen is unknown.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import AttestationResult, Reason, Verdict, verify_result


@dataclass(frozen=True, slots=True)
class Trust:
    """A verdict as it stands at a moment. Times are seconds since 1970; ``expires`` is 0 for what was never
    seen.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    expires: int = 0
    issued: int = 0

    @property
    def seen(self) -> bool:
        """Whether any result speaks of it, valid or not."""
        return self.expires != 0

    @property
    def why(self) -> str:
        """The verdict with its first reason, for a log line."""
        if not self.reasons or self.verdict is Verdict.STALE:
            return self.verdict.value
        first = self.reasons[0]
        return f"{self.verdict}: {first.check} {first.symbol} {first.detail}".strip()


_NEVER_SEEN = Trust(Verdict.UNKNOWN, (Reason("never_seen", detail="no result speaks of it"),))

# Two hosts may show one guest: during a migration, or because one of them shows a decoy. The worst verdict
# counts.
_WORST_FIRST = (Verdict.UNTRUSTED, Verdict.UNKNOWN, Verdict.TRUSTED)


class TrustCache:
    """Thread-safe; looking up takes no lock, since what is stored is replaced as a whole and never changed.

    :param public_keys: of the verifiers whose results count.
    :param audience: that results must name.
    """

    def __init__(self, public_keys: Sequence[EllipticCurvePublicKey], audience: str) -> None:
        self._keys = tuple(public_keys)
        self._audience = audience
        self._lock = threading.Lock()
        self._results: dict[str, AttestationResult] = {}
        self._hosts: dict[str, Trust] = {}
        self._guests: dict[uuid.UUID, Mapping[str, Trust]] = {}

    def ingest(self, token: str, now: float) -> bool:
        """Take in a signed result.

        :param now: seconds since 1970.
        :returns: whether it replaced what was known; false for one that is older.
        :raises ResultError: when it is forged, for another audience, expired or malformed.
        """
        result = verify_result(token, self._keys, self._audience, now)
        name = result.host.host
        with self._lock:
            known = self._results.get(name)
            if known is not None and not _is_newer(result, known, now):
                return False
            self._results[name] = result
            self._hosts[name] = Trust(result.host.verdict, result.host.reasons, result.expires, result.issued)
            self._place(name, result, known)
            return True

    def host(self, name: str, now: float) -> Trust:
        """What is known of a host at ``now`` (seconds since 1970)."""
        trust = self._hosts.get(name)
        return _NEVER_SEEN if trust is None else _at(trust, now)

    def guest(self, guest: uuid.UUID, now: float) -> Trust:
        """What is known of a guest at ``now``: the worst of the results that are valid, else stale."""
        seen = self._guests.get(guest)
        if seen is None:
            return _NEVER_SEEN
        valid = [trust for trust in seen.values() if _holds(trust, now)]
        if not valid:
            return _at(max(seen.values(), key=lambda trust: trust.expires), now)
        return min(valid, key=lambda trust: _WORST_FIRST.index(trust.verdict))

    def _place(self, name: str, result: AttestationResult, known: AttestationResult | None) -> None:
        """Bring the guests up to date that this host shows, and those that it showed until now."""
        shown = {
            guest.guest: Trust(guest.verdict, guest.reasons, result.expires, result.issued)
            for guest in result.guests
        }
        gone = {guest.guest for guest in known.guests} - shown.keys() if known else set()
        for guest, trust in shown.items():
            self._guests[guest] = {**self._guests.get(guest, {}), name: trust}
        for guest in gone:
            elsewhere = {host: trust for host, trust in self._guests[guest].items() if host != name}
            if elsewhere:
                self._guests[guest] = elsewhere
            else:
                del self._guests[guest]


def _is_newer(result: AttestationResult, known: AttestationResult, now: float) -> bool:
    """Both number and time go forward; a verifier that lost its database numbers anew once all has
    expired. What was issued in the future, by clocks that were wrong then, must not stand in the way.
    """
    if known.issued > now + CLOCK_SKEW:
        return True
    if known.expires <= now:
        return result.issued > known.issued
    return result.sequence > known.sequence and result.issued >= known.issued


def _holds(trust: Trust, now: float) -> bool:
    return trust.issued - CLOCK_SKEW <= now < trust.expires


def _at(trust: Trust, now: float) -> Trust:
    return trust if _holds(trust, now) else replace(trust, verdict=Verdict.STALE)
