# SPDX-License-Identifier: Apache-2.0
"""Who may see and change what is known of hosts."""

from __future__ import annotations

from nova_vmi_attest.policies import base

LIST = "hosts:list"
SHOW = "hosts:show"
ENROL = "hosts:enrol"
REVOKE = "hosts:revoke"
OVERRIDE = "hosts:override"
CHALLENGE = "hosts:challenge"

RULES = [
    base.rule(
        LIST,
        base.OPERATOR_READER,
        "List the hosts, and those that wait for approval.",
        "GET /v1/hosts",
        "GET /v1/hosts/pending",
    ),
    base.rule(SHOW, base.OPERATOR_READER, "Show a host.", "GET /v1/hosts/{host}"),
    base.rule(
        ENROL,
        base.ADMIN,
        "Say which TPM is in a host. Whoever may do this decides which machines can be trusted.",
        "POST /v1/hosts",
        "POST /v1/hosts/{host}/approve",
    ),
    base.rule(REVOKE, base.ADMIN, "Withdraw the enrolment of a host.", "DELETE /v1/hosts/{host}"),
    base.rule(
        OVERRIDE,
        base.ADMIN,
        "Vouch for a host for some hours, against or without its evidence, and take that back.",
        "PUT /v1/hosts/{host}/override",
        "DELETE /v1/hosts/{host}/override",
    ),
    base.rule(CHALLENGE, base.ADMIN, "Challenge a host now.", "POST /v1/hosts/{host}/challenges"),
]
