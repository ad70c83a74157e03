# SPDX-License-Identifier: Apache-2.0
"""Tells the verifiers which hosts a scheduler refused, and why: Nova itself only says "No valid host".

The scheduler never waits for it. What cannot be sent is dropped and counted; its own log has it all the same.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import oslo_messaging
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.evidence.challenge import MAX_HOST

LOG = log.getLogger(__name__)

# Hosts named in one message, characters of a reason, messages that wait.
MAX_HOSTS = 64
MAX_REASON = 256
_MAX_WAITING = 256


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request for which hosts were refused.

    ``at`` is in seconds since 1970; ``hosts`` are pairs of a name and a reason, in the scheduler's order.
    """

    at: int
    server: str
    project: str
    request: str
    level: str
    hosts: Sequence[tuple[str, str]]

    def message(self) -> dict[str, Any]:
        """As it travels: see :meth:`nova_vmi_attest.messaging.VerifierEndpoint.refused`."""
        return {
            "at": self.at,
            "server": self.server,
            "project": self.project[:64],
            "request": self.request[:64],
            "level": self.level,
            "total": len(self.hosts),
            "hosts": [
                {"host": host[:MAX_HOST], "reason": reason[:MAX_REASON]}
                for host, reason in self.hosts[:MAX_HOSTS]
            ],
        }


class RefusalReporter:
    """Sends refusals in the background, in order."""

    def __init__(self, transport: oslo_messaging.Transport) -> None:
        self._verifiers = messaging.VerifierClient(transport)
        self._waiting: queue.Queue[Mapping[str, Any]] = queue.Queue(_MAX_WAITING)
        self._dropped = 0

    def start(self) -> None:
        """Begin to send what is put."""
        threading.Thread(target=self._run, name="vmi-attest-refusals", daemon=True).start()

    def put(self, refusal: Refusal) -> None:
        """Have a refusal sent. Returns at once, whether the bus can be reached or not."""
        try:
            self._waiting.put_nowait(refusal.message())
        except queue.Full:
            self._drop("too many are waiting: is the bus away?")

    def _run(self) -> None:
        while True:
            message = self._waiting.get()
            try:
                self._verifiers.refused(message)
            except oslo_messaging.MessagingException as error:
                self._drop(str(error))
                continue
            except Exception:
                LOG.exception("a refusal could not be sent")
                continue
            dropped, self._dropped = self._dropped, 0
            if dropped:
                LOG.warning("%d refusals did not reach the verifiers: see the log before this line", dropped)

    def _drop(self, why: str) -> None:
        self._dropped += 1
        if self._dropped == 1:
            LOG.warning("refusals do not reach the verifiers: %s", why)
