# SPDX-License-Identifier: Apache-2.0
"""Nova's versioned notifications as hints: of each, only the id of the server is read.

Everybody with credentials to the bus can send one, or a flood of them, so they make the verifiers ask Nova's
API and nothing else. All verifiers share one pool: each notification reaches one of them, and Nova's own
consumers, such as telemetry, lose none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)

TOPIC = "versioned_notifications"
POOL = "nova-vmi-attest"
_SERVERS = r"^instance\."


class NovaEvents:
    """A background part of the verifier.

    :param exchange: on which Nova publishes.
    :param hint: is told each server; must not block.
    """

    filter_rule = oslo_messaging.NotificationFilter(event_type=_SERVERS)

    def __init__(self, conf: cfg.ConfigOpts, exchange: str, hint: Callable[[uuid.UUID], None]) -> None:
        self._conf = conf
        self._exchange = exchange
        self._hint = hint
        self._transport: Any = None
        self._listener: Any = None

    def start(self) -> None:
        """Listen; waits for the bus when it is away.

        :raises oslo_messaging.MessagingException: the transport's URL cannot be used.
        """
        self._transport = oslo_messaging.get_notification_transport(self._conf)
        target = oslo_messaging.Target(exchange=self._exchange, topic=TOPIC)
        self._listener = oslo_messaging.get_notification_listener(
            self._transport, [target], [self], pool=POOL
        )
        self._listener.start()

    def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.stop()
            self._listener.wait()
            self._transport.cleanup()
            self._listener = None

    def info(self, ctxt: object, publisher: str, event: str, payload: object, metadata: object) -> None:
        """What Nova did."""
        guest = server_of(payload)
        if guest is None:
            LOG.debug("a notification %.64r names no server", event)
        else:
            self._hint(guest)

    # A notification of something that went wrong is as good a hint as any.
    error = warn = info


def server_of(payload: object) -> uuid.UUID | None:
    """The id in a notification's payload; ``None`` for whatever is none of Nova's about a server."""
    data = payload.get("nova_object.data") if isinstance(payload, Mapping) else None
    value = data.get("uuid") if isinstance(data, Mapping) else None
    if not isinstance(value, str) or len(value) != 36:
        return None
    try:
        return uuid.UUID(value)
    except ValueError:
        return None
