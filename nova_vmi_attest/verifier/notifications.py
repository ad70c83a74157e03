# SPDX-License-Identifier: Apache-2.0
"""Tells whoever subscribes that a verdict changed, as oslo.messaging notifications.

They go out in order, at least once: after a crash, or an outage of the bus, the last ones may come again with
the same ``change``. They are hints, and not signed: everybody with credentials to the bus can send one. Who
acts on one looks at the signed result, or asks the API. Tenants have no access to the bus and use the API.
"""

from __future__ import annotations

from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.challenge import CLOCK_SKEW
from nova_vmi_attest.evidence.result import Reason
from nova_vmi_attest.records.changes import Changes, NumberedChange, Position, move

LOG = log.getLogger(__name__)

# Raise the minor version when a member is added, the major one when a member changes its meaning or goes.
PAYLOAD_VERSION = "1.0"
MAX_REASONS = 16

_READER = "notifications"
_AT_ONCE = 50
# Seconds after which a verifier that took its turn to send, and was not heard of since, is taken for dead.
_TURN = 60

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_VERDICT = {"type": "string", "enum": ["trusted", "untrusted", "unknown", "stale"]}
_REASON = {
    "type": "object",
    "additionalProperties": False,
    "required": ["check", "symbol", "offset", "length", "detail"],
    "properties": {
        "check": _TEXT,
        "symbol": _TEXT,
        "offset": {"type": "integer"},
        "length": _COUNT,
        "detail": _TEXT,
    },
}
_COMMON: dict[str, Any] = {
    "payload_version": _TEXT,
    "change": _COUNT,
    "at": _COUNT,
    "host": _TEXT,
    "verdict": _VERDICT,
    "previous": {"anyOf": [_VERDICT, {"type": "null"}]},
    "reasons": {"type": "array", "maxItems": MAX_REASONS, "items": _REASON},
    "reasons_total": _COUNT,
}
_GUEST = {**_COMMON, "guest": {"type": "string", "format": "uuid"}, "project": _TEXT}
_OUTCOME = {**_COMMON, "subject": _TEXT, "kind": _TEXT, "response": _TEXT, "outcome": _TEXT, "detail": _TEXT}


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(properties),
        "properties": properties,
    }


SCHEMAS = {
    "attestation.host.verdict.changed": _schema(_COMMON),
    "attestation.guest.verdict.changed": _schema(_GUEST),
    "attestation.host.alert": _schema(_COMMON),
    "attestation.guest.alert": _schema(_GUEST),
    "attestation.response.done": _schema(_OUTCOME),
    "attestation.response.failed": _schema(_OUTCOME),
    "attestation.response.limit_reached": _schema(_OUTCOME),
}
"""JSON schemas of the payloads by event type. Times are seconds since 1970; ``previous`` is null for a first
verdict, ``project`` empty when Nova was not asked yet; ``reasons_total`` counts those left out, too.
"""


def payload(item: NumberedChange, **more: str) -> dict[str, Any]:
    """What a notification says of a change; ``more`` is added to it."""
    change = item.change
    said = {
        "payload_version": PAYLOAD_VERSION,
        "change": item.number,
        "at": change.at,
        "host": change.host,
        "verdict": change.verdict.value,
        "previous": change.previous.value if change.previous else None,
        "reasons": [_reason(reason) for reason in change.reasons[:MAX_REASONS]],
        "reasons_total": len(change.reasons),
    }
    return {**said, **more}


class Notifier:
    """Sends notifications, as ``[oslo_messaging_notifications]`` says: with no driver there, nowhere.

    :param verifier: the name of this verifier.
    """

    def __init__(self, conf: cfg.ConfigOpts, verifier: str) -> None:
        transport = oslo_messaging.get_notification_transport(conf)
        publisher, topics = f"nova-vmi-attest-verifier.{verifier}", [messaging.NOTIFICATIONS_TOPIC]
        self._stream = oslo_messaging.Notifier(transport, publisher, topics=topics)
        # What comes besides the stream must not wait for a bus that is away.
        self._once = oslo_messaging.Notifier(transport, publisher, topics=topics, retry=1)

    def changed(self, item: NumberedChange) -> None:
        """Announce a change of a verdict; waits for the bus as long as the configuration says."""
        self._stream.info({}, f"attestation.{item.change.kind}.verdict.changed", _subject(item))

    def alert(self, item: NumberedChange) -> None:
        """Announce a change for somebody to look at."""
        self._once.error({}, f"attestation.{item.change.kind}.alert", _subject(item))

    def responded(self, item: NumberedChange, response: str, outcome: str, detail: str) -> None:
        """Announce what a response did, or why it did not."""
        change = item.change
        said = payload(
            item, subject=change.subject, kind=change.kind, response=response, outcome=outcome, detail=detail
        )
        send = self._once.info if outcome == "done" else self._once.error
        send({}, f"attestation.response.{outcome}", said)


class Notifications:
    """Sends each change once, whichever verifier recorded it. One verifier sends at a time: it holds a turn,
    which another takes over when it is not renewed.
    """

    def __init__(self, database: Database, notifier: Notifier) -> None:
        self._database = database
        self._changes = Changes(database)
        self._notifier = notifier
        self._held: Position | None = None

    def send(self, now: int) -> int:
        """Send what is new, a bounded number of changes; how many.

        :raises DatabaseError: when the database refuses.
        """
        read = self._changes.position(_READER)
        if read != self._held and not _is_abandoned(read, now):
            self._held = None
            return 0
        # The turn is taken before anything is sent, and what was sent is noted after it.
        self._held = self._move(read, read.number, now)
        if self._held is None:
            return 0
        items = self._changes.after(read.number, _AT_ONCE)
        for item in items:
            self._notifier.changed(item)
        if items:
            self._held = self._move(self._held, items[-1].number, now)
        return len(items)

    def _move(self, read: Position, number: int, now: int) -> Position | None:
        """Where the turn is then; ``None`` when another verifier took it.

        Two of them that read the same row at the same second write different moments, so one sees the other.
        """
        moment = now if now != read.updated else now + 1
        with self._database.writer() as session:
            return Position(number, moment) if move(session, _READER, read, number, moment) else None


def _is_abandoned(read: Position, now: int) -> bool:
    """Whether nobody renewed the turn lately. One from the future is of a clock that was put right since."""
    return not -CLOCK_SKEW <= now - read.updated < _TURN


def _subject(item: NumberedChange) -> dict[str, Any]:
    if item.change.kind == "guest":
        return payload(item, guest=item.change.subject, project=item.project)
    return payload(item)


def _reason(reason: Reason) -> dict[str, Any]:
    return {
        "check": reason.check,
        "symbol": reason.symbol,
        "offset": reason.offset,
        "length": reason.length,
        "detail": reason.detail,
    }
