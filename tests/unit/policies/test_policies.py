# SPDX-License-Identifier: Apache-2.0
"""Rules are documented, scoped, and name operations that the API has."""

from __future__ import annotations

import re

from oslo_policy import policy

from nova_vmi_attest.api.catalogue import OPERATIONS
from nova_vmi_attest.policies import list_rules

DOCUMENTED = [rule for rule in list_rules() if isinstance(rule, policy.DocumentedRuleDefault)]


def test_names_are_unique() -> None:
    names = [rule.name for rule in list_rules()]
    assert len(names) == len(set(names))


def test_rules_are_scoped_and_described() -> None:
    for rule in DOCUMENTED:
        assert rule.scope_types == ["system", "project"]
        assert rule.description.endswith(".")


def test_rules_name_operations_that_there_are() -> None:
    there = {(item.method, item.path) for item in OPERATIONS}
    for rule in DOCUMENTED:
        for operation in rule.operations:
            assert (operation["method"], re.sub(r"\?.*", "", operation["path"])) in there


def test_no_default_lets_everybody_in() -> None:
    for rule in list_rules():
        assert rule.check_str not in ("", "@")
