# SPDX-License-Identifier: Apache-2.0
"""``nova-vmi-attest-agent``: the attester beside nova-compute."""

from __future__ import annotations

from nova_vmi_attest.attester.service import AttesterService
from nova_vmi_attest.cmd.runner import run_service


def main() -> int:
    """Run the agent until it is told to stop."""
    return run_service("nova-vmi-attest-agent", AttesterService)
