# SPDX-License-Identifier: Apache-2.0
"""When a host is challenged: in its turn, soon after something happened on it, and when somebody asks for it.

One thread looks at all known hosts. Of several verifiers the one that moves the host's ``challenged_at``
sends the challenge, so they share the work. Whoever is on the bus can say that something happened: that
brings the next challenge of a known host forward, and never closer to the last one than the minimum. What is
asked for out of turn is bounded for all hosts together, too: beyond that they wait for their turn.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

import oslo_messaging
from oslo_log import log

from nova_vmi_attest.db.session import DuplicateError
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW, NONCE_SIZE
from nova_vmi_attest.tpm.ak_certificate import is_host_name
from nova_vmi_attest.verifier.hosts import Hosts, KnownHost
from nova_vmi_attest.verifier.rate import Ration
from nova_vmi_attest.verifier.rounds import Rounds

LOG = log.getLogger(__name__)

# Seconds between two looks at which hosts are due.
TICK = 0.5
# Challenges on demand of one host that may follow each other at once, and seconds until one more may.
_DEMANDS, _DEMAND_EVERY = 4, 5.0
# The same for all hosts together.
_ALL_DEMANDS, _ANY_DEMAND_EVERY = 100, 0.1
# Challenges after events in one look: as many as this, or as twice the share of all hosts that is due in it.
_EVENTS = 10
# How many chosen nonces are remembered.
_REMEMBERED = 4096


class ChallengeRefusedError(AttestError):
    """A host is not challenged as somebody asked for."""


class TurnOptions(Protocol):
    """The options in ``[verifier]``, as configuration gives them; all in seconds but the percentage."""

    interval: int
    interval_jitter: int
    minimum_event_interval: int
    result_lifetime: int


class Turns:
    """A background part of the verifier; :meth:`soon` and :meth:`demand` are safe from any thread."""

    def __init__(self, hosts: Hosts, rounds: Rounds, options: TurnOptions) -> None:
        self._hosts = hosts
        self._rounds = rounds
        self._options = options
        self._demands = Ration(_DEMANDS, _DEMAND_EVERY)
        self._all_demands = Ration(_ALL_DEMANDS, _ANY_DEMAND_EVERY)
        self._events_left = 0
        self._lock = threading.Lock()
        self._soon: set[str] = set()
        self._nonces: dict[bytes, None] = {}
        self._late: set[str] = set()
        self._first_seen: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="challenges", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the challenge that is under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(30)

    def soon(self, host: str) -> None:
        """Something happened on a host: challenge it as soon as it may be.

        :raises ChallengeRefusedError: it is not one that announced itself.
        :raises DatabaseError: when the database refuses.
        """
        with self._lock:
            # A flood costs no more than this.
            if isinstance(host, str) and host in self._soon:
                return
        self._require_known(host)
        with self._lock:
            self._soon.add(host)

    def demand(self, host: str, nonce: str) -> bytes:
        """Challenge a host now.

        :param nonce: 64 hex digits that the caller chose, or empty for one of ours.
        :returns: the nonce.
        :raises ChallengeRefusedError: for an unknown host, a nonce that is malformed or was used before, or
            when the host is challenged too often.
        :raises AttestError: when nothing can be stored.
        """
        self._require_known(host)
        chosen = _nonce(nonce)
        if not self._demands.take(host) or not self._all_demands.take(""):
            raise ChallengeRefusedError(
                f"host {host} was challenged often lately", "wait some seconds, or use its newest result"
            )
        try:
            if chosen is None:
                return self._rounds.challenge(host, int(time.time()))
            self._remember(chosen)
            self._rounds.challenge_with(host, chosen, int(time.time()))
        except DuplicateError as error:
            raise _used() from error
        except oslo_messaging.MessagingException as error:
            raise ChallengeRefusedError(f"host {host} cannot be reached: {error}", "try again") from error
        return chosen

    def _require_known(self, host: str) -> None:
        if not isinstance(host, str) or not is_host_name(host) or self._hosts.get(host) is None:
            raise ChallengeRefusedError(
                f"host {host!r:.253} never announced itself", "start nova-vmi-attest-agent on it"
            )

    def _remember(self, nonce: bytes) -> None:
        """Refuse a chosen nonce that was chosen before, as far as this verifier remembers. One that it has
        forgotten does no harm: an answer given before does not continue the host's log any more.
        """
        with self._lock:
            if nonce in self._nonces:
                raise _used()
            self._nonces[nonce] = None
            if len(self._nonces) > _REMEMBERED:
                del self._nonces[next(iter(self._nonces))]

    def _run(self) -> None:
        while not self._stopped.wait(TICK):
            try:
                self.look(time.time)
            except AttestError as error:
                LOG.error("the known hosts cannot be read: %s", error)
            except Exception:
                LOG.exception("challenging failed unexpectedly")

    def look(self, clock: Callable[[], float]) -> None:
        """Look after all known hosts once.

        :param clock: seconds since 1970.
        :raises DatabaseError: when the database refuses.
        """
        # Who was challenged longest ago comes first: a flood of events of some hosts delays no others.
        hosts = sorted(self._hosts.all(), key=lambda host: host.challenged_at or 0)
        self._events_left = max(_EVENTS, int(2 * len(hosts) * TICK / self._options.interval))
        for host in hosts:
            self._look_after(host, int(clock()))

    def _look_after(self, host: KnownHost, now: int) -> None:
        """Watch one host and challenge it when it is due. What goes wrong with it is no matter of the
        others.
        """
        try:
            self._watch(host, now)
            with self._lock:
                wanted = host.name in self._soon
            if not self.is_due(host, now):
                if self._events_left <= 0 or not self.is_due(host, now, wanted):
                    return
                self._events_left -= 1
            # Before the challenge: what happens from now on may be too late for its answer.
            with self._lock:
                self._soon.discard(host.name)
            if not self._rounds.challenge_in_turn(host, now) and wanted:
                with self._lock:
                    self._soon.add(host.name)
        except (AttestError, oslo_messaging.MessagingException) as error:
            LOG.error("host %s cannot be challenged: %s", host.name, error)

    def is_due(self, host: KnownHost, now: int, wanted: bool = False) -> bool:
        """Whether a host is to be challenged: the interval, and a delay that spreads the hosts out.

        The delay is drawn anew for each turn, but every verifier and every look draws the same.

        :param wanted: whether something happened on it since its last challenge.
        """
        if host.challenged_at is None:
            return True
        options = self._options
        passed = now - host.challenged_at
        if wanted and passed >= options.minimum_event_interval:
            return True
        seed = hashlib.sha256(f"{host.challenged_at} {host.name}".encode()).digest()
        spread = options.interval * options.interval_jitter // 100
        delay = int.from_bytes(seed[:4], "big") % (spread + 1)
        # A clock that was ahead and was put right must not silence us for as long as it was ahead.
        return bool(passed >= options.interval + delay or passed < -CLOCK_SKEW)

    def _watch(self, host: KnownHost, now: int) -> None:
        """Say once when a host has not answered for so long that its result is stale, and once when it
        does.
        """
        last = host.answered_at or self._first_seen.setdefault(host.name, now)
        late = now - last > self._options.result_lifetime
        if late and host.name not in self._late:
            self._late.add(host.name)
            LOG.error(
                "host %s has not answered for %d s, its guests are stale: %s",
                host.name, now - last, host.last_error or "look at its agent's log",
            )  # fmt: skip
        elif not late and host.name in self._late:
            self._late.discard(host.name)
            LOG.info("host %s answers again", host.name)


def _nonce(text: str) -> bytes | None:
    if text == "":
        return None
    # One spelling of each nonce, or what was used before could be spelt in another way.
    if isinstance(text, str) and len(text) == 2 * NONCE_SIZE and set(text) <= set("0123456789abcdef"):
        return bytes.fromhex(text)
    raise ChallengeRefusedError(f"a nonce is {2 * NONCE_SIZE} lowercase hex digits", "choose them at random")


def _used() -> ChallengeRefusedError:
    return ChallengeRefusedError("this nonce was used before", "choose another one at random")
