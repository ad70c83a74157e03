# SPDX-License-Identifier: Apache-2.0
"""What strangers on the bus send is bounded before it costs the database anything."""

from __future__ import annotations

import uuid
from typing import Any

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.verifier import endpoint as module
from nova_vmi_attest.verifier.endpoint import VerifierEndpoint


def refusal() -> dict[str, Any]:
    named = {"server": str(uuid.uuid4()), "project": "p", "request": "build req-1", "level": "required"}
    return {"at": 0, "total": 0, "hosts": [], **named}


def test_a_flood_of_forged_refusals_does_not_keep_evidence_waiting(database: Database) -> None:
    refusals, transactions = Refusals(database), []
    endpoint = VerifierEndpoint(None, None, None, None, refusals)  # type: ignore[arg-type]
    add = refusals.add
    refusals.add = lambda *arguments: (transactions.append(1), add(*arguments))  # type: ignore[method-assign]
    for _ in range(3 * module._REFUSALS):
        endpoint.refused({}, refusal())
    assert module._REFUSALS <= len(transactions) < 2 * module._REFUSALS
    assert len(refusals.list(limit=1000)) == len(transactions)
