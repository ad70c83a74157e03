# SPDX-License-Identifier: Apache-2.0
"""What a relying party believes right now: the newest valid result of every host, looked up without any I/O.

A result counts because a verifier signed it, not because of who sent it. An older one never replaces a newer
one, and every one ends: a host that nobody hears of becomes stale by itself. What was never seen is unknown.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import AttestationResult, Reason, Verdict, verify_result


@dataclass(frozen=True, slots=True)
class Trust:
    """A verdict as it stands at a moment. Times are seconds since 1970; ``expires`` is 0 for what was never
    seen.

    ``host`` is whose result says so. ``release`` is a guest's kernel, empty for what was not measured and for
    hosts. ``last`` is what a result that is stale said while it held.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    expires: int = 0
    issued: int = 0
    release: str = ""
    host: str = ""
    last: Verdict | None = None

    @property
    def seen(self) -> bool:
        """Whether any result speaks of it, valid or not."""
        return self.expires != 0

    @property
    def why(self) -> str:
        """The verdict with its first reason, for a log line."""
        if self.verdict is Verdict.STALE:
            return f"stale (last {self.last})" if self.last else "stale"
        if not self.reasons:
            return self.verdict.value
        first = self.reasons[0]
        return f"{self.verdict}: {first.check} {first.symbol} {first.detail}".strip()


_NEVER_SEEN = Trust(Verdict.UNKNOWN, (Reason("never_seen", detail="no result speaks of it"),))

# Who is not trusted can leave guests out of what it shows.
_UNPROVEN = (Reason("neighbours", detail="the host that shows them is not trusted"),)

# Two hosts may show one guest: during a migration, or because one of them shows a decoy. The worst verdict
# counts.
_WORST_FIRST = {Verdict.UNTRUSTED: 0, Verdict.UNKNOWN: 1, Verdict.TRUSTED: 2}


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the newest result of one host says of it and of its guests.

    ``neighbours`` is ready for whoever asks about a guest that is not there: the worst of all that are.
    """

    sequence: int
    host: Trust
    guests: Mapping[uuid.UUID, Trust]
    neighbours: Trust


class TrustCache:
    """Thread-safe; looking up takes no lock, since what is stored is replaced as a whole and never changed.

    :param public_keys: of the verifiers whose results count.
    :param audience: that results must name.
    """

    def __init__(self, public_keys: Sequence[EllipticCurvePublicKey], audience: str) -> None:
        self._keys = tuple(public_keys)
        self._audience = audience
        self._lock = threading.Lock()
        self._shown: dict[str, _Shown] = {}
        # Of most guests, one host speaks.
        self._guests: dict[uuid.UUID, tuple[Trust, ...]] = {}

    def ingest(self, token: str, now: float) -> bool:
        """Take in a signed result.

        :param now: seconds since 1970.
        :returns: whether it replaced what was known; false for one that is older.
        :raises ResultError: when it is forged, for another audience, expired or malformed.
        """
        result = verify_result(token, self._keys, self._audience, now)
        shown = _shown(result)
        with self._lock:
            known = self._shown.get(shown.host.host)
            if known is not None and not _is_newer(shown, known, now):
                return False
            self._shown[shown.host.host] = shown
            self._place(shown, known)
            return True

    def host(self, name: str, now: float) -> Trust:
        """What is known of a host at ``now`` (seconds since 1970)."""
        shown = self._shown.get(name)
        return _NEVER_SEEN if shown is None else _at(shown.host, now)

    def guest(self, guest: uuid.UUID, now: float) -> Trust:
        """What is known of a guest at ``now``, from whichever hosts show it."""
        seen = self._guests.get(guest)
        if not seen:
            return _NEVER_SEEN
        if len(seen) == 1:
            return _at(seen[0], now)
        valid = [trust for trust in seen if _holds(trust, now)]
        if valid:
            return _worst(valid)
        newest = max(trust.issued for trust in seen)
        return _at(_worst(trust for trust in seen if trust.issued == newest), now)

    def neighbours(self, host: str, now: float, without: uuid.UUID | None = None) -> Trust:
        """The worst verdict among the guests that a host shows; trusted when there are none.

        Unknown at best where the host itself is not trusted: it may hide guests.

        :param without: a guest that does not count.
        """
        shown = self._shown.get(host)
        if shown is None:
            return _NEVER_SEEN
        if without is None or without not in shown.guests:
            return _at(shown.neighbours, now)
        others = (trust for guest, trust in shown.guests.items() if guest != without)
        return _at(_neighbours(shown.host, others), now)

    def _place(self, shown: _Shown, known: _Shown | None) -> None:
        """Bring the guests up to date that this host shows, and those that it showed until now."""
        name = shown.host.host
        gone = known.guests.keys() - shown.guests.keys() if known else ()
        for guest, trust in shown.guests.items():
            self._guests[guest] = (*_elsewhere(self._guests.get(guest, ()), name), trust)
        for guest in gone:
            elsewhere = _elsewhere(self._guests[guest], name)
            if elsewhere:
                self._guests[guest] = elsewhere
            else:
                del self._guests[guest]


def _shown(result: AttestationResult) -> _Shown:
    name, times = result.host.host, (result.expires, result.issued)
    host = Trust(result.host.verdict, result.host.reasons, *times, host=name)
    guests = {
        guest.guest: Trust(guest.verdict, guest.reasons, *times, release=sys.intern(guest.release), host=name)
        for guest in result.guests
    }
    return _Shown(result.sequence, host, guests, _neighbours(host, guests.values()))


def _neighbours(host: Trust, guests: Iterable[Trust]) -> Trust:
    """What holds for all these guests of a host together."""
    proven = host.verdict is Verdict.TRUSTED
    floor = replace(host, reasons=()) if proven else replace(host, verdict=Verdict.UNKNOWN, reasons=_UNPROVEN)
    return _worst((floor, *guests))


def _worst(trusts: Iterable[Trust]) -> Trust:
    return min(trusts, key=lambda trust: _WORST_FIRST[trust.verdict])


def _elsewhere(seen: tuple[Trust, ...], name: str) -> tuple[Trust, ...]:
    return tuple(trust for trust in seen if trust.host != name)


def _is_newer(shown: _Shown, known: _Shown, now: float) -> bool:
    """Both number and time go forward; a verifier that lost its database numbers anew once all has
    expired. What was issued in the future, by clocks that were wrong then, must not stand in the way.
    """
    if known.host.issued > now + CLOCK_SKEW:
        return True
    if known.host.expires <= now:
        return shown.host.issued > known.host.issued
    return shown.sequence > known.sequence and shown.host.issued >= known.host.issued


def _holds(trust: Trust, now: float) -> bool:
    return trust.issued - CLOCK_SKEW <= now < trust.expires


def _at(trust: Trust, now: float) -> Trust:
    return trust if _holds(trust, now) else replace(trust, verdict=Verdict.STALE, last=trust.verdict)
