# SPDX-License-Identifier: Apache-2.0
"""An override is visible in what it overrides, for hosts alone, and what it hid comes back after it."""

from __future__ import annotations

import uuid

import evidence_examples as examples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import (
    AttestationResult,
    GuestResult,
    HostResult,
    Reason,
    Verdict,
    sign_result,
    verify_result,
)
from nova_vmi_attest.records.overrides import Override, Overrides
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.overrides import is_overridden, overridden, unseen, withdrawn
from nova_vmi_attest.verifier.results import Results

NOW = 1_000_000
KEY = examples.key("verifier")
BAD = Reason("pcr_policy", "PCR 7", 0, 0, "another value")
GUEST = GuestResult(uuid.UUID(int=1), Verdict.UNKNOWN, (Reason("host", detail="its host is untrusted"),))
OVERRIDE = Override("h", "firmware update", "alice", NOW, NOW + 100)


def signed(host: HostResult) -> HostResult:
    """What a relying party reads of it."""
    token = sign_result(AttestationResult(host, (), NOW, NOW + 60, 1), KEY, "cloud")
    return verify_result(token, [KEY.public_key()], "cloud", NOW).host


def test_an_untrusted_host_is_trusted_and_says_why_not() -> None:
    found = HostResult("h", Verdict.UNTRUSTED, (BAD, Reason("log")))
    judged = overridden(found, OVERRIDE)
    assert judged.verdict is Verdict.TRUSTED
    assert judged.reasons[0] == Reason(
        "override",
        detail="by alice until 1970-01-12 13:48:20Z: firmware update; "
        "appraised as untrusted: pcr_policy PCR 7+0x0 another value",
    )
    assert judged.reasons[1:] == found.reasons
    assert is_overridden(judged)
    assert signed(judged) == judged


def test_a_trusted_host_needs_no_override() -> None:
    trusted = HostResult("h", Verdict.TRUSTED, (Reason("pcr_unapproved"),))
    assert overridden(trusted, OVERRIDE) is trusted
    assert not is_overridden(trusted)
    assert not is_overridden(HostResult("h", Verdict.TRUSTED))
    assert not is_overridden(HostResult("h", Verdict.UNKNOWN, (Reason("override"),)))


def test_what_was_found_comes_back_after_it() -> None:
    found = HostResult("h", Verdict.UNTRUSTED, (BAD,))
    assert withdrawn(overridden(found, OVERRIDE)) == found
    nothing = withdrawn(unseen(OVERRIDE))
    assert (nothing.verdict, nothing.reasons[0].check) == (Verdict.UNKNOWN, "override")


_WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=1100)


@settings(max_examples=60, deadline=None)
@given(_WORDS, _WORDS, st.integers(0, 64), _WORDS)
def test_whatever_an_operator_writes_can_be_signed(why: str, by: str, count: int, detail: str) -> None:
    override = Override("h", why[:1024], by[:255], NOW, NOW + 86400)
    reasons = tuple(Reason("text", "s" * 256, -(1 << 40), 7, detail[:512]) for _ in range(count))
    judged = overridden(HostResult("h", Verdict.UNTRUSTED, reasons), override)
    assert signed(judged) == judged
    assert signed(unseen(override)).verdict is Verdict.TRUSTED
    assert signed(withdrawn(judged)).verdict is not Verdict.TRUSTED


@pytest.fixture
def results(database: Database) -> Results:
    return Results(database, KEY, "cloud", lifetime=300, history_days=1)


def record(results: Results, database: Database, verdict: Verdict, now: int) -> AttestationResult:
    reasons = () if verdict is Verdict.TRUSTED else (BAD,)
    with database.writer() as session:
        token = results.record(session, Appraisal(True, HostResult("h", verdict, reasons), (GUEST,)), now)
    return verify_result(token, [KEY.public_key()], "cloud", now)


def test_the_signed_result_is_overridden_and_ends_with_the_override(
    results: Results, database: Database
) -> None:
    Overrides(database).set("h", "firmware update", "alice", 100, NOW)
    result = record(results, database, Verdict.UNTRUSTED, NOW + 10)
    assert (result.host.verdict, result.host.reasons[0].check) == (Verdict.TRUSTED, "override")
    assert (result.guests, result.expires) == ((GUEST,), NOW + 100)
    assert record(results, database, Verdict.TRUSTED, NOW + 20).expires == NOW + 320
    assert record(results, database, Verdict.UNTRUSTED, NOW + 100).host.verdict is Verdict.UNTRUSTED


def test_an_override_of_another_host_is_no_matter(results: Results, database: Database) -> None:
    for host in ("H", "h2", "other"):
        Overrides(database).set(host, "why", "alice", 100, NOW)
    assert record(results, database, Verdict.UNTRUSTED, NOW).host.verdict is Verdict.UNTRUSTED


def test_a_verdict_that_is_overridden_is_no_change_to_untrusted(results: Results, database: Database) -> None:
    record(results, database, Verdict.TRUSTED, NOW)
    Overrides(database).set("h", "why", "alice", 100, NOW)
    record(results, database, Verdict.UNTRUSTED, NOW + 1)
    assert len(results.history("h")) == 1
    Overrides(database).lift("h", "alice", NOW + 2)
    record(results, database, Verdict.UNTRUSTED, NOW + 3)
    assert results.history("h")[0].verdict is Verdict.UNTRUSTED
