# SPDX-License-Identifier: Apache-2.0
"""What follows from results, and must not hold up appraisal: overrides, staleness, notifications, responses.

Three threads: one for what goes to the bus and may have to wait for it, one for responses, which may wait for
Nova, and one for everything else: an operator's word must count while Nova hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.db.session import BusyError, Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.verifier.notifications import Notifications, Notifier
from nova_vmi_attest.verifier.responses.base import Nova, Tools
from nova_vmi_attest.verifier.responses.plugins import Plugins
from nova_vmi_attest.verifier.responses.runner import Runner
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.staleness import Staleness
from nova_vmi_attest.verifier.vouching import Vouching

LOG = log.getLogger(__name__)

# Seconds between two looks.
_TICK = 1.0
_LONGEST_STOP = 10


class Aftermath:
    """Starts and stops the threads.

    :param nova: for responses that need it; ``None`` where ``[openstack]`` is not filled in.
    :raises ResponseError: ``[responses]`` cannot be used.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport,
        database: Database,
        results: Results,
        nova: Nova | None = None,
    ) -> None:
        options = conf.verifier
        self._publisher = messaging.ResultsClient(transport)
        notifier = Notifier(conf, options.host)
        self._notifications = Notifications(database, notifier)
        self._vouching = Vouching(database, results, options.result_lifetime, self._publish)
        self._staleness = Staleness(database, options.result_lifetime, time.monotonic())
        plugins = Plugins(conf, Tools(nova, notifier))
        self._runner = Runner(conf, database, plugins, notifier, self._is_settled)
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        self._stopped.clear()
        steps = (
            ("aftermath", self._follow), ("responses", self._respond), ("notifications", self._notify),
        )  # fmt: skip
        for name, step in steps:
            thread = threading.Thread(target=self._repeat, args=(name, step), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End, without waiting long for a response or for the bus: others repeat what was cut off."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_LONGEST_STOP)
        self._threads.clear()

    def _follow(self) -> None:
        now = int(time.time())
        self._vouching.look(now)
        for host in self._staleness.look(now, time.monotonic()):
            LOG.warning("host %s is stale: its last result ended", host)

    def _respond(self) -> None:
        self._runner.run_once(self._stopped.is_set)

    def _notify(self) -> None:
        while self._notifications.send(int(time.time())) and not self._stopped.is_set():
            pass

    def _repeat(self, name: str, step: Callable[[], None]) -> None:
        while not self._stopped.wait(_TICK):
            try:
                step()
            except BusyError as error:
                LOG.debug("%s: once more: %s", name, error)
            except AttestError as error:
                LOG.error("%s: %s", name, error)
            except Exception:
                LOG.exception("%s failed unexpectedly", name)

    def _publish(self, host: str, token: str) -> None:
        try:
            self._publisher.result(token)
        except oslo_messaging.MessagingException as error:
            LOG.warning("the result of host %s is stored but was not published: %s", host, error)

    def _is_settled(self) -> bool:
        return self._staleness.is_settled(time.monotonic())
