# SPDX-License-Identifier: Apache-2.0
"""The rules of who may do what with the API, one noun a file; ``policy.yaml`` may replace each of them."""

from __future__ import annotations

from oslo_policy import policy

from nova_vmi_attest.policies import base, cloud, hosts, references, servers


def list_rules() -> list[policy.RuleDefault]:
    """All rules with their defaults, as the entry point ``oslo.policy.policies`` wants them."""
    return [*base.RULES, *servers.RULES, *hosts.RULES, *references.RULES, *cloud.RULES]
