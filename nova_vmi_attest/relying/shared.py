# SPDX-License-Identifier: Apache-2.0
"""What the plugins in one of Nova's processes share: one cache of results, and one listener that fills it."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.keys import KeyFileError
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.refusals import Refusal, RefusalReporter
from nova_vmi_attest.relying.trust import TrustCache

LOG = log.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one process has since ``begun`` (monotonic); it listens to nobody without usable keys."""

    process: int
    begun: float
    cache: TrustCache
    listener: ResultListener | None = None
    reporter: RefusalReporter | None = None


class SharedTrust:
    """The trust cache of this process, made from Nova's configuration when it is needed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: _Parts | None = None

    def get(self, conf: cfg.ConfigOpts, program: str = "nova", patience: float = 0.0) -> TrustCache:
        """The cache, with a listener that fills it in the background.

        Without usable keys it stays empty, so that every host is unknown; the log says so. A process that was
        forked begins anew: threads do not follow.

        :param program: by which the listener is named on the bus, with the name of this machine.
        :param patience: seconds since its start for which a caller waits until the cache is filled.
        """
        parts = self._get(conf, program)
        if parts.listener is not None:
            parts.listener.wait_filled(parts.begun + patience - time.monotonic())
        return parts.cache

    def report(self, conf: cfg.ConfigOpts, refusal: Refusal) -> None:
        """Tell the verifiers of hosts that were refused, without waiting for them."""
        reporter = self._get(conf, "nova").reporter
        if reporter is not None:
            reporter.put(refusal)

    def _get(self, conf: cfg.ConfigOpts, program: str) -> _Parts:
        parts, process = self._parts, os.getpid()
        if parts is None or parts.process != process:
            with self._lock:
                if self._parts is None or self._parts.process != process:
                    self._parts = _start(conf, program, process)
                parts = self._parts
        return parts


SHARED = SharedTrust()


def _start(conf: cfg.ConfigOpts, program: str, process: int) -> _Parts:
    register_group(conf, options.GROUP, options.OPTIONS)
    group = conf.relying
    try:
        public_keys = keys.load_public_keys([Path(group.verifier_keys)])
    except KeyFileError as error:
        LOG.error("no host can be trusted: %s ([relying] verifier_keys)", error)
        return _Parts(process, time.monotonic(), TrustCache((), group.audience))
    cache = TrustCache(public_keys, group.audience)
    transport = oslo_messaging.get_rpc_transport(conf, url=group.transport_url)
    listener = ResultListener(transport, cache, f"{program}.{socket.gethostname()}")
    listener.start()
    reporter = RefusalReporter(transport)
    reporter.start()
    return _Parts(process, time.monotonic(), cache, listener, reporter)
