# SPDX-License-Identifier: Apache-2.0
"""A filter for nova-scheduler: only trusted hosts take servers, and only trusted servers move.

Enable it in nova.conf with ``[filter_scheduler] available_filters``, naming
``nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter`` beside Nova's own, and ``enabled_filters``.
It looks verdicts up in memory, and a host of which nothing is known is refused like one that is untrusted.

The scheduler sees no image properties beyond those that Nova knows, so only flavors can ask for other levels:
``trust:host`` and ``trust:guest`` with ``required``, ``preferred`` or ``ignored``.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import nova.conf
import oslo_messaging
from nova.scheduler import filters, utils
from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.keys import KeyFileError
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.trust import Trust, TrustCache

LOG = log.getLogger(__name__)

HOST_SPEC = "trust:host"
GUEST_SPEC = "trust:guest"


class SharedTrust:
    """The trust cache of this process, made from Nova's configuration when it is needed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: TrustCache | None = None

    def get(self, conf: cfg.ConfigOpts) -> TrustCache:
        """The cache, with a listener that fills it in the background.

        Without usable keys it stays empty, so that every host is unknown; the log says so.
        """
        cache = self._cache
        if cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = _listen(conf)
                cache = self._cache
        return cache


SHARED = SharedTrust()


class VMIAttestationFilter(filters.BaseHostFilter):  # type: ignore[misc]
    """Passes trusted hosts, and no host at all for a server that is not trusted where it runs now."""

    # A rebuild with a new image runs on the host where the server is: it must be trusted still.
    RUN_ON_REBUILD = True

    def __init__(self, shared: SharedTrust = SHARED) -> None:
        super().__init__()
        self._shared = shared
        register_group(nova.conf.CONF, options.GROUP, options.OPTIONS)

    def host_passes(self, host_state: Any, spec_obj: Any) -> bool:
        """Whether the host may take the server. Never raises: what goes wrong here refuses the host."""
        try:
            refusal = self._refusal(host_state.host, spec_obj, time.time())
        except Exception:
            LOG.exception("host %s is refused: its trust could not be looked up", host_state)
            return False
        if refusal:
            LOG.info("host %s is refused: %s", host_state.host, refusal)
        return not refusal

    def _refusal(self, host: str, spec_obj: Any, now: float) -> str:
        conf = nova.conf.CONF
        trust = self._shared.get(conf)
        extra_specs = spec_obj.flavor.extra_specs if "extra_specs" in spec_obj.flavor else {}
        level = _level(extra_specs, HOST_SPEC, conf.relying.trust_host)
        if level != "ignored":
            verdict = trust.host(host, now)
            if not _admits(level, verdict):
                return f"it is {verdict.why}"
        level = _level(extra_specs, GUEST_SPEC, conf.relying.trust_guest)
        if level == "ignored" or utils.request_is_rebuild(spec_obj):
            # The image that a rebuild brings replaces what the verdict was about.
            return ""
        server = spec_obj.instance_uuid if "instance_uuid" in spec_obj else None
        guest = trust.guest(uuid.UUID(server), now) if server else None
        if guest is None or not guest.seen or _admits(level, guest):
            return ""
        return f"server {server} is {guest.why}"


def _level(extra_specs: dict[str, str], name: str, default: str) -> str:
    level = extra_specs.get(name, default)
    if level in options.LEVELS:
        return level
    LOG.warning("flavor extra spec %s=%r is none of %s: taken as required", name, level, options.LEVELS)
    return "required"


def _admits(level: str, trust: Trust) -> bool:
    if level == "preferred":
        return trust.verdict is not Verdict.UNTRUSTED
    return trust.verdict is Verdict.TRUSTED


def _listen(conf: cfg.ConfigOpts) -> TrustCache:
    group = conf.relying
    try:
        public_keys = keys.load_public_keys([Path(group.verifier_keys)])
    except KeyFileError as error:
        LOG.error("no host can be trusted: %s ([relying] verifier_keys)", error)
        return TrustCache((), group.audience)
    cache = TrustCache(public_keys, group.audience)
    transport = oslo_messaging.get_rpc_transport(conf, url=group.transport_url)
    ResultListener(transport, cache, f"nova-scheduler.{socket.gethostname()}").start()
    return cache
