# SPDX-License-Identifier: Apache-2.0
"""``nova-vmi-attest-authority``: the enrolment authority of the control plane."""

from __future__ import annotations

from nova_vmi_attest.authority.service import AuthorityService
from nova_vmi_attest.cmd.runner import run_service


def main() -> int:
    """Run the authority until it is told to stop."""
    return run_service("nova-vmi-attest-authority", AuthorityService)
