# SPDX-License-Identifier: Apache-2.0
"""Who may see what holds for the whole cloud: its appraisal policy, its public keys, refusals, the record."""

from __future__ import annotations

from nova_vmi_attest.policies import base

POLICY = "policy:show"
TRUST_ANCHORS = "trust_anchors:show"
REFUSALS = "refusals:list"
REFUSALS_ALL = "refusals:list_all"
AUDIT = "audit:list"

RULES = [
    base.rule(POLICY, base.READER, "Show what makes a server and a host trusted.", "GET /v1/policy"),
    base.rule(
        TRUST_ANCHORS,
        base.READER,
        "Get the public keys and certificates with which results and proofs are verified.",
        "GET /v1/trust-anchors",
    ),
    base.rule(
        REFUSALS,
        base.PROJECT_READER,
        "List the requests for the project's servers for which the scheduler refused hosts.",
        "GET /v1/refusals",
    ),
    base.rule(
        REFUSALS_ALL,
        base.OPERATOR_READER,
        "List those of every project, with the hosts and the reason of each.",
        "GET /v1/refusals",
    ),
    base.rule(
        AUDIT,
        base.OPERATOR_READER,
        "List what was done with hosts, their certificates and overrides, and what was refused to whom.",
        "GET /v1/audit-records",
    ),
]
