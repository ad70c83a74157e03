# SPDX-License-Identifier: Apache-2.0
"""What one scheduling request asks of every host, worked out once: there may be ten thousand of them.

Three things can be asked for: that the host is trusted, that the server itself is, and that the other servers
on the host are. The operator's options say how strictly, a flavor may say otherwise, and an image may ask for
more but never for less: a tenant owns it.
"""

from __future__ import annotations

import enum
import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from oslo_log import log

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.trust import Trust, TrustCache

LOG = log.getLogger(__name__)

HOST = "trust:host"
GUEST = "trust:guest"
NEIGHBOURS = "trust:neighbours"


class Level(enum.IntEnum):
    """How strictly something is asked for."""

    IGNORED = 0
    PREFERRED = 1
    REQUIRED = 2

    def __str__(self) -> str:
        return self.name.lower()


class Operation(enum.StrEnum):
    """Why Nova asks for a host. ``MIGRATE`` is a cold migration or a resize."""

    BUILD = "build"
    UNSHELVE = "unshelve"
    EVACUATE = "evacuate"
    REBUILD = "rebuild"
    MIGRATE = "migrate"
    LIVE_MIGRATE = "live-migrate"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Server:
    """What Nova says of the server in a request.

    ``running`` says whether the memory is still there that a result was about. ``properties`` are those of
    its image, or ``None`` when Nova could not say.
    """

    uuid: uuid.UUID | None
    operation: Operation
    running: bool
    properties: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Levels:
    """How strictly each thing is asked for."""

    host: Level
    guest: Level
    neighbours: Level

    @classmethod
    def named(cls, level_of: Callable[[str], Level]) -> Levels:
        """From a function of the name ``trust:…``."""
        return cls(level_of(HOST), level_of(GUEST), level_of(NEIGHBOURS))

    @property
    def strictest(self) -> Level:
        return max(self.host, self.guest, self.neighbours)


def parse_level(value: object, source: str, name: str) -> Level:
    """A level as an operator or a tenant wrote it. What is malformed asks for most, and is logged once."""
    level = _LEVELS.get(value) if isinstance(value, str) else None
    if level is None:
        _tell_malformed(source, name, f"{value!r:.64}")
        return Level.REQUIRED
    return level


_LEVELS = {str(level): level for level in Level}


@functools.lru_cache(maxsize=1024)
def _tell_malformed(source: str, name: str, value: str) -> None:
    LOG.warning("%s %s=%s is none of %s: taken as required", source, name, value, ", ".join(_LEVELS))


def levels(
    defaults: Mapping[str, str], extra_specs: Mapping[str, str], properties: Mapping[str, str] | None
) -> Levels:
    """The levels of one request.

    :param defaults: the operator's, by the names ``trust:…``.
    :param extra_specs: of the flavor, which may set any level.
    :param properties: of the image, which may only raise them; ``None``, when they could not be read, raises
        all of them.
    """

    def level_of(name: str) -> Level:
        if properties is None:
            return Level.REQUIRED
        if name in extra_specs:
            level = parse_level(extra_specs[name], "flavor extra spec", name)
        else:
            level = parse_level(defaults[name], "option", name)
        if name not in properties:
            return level
        return max(level, parse_level(properties[name], "image property", name))

    return Levels.named(level_of)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of every host at ``now`` (seconds since 1970).

    ``grace`` is for how many seconds an expired trusted result still counts. ``refusal`` says why no host
    will do, if so; ``note`` is added to every refusal.
    """

    trust: TrustCache
    server: Server
    levels: Levels
    now: float
    grace: int = 0
    refusal: str = ""
    note: str = ""

    def why_not(self, host: str) -> str:
        """Why the host is refused; empty when it is not."""
        if self.refusal:
            return self.refusal
        if self.levels.host is not Level.IGNORED:
            trust = self.trust.host(host, self.now)
            if trust.verdict is not Verdict.TRUSTED and not self._admits(self.levels.host, trust, host):
                return f"it is {trust.why}{self.note}"
        if self.levels.neighbours is not Level.IGNORED:
            trust = self.trust.neighbours(host, self.now, self.server.uuid)
            if trust.verdict is not Verdict.TRUSTED and not self._admits(self.levels.neighbours, trust, host):
                return f"the servers on it are {trust.why}{self.note}"
        return ""

    def score(self, host: str) -> float:
        """How well the host does in what is preferred, from 0 to 1."""
        scores = []
        if self.levels.host is Level.PREFERRED:
            scores.append(_SCORES[self._known(self.trust.host(host, self.now))])
        if self.levels.neighbours is Level.PREFERRED:
            scores.append(_SCORES[self._known(self.trust.neighbours(host, self.now, self.server.uuid))])
        return sum(scores) / len(scores) if scores else 0.0

    def _admits(self, level: Level, trust: Trust, subject: str) -> bool:
        """Whether a verdict other than trusted will do."""
        if level is Level.PREFERRED:
            # Who stops to speak after it was found untrusted gains nothing by that.
            return Verdict.UNTRUSTED not in (trust.verdict, trust.last)
        # One that has not expired is stale because our clock went back: nobody allowed that.
        graced = trust.last is Verdict.TRUSTED and trust.expires <= self.now < trust.expires + self.grace
        if graced:
            LOG.warning("%s passes with an expired result: [relying] unsafe_stale_grace allows it", subject)
        return graced

    @staticmethod
    def _known(trust: Trust) -> Verdict:
        return Verdict.UNTRUSTED if trust.last is Verdict.UNTRUSTED else trust.verdict

    def with_guest(self) -> Demand:
        """The same, refusing every host when the server itself may not move.

        A rebuild replaces the memory that a result was about where it is: what is altered can be repaired so.
        Memory that is gone cannot be measured again, so the last verdict on it stands; memory that is there
        must have been measured, and lately.
        """
        level, server = self.levels.guest, self.server
        if level is Level.IGNORED or server.operation is Operation.REBUILD or server.uuid is None:
            return self
        trust = self.trust.guest(server.uuid, self.now)
        if not server.running:
            if not trust.seen:
                return self
            if trust.last is not None:
                trust = replace(trust, verdict=trust.last, last=None)
        if trust.verdict is Verdict.TRUSTED or self._admits(level, trust, f"server {server.uuid}"):
            return self
        return replace(self, refusal=f"server {server.uuid} is {trust.why}{self.note}")


_SCORES = {Verdict.TRUSTED: 1.0, Verdict.UNKNOWN: 0.5, Verdict.STALE: 0.5, Verdict.UNTRUSTED: 0.0}
