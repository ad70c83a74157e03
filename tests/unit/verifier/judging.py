# SPDX-License-Identifier: Apache-2.0
"""Asking the appraisal, and what a refusal must look like."""

from __future__ import annotations

from dataclasses import replace

from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.verifier.appraisal import HOST_UNTRUSTED, Appraisal, Question, appraise
from nova_vmi_attest.verifier.policy import Policy
from tests.unit.verifier import scenario
from tests.unit.verifier.scenario import (
    HOST,
    NONCE,
    NOW,
    POLICY,
    VERIFIER,
)

QUESTION = Question(HOST, VERIFIER, frozenset({NONCE}), NOW)


def judge(batch: Batch, question: Question = QUESTION, policy: Policy = POLICY) -> Appraisal:
    return appraise(batch, question, scenario.AUTHORITIES, policy, scenario.references())


def after(appraisal: Appraisal, **changes: object) -> Question:
    """The next question, once ``appraisal`` was accepted."""
    assert appraisal.state is not None
    return replace(QUESTION, previous=replace(appraisal.state, **changes))  # type: ignore[arg-type]


def refused(appraisal: Appraisal, check: str, *, attributed: bool = False) -> str:
    """Assert that the host failed at ``check``, that nothing of it is believed, and return the detail."""
    assert appraisal.host.verdict is Verdict.UNTRUSTED
    assert appraisal.state is None
    assert appraisal.attributed is attributed
    assert [reason.check for reason in appraisal.host.reasons] == [check]
    assert {guest.verdict for guest in appraisal.guests} <= {Verdict.UNKNOWN}
    assert all(guest.reasons[0].check == HOST_UNTRUSTED for guest in appraisal.guests)
    return appraisal.host.reasons[0].detail
