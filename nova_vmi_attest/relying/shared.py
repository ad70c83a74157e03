# SPDX-License-Identifier: Apache-2.0
"""What the plugins in one of Nova's processes share: one cache of results, and one listener that fills it."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.keys import KeyFileError
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.trust import TrustCache

LOG = log.getLogger(__name__)


class SharedTrust:
    """The trust cache of this process, made from Nova's configuration when it is needed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[int, TrustCache] | None = None

    def get(self, conf: cfg.ConfigOpts, program: str = "nova") -> TrustCache:
        """The cache, with a listener that fills it in the background.

        Without usable keys it stays empty, so that every host is unknown; the log says so. A process that was
        forked begins anew: threads do not follow.

        :param program: by which the listener is named on the bus, with the name of this machine.
        """
        made, process = self._made, os.getpid()
        if made is None or made[0] != process:
            with self._lock:
                if self._made is None or self._made[0] != process:
                    self._made = (process, _listen(conf, program))
                made = self._made
        return made[1]


SHARED = SharedTrust()


def _listen(conf: cfg.ConfigOpts, program: str) -> TrustCache:
    register_group(conf, options.GROUP, options.OPTIONS)
    group = conf.relying
    try:
        public_keys = keys.load_public_keys([Path(group.verifier_keys)])
    except KeyFileError as error:
        LOG.error("no host can be trusted: %s ([relying] verifier_keys)", error)
        return TrustCache((), group.audience)
    cache = TrustCache(public_keys, group.audience)
    transport = oslo_messaging.get_rpc_transport(conf, url=group.transport_url)
    ResultListener(transport, cache, f"{program}.{socket.gethostname()}").start()
    return cache
