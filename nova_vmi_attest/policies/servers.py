# SPDX-License-Identifier: Apache-2.0
"""Who may see and ask what of servers."""

from __future__ import annotations

from nova_vmi_attest.policies import base

LIST = "servers:list"
LIST_ALL = "servers:list_all"
SHOW = "servers:show"
SHOW_HOST = "servers:show_host"
HISTORY = "servers:history"
PROOF = "servers:proof"
CHALLENGE = "servers:challenge"

RULES = [
    base.rule(LIST, base.PROJECT_READER, "List the verdicts on the project's servers.", "GET /v1/servers"),
    base.rule(
        LIST_ALL,
        base.OPERATOR_READER,
        "List the verdicts on every project's servers, or on those of one host.",
        "GET /v1/servers?all_projects=true",
        "GET /v1/servers?host={host}",
    ),
    base.rule(
        SHOW, base.PROJECT_READER, "Show the verdict on a server and why.", "GET /v1/servers/{server_id}"
    ),
    base.rule(
        SHOW_HOST,
        base.OPERATOR_READER,
        "See which hosts run or show a server, and details of reasons that speak of a host.",
        "GET /v1/servers",
        "GET /v1/servers/{server_id}",
        "GET /v1/servers/{server_id}/history",
    ),
    base.rule(
        HISTORY,
        base.PROJECT_READER,
        "Show how the verdict on a server changed, also after it was deleted.",
        "GET /v1/servers/{server_id}/history",
    ),
    base.rule(
        PROOF,
        base.PROJECT_READER,
        "Get the evidence for a server, to verify it offline. It names the server's host, because the quote "
        "of the host's TPM does; take it from tenants if they must not learn that name.",
        "GET /v1/servers/{server_id}/proof",
    ),
    base.rule(
        CHALLENGE,
        base.PROJECT_MEMBER,
        "Have a server's host answer a nonce.",
        "POST /v1/servers/{server_id}/challenges",
    ),
]
