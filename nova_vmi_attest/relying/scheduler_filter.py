# SPDX-License-Identifier: Apache-2.0
"""A filter for nova-scheduler: only trusted hosts take servers, and only trusted servers move.

Enable it in nova.conf with ``[filter_scheduler] available_filters``, naming
``nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter`` beside Nova's own, and ``enabled_filters``.
It looks verdicts up in memory, and a host of which nothing is known is refused like one that is untrusted.

The scheduler sees no image properties beyond those that Nova knows, so only flavors can ask for other levels:
``trust:host`` and ``trust:guest`` with ``required``, ``preferred`` or ``ignored``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import nova.conf
from nova.scheduler import filters, utils
from oslo_log import log

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying.shared import SHARED, SharedTrust
from nova_vmi_attest.relying.trust import Trust, TrustCache

LOG = log.getLogger(__name__)

HOST_SPEC = "trust:host"
GUEST_SPEC = "trust:guest"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request asks of every host, worked out once: a request may have ten thousand of them.

    ``refusal`` says why no host will do, if so.
    """

    trust: TrustCache
    level: str
    now: float
    refusal: str = ""

    def why_not(self, host: str) -> str:
        """Why the host is refused; empty when it is not."""
        if self.refusal:
            return self.refusal
        if self.level == "ignored":
            return ""
        trust = self.trust.host(host, self.now)
        return "" if _admits(self.level, trust) else f"it is {trust.why}"


class VMIAttestationFilter(filters.BaseHostFilter):  # type: ignore[misc]
    """Passes trusted hosts, and no host at all for a server that is not trusted where it runs now."""

    # A rebuild with a new image runs on the host where the server is: it must be trusted still.
    RUN_ON_REBUILD = True

    # Verdicts do not change within a request.
    run_filter_once_per_request = True

    def __init__(self, shared: SharedTrust = SHARED) -> None:
        super().__init__()
        self._shared = shared
        register_group(nova.conf.CONF, options.GROUP, options.OPTIONS)

    def filter_all(self, filter_obj_list: Iterable[Any], spec_obj: Any) -> Iterator[Any]:
        """The hosts that may take the server."""
        demand = self._demand(spec_obj)
        for host_state in filter_obj_list:
            if _passes(host_state, demand):
                yield host_state

    def host_passes(self, host_state: Any, spec_obj: Any) -> bool:
        """Whether the host may take the server. Never raises: what goes wrong here refuses the host."""
        return _passes(host_state, self._demand(spec_obj))

    def _demand(self, spec_obj: Any) -> Demand | None:
        """``None``, which refuses every host, when the request cannot be understood."""
        try:
            return _demand(
                self._shared.get(nova.conf.CONF, "nova-scheduler"),
                nova.conf.CONF.relying,
                spec_obj,
                time.time(),
            )
        except Exception:
            LOG.exception("every host is refused: the request cannot be understood")
            return None


def _passes(host_state: Any, demand: Demand | None) -> bool:
    if demand is None:
        return False
    try:
        refusal = demand.why_not(host_state.host)
    except Exception:
        LOG.exception("host %s is refused: its trust could not be looked up", host_state)
        return False
    if refusal:
        LOG.info("host %s is refused: %s", host_state.host, refusal)
    return not refusal


def _demand(trust: TrustCache, group: Any, spec_obj: Any, now: float) -> Demand:
    flavor = spec_obj.flavor
    extra_specs = flavor.extra_specs if "extra_specs" in flavor else {}
    level = _level(extra_specs, HOST_SPEC, group.trust_host)
    demand = Demand(trust, level, now)
    guest_level = _level(extra_specs, GUEST_SPEC, group.trust_guest)
    if guest_level == "ignored" or utils.request_is_rebuild(spec_obj):
        # The image that a rebuild brings replaces what the verdict was about.
        return demand
    server = spec_obj.instance_uuid if "instance_uuid" in spec_obj else None
    guest = trust.guest(uuid.UUID(server), now) if server else None
    if guest is None or not guest.seen or _admits(guest_level, guest):
        return demand
    return replace(demand, refusal=f"server {server} is {guest.why}")


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
