# SPDX-License-Identifier: Apache-2.0
"""A filter for nova-scheduler: only trusted hosts take servers, and only trusted servers move.

Enable it in nova.conf with ``[filter_scheduler] available_filters``, naming
``nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter`` beside Nova's own, and ``enabled_filters``.
It looks verdicts up in memory, and a host of which nothing is known is refused like one that is untrusted.

Nova does not call filters for what is forced to a host, nor for what stays where it is: reboots, starts and
rebuilds with the same image.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import nova.conf
from nova.scheduler import filters
from oslo_log import log

from nova_vmi_attest.relying import servers
from nova_vmi_attest.relying.demand import Demand
from nova_vmi_attest.relying.refusals import Refusal
from nova_vmi_attest.relying.requests import LookUp, Requests
from nova_vmi_attest.relying.shared import SHARED, SharedTrust

LOG = log.getLogger(__name__)

_NOT_UNDERSTOOD = "the request cannot be understood"


class VMIAttestationFilter(filters.BaseHostFilter):  # type: ignore[misc]
    """Passes trusted hosts, and no host at all for a server that is not trusted where it runs now."""

    # A rebuild with a new image runs on the host where the server is: it must be trusted still.
    RUN_ON_REBUILD = True

    # Verdicts do not change within a request.
    run_filter_once_per_request = True

    def __init__(self, shared: SharedTrust = SHARED, look_up: LookUp = servers.look_up) -> None:
        super().__init__()
        self._shared = shared
        self._requests = Requests(shared, look_up)

    def filter_all(self, filter_obj_list: Iterable[Any], spec_obj: Any) -> Iterator[Any]:
        """The hosts that may take the server."""
        hosts = list(filter_obj_list)
        demand = self._demand(spec_obj)
        passed: list[Any] = []
        refused: list[tuple[str, str]] = []
        for host_state in hosts:
            refusal = _why_not(host_state, demand)
            if refusal:
                refused.append((str(getattr(host_state, "host", host_state)), refusal))
            else:
                passed.append(host_state)
        if refused:
            self._tell(refused, demand, spec_obj)
        return iter(passed)

    def host_passes(self, host_state: Any, spec_obj: Any) -> bool:
        """Whether the host may take the server. Never raises: what goes wrong here refuses the host."""
        return bool(list(self.filter_all([host_state], spec_obj)))

    def _demand(self, spec_obj: Any) -> Demand | None:
        """``None``, which refuses every host, when the request cannot be understood."""
        try:
            return self._requests.demand(spec_obj)
        except Exception:
            LOG.exception("every host is refused: %s", _NOT_UNDERSTOOD)
            return None

    def _tell(self, refused: list[tuple[str, str]], demand: Demand | None, spec_obj: Any) -> None:
        for host, refusal in refused:
            LOG.info("host %s is refused: %s", host, refusal)
        if demand is None or demand.server.uuid is None:
            return
        # Nova's context names the request as its own logs do.
        context = getattr(spec_obj, "_context", None)
        request = f"{demand.server.operation} {getattr(context, 'request_id', None) or ''}"
        project = spec_obj.project_id if "project_id" in spec_obj else None
        told = Refusal(
            int(time.time()), str(demand.server.uuid), project or "", request.strip(),
            str(demand.levels.strictest), refused,
        )  # fmt: skip
        self._shared.report(nova.conf.CONF, told)


def _why_not(host_state: Any, demand: Demand | None) -> str:
    if demand is None:
        return _NOT_UNDERSTOOD
    try:
        return demand.why_not(host_state.host)
    except Exception:
        LOG.exception("host %s is refused: its trust could not be looked up", host_state)
        return "its trust could not be looked up"
