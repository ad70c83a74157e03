# SPDX-License-Identifier: Apache-2.0
"""What libvirt's state of a domain, with its reason, means for who measures the guest.

During a live migration both hosts have an active domain of the same uuid. On the destination it is paused
(starting up, then migration) until its vCPUs run there; on the source it is paused (migration) from the
moment when they stopped until QEMU ends. So a domain that is paused because it migrates is measured by
neither, and any other by the one host where it is; a migration that fails makes the source's run again. In
post-copy the vCPUs run on the destination while pages are still on their way, and a page that has not arrived
reads as zeros: such a guest is reported there, and cannot be measured.

The states are those of ``virDomainState`` and ``virDomainPausedReason`` (libvirt's libvirt-domain.h; who sets
them when: src/qemu/qemu_migration.c and qemu_process.c).
"""

from __future__ import annotations

from collections.abc import Mapping

import libvirt

from nova_vmi_attest.attester.guests import GuestState

# Since libvirt 8.5: a build against an older one does not name it.
_RUNNING_POSTCOPY_FAILED = 11

_STATES: Mapping[int, GuestState] = {
    libvirt.VIR_DOMAIN_PAUSED: GuestState.PAUSED,
    # Suspended to RAM by the guest itself.
    libvirt.VIR_DOMAIN_PMSUSPENDED: GuestState.PAUSED,
    # The domain is kept for a look at what happened (on_crash, or a crash that libvirt was told to preserve).
    libvirt.VIR_DOMAIN_CRASHED: GuestState.CRASHED,
    # The guest has powered itself off, and its QEMU is about to end or to begin anew.
    libvirt.VIR_DOMAIN_SHUTDOWN: GuestState.AWAY,
    libvirt.VIR_DOMAIN_SHUTOFF: GuestState.AWAY,
}

_REASONS: Mapping[tuple[int, int], GuestState] = {
    # Memory is being filled: a start, a restore from disk or an incoming migration.
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP): GuestState.AWAY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION): GuestState.AWAY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY): GuestState.AWAY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED): GuestState.AWAY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN): GuestState.AWAY,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED): GuestState.CRASHED,
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY): GuestState.FILLING,
    (libvirt.VIR_DOMAIN_RUNNING, _RUNNING_POSTCOPY_FAILED): GuestState.FILLING,
}


def state_of(state: int, reason: int) -> GuestState:
    """The guest's state; what libvirt may come to say and this does not know counts as running: measured."""
    return _REASONS.get((state, reason)) or _STATES.get(state, GuestState.RUNNING)
