# SPDX-License-Identifier: Apache-2.0
"""The rules that the others are made of."""

from __future__ import annotations

from oslo_policy import policy

SCOPES = ["system", "project"]

ADMIN = "rule:attestation_admin"
OPERATOR_READER = "rule:attestation_operator_reader"
PROJECT_READER = "rule:attestation_project_reader"
PROJECT_MEMBER = "rule:attestation_project_member"
READER = "role:reader"

RULES = [
    policy.RuleDefault("attestation_admin", "role:admin", "Operators, who may change what is trusted."),
    policy.RuleDefault(
        "attestation_operator_reader",
        f"{ADMIN} or (role:reader and system_scope:all)",
        "Operators, and those who may look at all of the cloud but change nothing.",
    ),
    policy.RuleDefault(
        "attestation_project_reader",
        f"{OPERATOR_READER} or (role:reader and project_id:%(project_id)s)",
        "Whoever may look at the project's servers.",
    ),
    policy.RuleDefault(
        "attestation_project_member",
        f"{ADMIN} or (role:member and project_id:%(project_id)s)",
        "Whoever may use the project's servers.",
    ),
]


def rule(name: str, check: str, description: str, *operations: str) -> policy.DocumentedRuleDefault:
    """One documented rule; each operation is a method and a path."""
    pairs = [operation.split(" ", 1) for operation in operations]
    return policy.DocumentedRuleDefault(
        name=f"attestation:{name}",
        check_str=check,
        description=description,
        operations=[{"method": method, "path": path} for method, path in pairs],
        scope_types=SCOPES,
    )
