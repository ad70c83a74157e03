# SPDX-License-Identifier: Apache-2.0
"""Turns Nova's request for a host into what is asked of hosts, once for filter and weigher together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import nova.conf
from oslo_log import log

from nova_vmi_attest.conf import relying as options
from nova_vmi_attest.conf.opts import register_group
from nova_vmi_attest.relying import servers
from nova_vmi_attest.relying.demand import GUEST, HOST, NEIGHBOURS, Demand, Server, levels
from nova_vmi_attest.relying.shared import SharedTrust

LOG = log.getLogger(__name__)

# Of a ``RequestSpec``.
LookUp = Callable[[Any], Server]

PROGRAM = "nova-scheduler"

# A listener begins with the first request, which would else be refused for want of results that are there.
# Nova makes its filters before it forks, so nothing can begin earlier.
_PATIENCE = 20.0

_UNREAD = "; what its image asks could not be read"


class Requests:
    """Reads requests in the light of nova.conf.

    :param look_up: finds the server that a request is for.
    """

    def __init__(self, shared: SharedTrust, look_up: LookUp = servers.look_up) -> None:
        self._shared = shared
        self._look_up = look_up
        register_group(nova.conf.CONF, options.GROUP, options.OPTIONS)
        grace = nova.conf.CONF.relying.unsafe_stale_grace
        if grace:
            LOG.warning("expired results count for %d s more: [relying] unsafe_stale_grace is set", grace)

    def demand(self, spec: Any) -> Demand:
        """What a ``RequestSpec`` asks of every host. Reads Nova's databases once.

        :raises Exception: whatever Nova's objects raise for a request without a flavor.
        """
        trust = self._shared.get(nova.conf.CONF, PROGRAM, _PATIENCE)
        group = nova.conf.CONF.relying
        flavor = spec.flavor
        extra_specs = flavor.extra_specs if "extra_specs" in flavor else {}
        server = self._look_up(spec)
        defaults = {
            HOST: group.trust_host, GUEST: group.trust_guest, NEIGHBOURS: group.trust_neighbours,
        }  # fmt: skip
        demand = Demand(
            trust,
            server,
            levels(defaults, extra_specs, server.properties),
            time.time(),
            group.unsafe_stale_grace,
            note=_UNREAD if server.properties is None else "",
        ).with_guest()
        # The request is Nova's own copy, made for this one call.
        spec._vmi_attest_demand = demand
        return demand

    def known_demand(self, spec: Any) -> Demand:
        """As :meth:`demand`, but what the filter worked out for this request will do."""
        known = getattr(spec, "_vmi_attest_demand", None)
        return known if isinstance(known, Demand) else self.demand(spec)
