# SPDX-License-Identifier: Apache-2.0
"""What libvirt's states mean for this host, reason by reason."""

from __future__ import annotations

import libvirt
import pytest

from nova_vmi_attest.attester.domain_state import state_of
from nova_vmi_attest.attester.guests import GuestState

STILL = ("USER", "SAVE", "DUMP", "IOERROR", "WATCHDOG", "FROM_SNAPSHOT", "SNAPSHOT", "UNKNOWN")
MOVING = ("MIGRATION", "POSTCOPY", "POSTCOPY_FAILED", "STARTING_UP", "SHUTTING_DOWN")


@pytest.mark.parametrize("reason", STILL)
def test_a_guest_paused_here_is_measured(reason: str) -> None:
    code = getattr(libvirt, f"VIR_DOMAIN_PAUSED_{reason}")
    assert state_of(libvirt.VIR_DOMAIN_PAUSED, code) is GuestState.PAUSED


@pytest.mark.parametrize("reason", MOVING)
def test_a_guest_whose_processors_are_not_here_is_not(reason: str) -> None:
    code = getattr(libvirt, f"VIR_DOMAIN_PAUSED_{reason}")
    assert state_of(libvirt.VIR_DOMAIN_PAUSED, code) is GuestState.AWAY


def test_every_reason_of_a_pause_that_libvirt_has_was_thought_of() -> None:
    names = {name.removeprefix("VIR_DOMAIN_PAUSED_") for name in dir(libvirt) if "_DOMAIN_PAUSED_" in name}
    assert names - {"LAST", "API_ERROR"} == {*STILL, *MOVING, "CRASHED"}


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("RUNNING", "RUNNING_BOOTED", GuestState.RUNNING),
        ("RUNNING", "RUNNING_MIGRATED", GuestState.RUNNING),
        ("RUNNING", "RUNNING_MIGRATION_CANCELED", GuestState.RUNNING),
        ("RUNNING", "RUNNING_POSTCOPY", GuestState.FILLING),
        ("RUNNING", "RUNNING_POSTCOPY_FAILED", GuestState.FILLING),
        ("BLOCKED", "BLOCKED_UNKNOWN", GuestState.RUNNING),
        ("NOSTATE", "NOSTATE_UNKNOWN", GuestState.RUNNING),
        ("PMSUSPENDED", "PMSUSPENDED_UNKNOWN", GuestState.PAUSED),
        ("CRASHED", "CRASHED_PANICKED", GuestState.CRASHED),
        ("PAUSED", "PAUSED_CRASHED", GuestState.CRASHED),
        ("SHUTDOWN", "SHUTDOWN_USER", GuestState.AWAY),
        ("SHUTOFF", "SHUTOFF_MIGRATED", GuestState.AWAY),
    ],
)
def test_other_states(state: str, reason: str, expected: GuestState) -> None:
    assert (
        state_of(getattr(libvirt, f"VIR_DOMAIN_{state}"), getattr(libvirt, f"VIR_DOMAIN_{reason}"))
        is expected
    )


def test_a_state_that_is_not_known_is_measured_rather_than_hidden() -> None:
    assert state_of(99, 0) is GuestState.RUNNING
    assert state_of(libvirt.VIR_DOMAIN_PAUSED, 99) is GuestState.PAUSED
