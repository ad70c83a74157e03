# SPDX-License-Identifier: Apache-2.0
"""A notification driver in nova-compute: tells the local agent that something was done with an instance.

Enable it in nova.conf of the compute hosts, beside the driver that is there::

    [oslo_messaging_notifications]
    driver = messagingv2
    driver = vmi_attest

It never delays Nova and never fails it: a hint is one datagram that is sent or dropped at once. A dropped
hint costs nothing, since the agent follows libvirt's events, too. Other services of Nova load the driver as
well if they read the same file; it passes on what nova-compute says, and nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_messaging.notify import notifier

from nova_vmi_attest.conf import opts, relying

LOG = log.getLogger(__name__)

# Seconds between two messages in Nova's log about an agent that is away.
_QUIET = 600.0

# Octets of a hint; the agent takes no longer ones.
_MAX_BYTES = 4096

# Who speaks, in versioned and in unversioned notifications, before the host's name.
_PUBLISHERS = frozenset({"nova-compute", "compute"})
_EVENTS = ("instance.", "compute.instance.")


def hint(message: object) -> bytes | None:
    """The datagram for a notification; None when it is not about an instance on nova-compute's host.

    An instance is named by ``instance_id`` in unversioned payloads and by ``uuid`` in versioned ones.
    """
    if not isinstance(message, Mapping):
        return None
    publisher, event, payload = (message.get(key) for key in ("publisher_id", "event_type", "payload"))
    if not isinstance(publisher, str) or publisher.partition(".")[0].partition(":")[0] not in _PUBLISHERS:
        return None
    if not isinstance(event, str) or not event.startswith(_EVENTS) or not isinstance(payload, Mapping):
        return None
    versioned = payload.get("nova_object.data")
    instance = versioned.get("uuid") if isinstance(versioned, Mapping) else payload.get("instance_id")
    if not isinstance(instance, str):
        return None
    try:
        guest = uuid.UUID(instance)
    except ValueError:
        return None
    data = json.dumps({"event": event, "instance": str(guest)}).encode()
    return data if len(data) <= _MAX_BYTES else None


class LifecycleDriver(notifier.Driver):  # type: ignore[misc]
    """Loaded by oslo.messaging by the name ``vmi_attest``; ``conf`` is that of the service which loads it."""

    def __init__(self, conf: cfg.ConfigOpts, topics: list[str], transport: Any) -> None:
        super().__init__(conf, topics, transport)
        opts.register_group(conf, relying.GROUP, relying.OPTIONS)
        self._own: tuple[int, socket.socket] | None = None
        self._complained = -_QUIET

    def notify(self, ctxt: Any, message: Any, priority: str, retry: int | None) -> None:
        """Pass a notification on as a hint. Returns at once and raises nothing."""
        try:
            data = hint(message)
            path = self.conf.relying.hint_socket
            if data is not None and path:
                self._own_socket().sendto(data, path)
        except OSError as error:
            if self._may_complain():
                LOG.warning("no agent takes hints at %s: %s", path, error.strerror or error)
        except Exception:  # the edge towards Nova, which must go on whatever happens here
            if self._may_complain():
                LOG.exception("an instance event was not passed on to the agent")

    def _own_socket(self) -> socket.socket:
        """A socket of this process, which shares none with the one that it was forked from.

        Without a lock, which a fork could leave locked for good; of two threads that make one, the last wins.
        """
        own = self._own
        if own is None or own[0] != os.getpid():
            own = self._own = (os.getpid(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            own[1].setblocking(False)
        return own[1]

    def _may_complain(self) -> bool:
        """Whether it is time to say that hints are lost: notifications come by the thousand."""
        now = time.monotonic()
        due = now - self._complained >= _QUIET
        if due:
            self._complained = now
        return due
