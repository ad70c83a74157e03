# SPDX-License-Identifier: Apache-2.0
"""What a verifier does with Nova and Placement, where ``[openstack]`` has credentials for them.

Without any, hosts and guests are judged by their evidence alone: a guest counts on every host that shows it,
a hidden one is not missed, and no trait follows the verdicts. That is said once, when the verifier starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.verifier.nova import Nova
from nova_vmi_attest.verifier.nova_events import NovaEvents
from nova_vmi_attest.verifier.openstack import OpenStack, OpenStackError
from nova_vmi_attest.verifier.placement import Placements
from nova_vmi_attest.verifier.providers import Providers
from nova_vmi_attest.verifier.reconcile import Reconciler
from nova_vmi_attest.verifier.responses.nova import ComputeApi
from nova_vmi_attest.verifier.traits import Traits

LOG = log.getLogger(__name__)


class Part(Protocol):
    """Something that runs in the background between its start and its stop."""

    def start(self) -> None:
        """Begin. May be called again after :meth:`stop`."""

    def stop(self) -> None:
        """End, within seconds; does nothing when it never began."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """The parts to run, and what others use of them. ``changed``, where there is one, is to be called after
    every result.
    """

    parts: tuple[Part, ...] = ()
    placements: Placements | None = None
    compute: ComputeApi | None = None
    changed: Callable[[], None] | None = None

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts, database: Database) -> Cloud:
        """As ``[openstack]`` says; nothing without credentials. Asks nobody yet.

        :raises OpenStackError: when the credentials or options cannot be used.
        """
        openstack, options = OpenStack.from_conf(conf), conf.openstack
        if openstack is None:
            LOG.warning(
                "[openstack] has no credentials: a guest counts on every host that shows it, a hidden one is "
                "not missed, and no trait follows the verdicts"
            )
            return cls()
        if options.placement_lifetime <= options.placement_reconcile:
            raise OpenStackError(
                "what is learnt of Nova would be too old before Nova is asked again, and no guest trusted",
                "raise [openstack] placement_lifetime above placement_reconcile",
            )
        nova = Nova(openstack)
        placements = Placements(database, nova, options.placement_lifetime)
        history = conf.verifier.history_days
        reconciler = Reconciler(database, nova, placements, options.placement_reconcile, history)
        parts: list[Part] = [reconciler]
        if options.notification_exchange:
            parts.append(NovaEvents(conf, options.notification_exchange, reconciler.hint))
        changed = None
        if options.trait:
            traits = Traits(database, nova, Providers(openstack), options.trait, options.trait_interval)
            parts.append(traits)
            changed = traits.wake
        return cls(tuple(parts), placements, ComputeApi(openstack), changed)
