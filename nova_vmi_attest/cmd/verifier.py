# SPDX-License-Identifier: Apache-2.0
"""``nova-vmi-attest-verifier``: appraises evidence on the control plane."""

from __future__ import annotations

from nova_vmi_attest.cmd.runner import run_service
from nova_vmi_attest.verifier.service import VerifierService


def main() -> int:
    """Run the verifier until it is told to stop."""
    return run_service("nova-vmi-attest-verifier", VerifierService.from_conf)
