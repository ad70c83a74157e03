# SPDX-License-Identifier: Apache-2.0
"""Who may see and change the approved kernels."""

from __future__ import annotations

from nova_vmi_attest.policies import base

LIST = "references:list"
SHOW = "references:show"
IMPORT = "references:import"
DELETE = "references:delete"

RULES = [
    base.rule(LIST, base.READER, "List the approved kernels.", "GET /v1/references"),
    base.rule(SHOW, base.READER, "Show an approved kernel.", "GET /v1/references/{digest}"),
    base.rule(
        IMPORT,
        base.ADMIN,
        "Approve the kernel in a package. Whoever may do this decides which kernels are trusted.",
        "POST /v1/references",
    ),
    base.rule(DELETE, base.ADMIN, "Withdraw the approval of a kernel.", "DELETE /v1/references/{digest}"),
]
