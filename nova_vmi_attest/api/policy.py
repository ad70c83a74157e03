# SPDX-License-Identifier: Apache-2.0
"""Who may do what: oslo.policy with the rules of :mod:`nova_vmi_attest.policies`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_context.context import RequestContext
from oslo_policy import policy

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import policies


def make_enforcer(conf: cfg.ConfigOpts) -> policy.Enforcer:
    """The enforcer with our defaults and the operator's ``policy.yaml`` over them."""
    enforcer = policy.Enforcer(conf)
    enforcer.register_defaults(policies.list_rules())
    return enforcer


def get_enforcer() -> policy.Enforcer:
    """For the tools of oslo.policy, which look it up under the entry point ``oslo.policy.enforcer``."""
    return make_enforcer(configuration.load([], "nova-vmi-attest-api"))


def allows(enforcer: policy.Enforcer, context: RequestContext, rule: str, target: Mapping[str, Any]) -> bool:
    """Whether the caller may do what ``rule`` (without its prefix) names, to something of that target."""
    try:
        return bool(enforcer.authorize(f"attestation:{rule}", dict(target), context, do_raise=True))
    except (policy.PolicyNotAuthorized, policy.InvalidScope):
        return False
