# SPDX-License-Identifier: Apache-2.0
"""Disables nova-compute on a host, so that nothing new is placed there; an operator enables it again."""

from __future__ import annotations

from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import HOST, PREFIX, LimitReached, Moot, Response, Tools, why


class DisableService(Response):
    """See the module."""

    kinds = frozenset((HOST,))
    needs_nova = True

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Disable it, unless as many as may be are disabled for this reason already."""
        services = tools.require_nova().compute_services()
        mine = [service for service in services if service.host == item.change.host]
        if not mine:
            raise Moot("Nova has no compute service of that name")
        if mine[0].is_disabled:
            return "the service was disabled already"
        allowed = self._allowed(len(services))
        ours = sum(service.is_disabled and service.reason.startswith(PREFIX) for service in services)
        if ours >= allowed:
            raise LimitReached(
                f"{ours} of {len(services)} compute services are disabled by attestation",
                "raise [responses] disabled_hosts_percent, or enable services that may be used",
            )
        tools.require_nova().disable(mine[0], why(item))
        return "the compute service is disabled"

    def _allowed(self, services: int) -> int:
        percent = self.conf.responses.disabled_hosts_percent
        return max(1, services * percent // 100) if percent else 0
