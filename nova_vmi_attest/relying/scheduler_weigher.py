# SPDX-License-Identifier: Apache-2.0
"""A weigher for nova-scheduler: of the hosts that pass, those first that are better in what is preferred.

Enable it in nova.conf with ``[filter_scheduler] weight_classes``, naming
``nova_vmi_attest.relying.scheduler_weigher.VMIAttestationWeigher`` beside
``nova.scheduler.weights.all_weighers``. What is required or ignored does not weigh.
"""

from __future__ import annotations

from typing import Any

import nova.conf
from nova.scheduler import weights
from oslo_log import log

from nova_vmi_attest.relying import servers
from nova_vmi_attest.relying.requests import LookUp, Requests
from nova_vmi_attest.relying.shared import SHARED, SharedTrust

LOG = log.getLogger(__name__)


class VMIAttestationWeigher(weights.BaseHostWeigher):  # type: ignore[misc]
    """Gives each host from 0 (untrusted) to 1 (trusted)."""

    # A scale of its own: the least bad of untrusted hosts is not a good one.
    minval = 0.0
    maxval = 1.0

    def __init__(self, shared: SharedTrust = SHARED, look_up: LookUp = servers.look_up) -> None:
        super().__init__()
        self._requests = Requests(shared, look_up)

    def weight_multiplier(self, host_state: Any) -> float:
        """How much this weigher counts: ``[relying] weight_multiplier``."""
        multiplier: float = nova.conf.CONF.relying.weight_multiplier
        return multiplier

    def weigh_objects(self, weighed_obj_list: Any, weight_properties: Any) -> list[float]:
        """The weights of all hosts of one request; 0 for each when the request cannot be understood."""
        try:
            demand = self._requests.known_demand(weight_properties)
            return [demand.score(weighed.obj.host) for weighed in weighed_obj_list]
        except Exception:
            LOG.exception("hosts are not weighed by trust: the request cannot be understood")
            return [0.0 for _ in weighed_obj_list]

    def _weigh_object(self, host_state: Any, weight_properties: Any) -> float:
        """One host alone, which Nova's handler never asks for."""
        return self._requests.known_demand(weight_properties).score(host_state.host)
