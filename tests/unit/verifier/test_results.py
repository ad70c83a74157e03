# SPDX-License-Identifier: Apache-2.0
"""Results are numbered, signed and stored, and changes of verdicts become history."""

from __future__ import annotations

import uuid

import evidence_examples as examples
import pytest

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import GuestResult, HostResult, Reason, Verdict, verify_result
from nova_vmi_attest.records.results import PageRequestError
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.results import Results

NOW = 1_000_000
KEY = examples.key("verifier")
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
BAD = Reason("text", "f", -4, 2, "why")


@pytest.fixture
def results(database: Database) -> Results:
    return Results(database, KEY, "cloud", lifetime=300, history_days=1)


def record(
    results: Results,
    database: Database,
    guests: dict[uuid.UUID, Verdict],
    *,
    host: str = "h",
    now: int = NOW,
    verdict: Verdict = Verdict.TRUSTED,
) -> str:
    shown = tuple(
        GuestResult(guest, judged, () if judged is Verdict.TRUSTED else (BAD,))
        for guest, judged in guests.items()
    )
    with database.writer() as session:
        return results.record(session, Appraisal(True, HostResult(host, verdict), shown), now)


def test_results_are_signed_and_numbered_per_host(results: Results, database: Database) -> None:
    tokens = [record(results, database, {ONE: Verdict.TRUSTED}, now=NOW + step) for step in range(2)]
    read = [verify_result(token, [KEY.public_key()], "cloud", NOW) for token in tokens]
    assert [(item.sequence, item.issued, item.expires) for item in read] == [
        (1, NOW, NOW + 300),
        (2, NOW + 1, NOW + 301),
    ]
    record(results, database, {}, host="other")
    assert [(item.host, item.sequence) for item in results.all()] == [("h", 2), ("other", 1)]
    newest = results.newest("h")
    assert newest is not None
    assert newest.token == tokens[1]
    assert results.newest("nobody") is None


def test_only_valid_results_are_handed_out(results: Results, database: Database) -> None:
    record(results, database, {}, now=NOW - 1000)
    token = record(results, database, {}, host="other")
    assert results.valid_tokens("", NOW) == ([token], "other")
    assert results.valid_tokens("other", NOW) == ([], "")
    for nonsense in (None, 7, ["h"], {}, 0, b"", "a b", "\ud800", "x" * 300):
        with pytest.raises(PageRequestError):
            results.valid_tokens(nonsense, NOW)  # type: ignore[arg-type]


def test_results_are_handed_out_in_pieces_that_a_message_may_hold(
    results: Results, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [record(results, database, {}, host=f"host-{number}") for number in range(5)]
    monkeypatch.setattr("nova_vmi_attest.records.results._PAGE_BYTES", 2 * len(tokens[0]))
    after, pages = "", []
    while (page := results.valid_tokens(after, NOW))[1]:
        after = page[1]
        pages.append(page[0])
    assert pages == [tokens[0:2], tokens[2:4], tokens[4:]]
    monkeypatch.setattr("nova_vmi_attest.records.results._PAGE_BYTES", 1)
    assert results.valid_tokens("", NOW) == (tokens[:1], "host-0")


def test_guests_follow_the_newest_result(results: Results, database: Database) -> None:
    record(results, database, {ONE: Verdict.TRUSTED, TWO: Verdict.UNTRUSTED})
    assert [(item.guest, item.verdict, item.reasons) for item in results.guests()] == [
        (ONE, Verdict.TRUSTED, ()),
        (TWO, Verdict.UNTRUSTED, (BAD,)),
    ]
    record(results, database, {ONE: Verdict.TRUSTED})
    assert [item.guest for item in results.guests()] == [ONE]
    record(results, database, {})
    assert results.guests() == ()


def test_a_decoy_on_another_host_does_not_replace_a_verdict(results: Results, database: Database) -> None:
    record(results, database, {ONE: Verdict.UNTRUSTED})
    record(results, database, {ONE: Verdict.TRUSTED}, host="decoy")
    assert [(item.host, item.verdict) for item in results.guests()] == [
        ("decoy", Verdict.TRUSTED),
        ("h", Verdict.UNTRUSTED),
    ]
    assert [item.guest for item in results.guests("decoy")] == [ONE]
    record(results, database, {}, host="decoy")
    assert [item.host for item in results.guests()] == ["h"]


def test_changes_of_verdicts_are_history(results: Results, database: Database) -> None:
    for step, verdict in enumerate((Verdict.TRUSTED, Verdict.TRUSTED, Verdict.UNTRUSTED, Verdict.TRUSTED)):
        record(results, database, {ONE: verdict}, now=NOW + step)
    changes = results.history(str(ONE))
    assert [(item.at - NOW, item.previous, item.verdict) for item in changes] == [
        (3, Verdict.UNTRUSTED, Verdict.TRUSTED),
        (2, Verdict.TRUSTED, Verdict.UNTRUSTED),
        (0, None, Verdict.TRUSTED),
    ]
    assert changes[1].reasons == (BAD,)
    assert [item.kind for item in results.history("h")] == ["host"]
    assert len(results.history(limit=2)) == 2


def test_history_ends_after_its_days(results: Results, database: Database) -> None:
    record(results, database, {ONE: Verdict.TRUSTED})
    record(results, database, {ONE: Verdict.UNTRUSTED}, now=NOW + 86400 + 1)
    assert [item.verdict for item in results.history()] == [Verdict.UNTRUSTED]


def test_a_result_that_would_be_too_large_keeps_fewer_reasons(
    results: Results, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nova_vmi_attest.evidence.result.MAX_RESULT_BYTES", 4000)
    many = GuestResult(
        ONE, Verdict.UNTRUSTED, tuple(Reason("text", f"f{n}", detail="x" * 200) for n in range(64))
    )
    with database.writer() as session:
        appraisal = Appraisal(True, HostResult("h", Verdict.TRUSTED), (many,))
        token = results.record(session, appraisal, NOW)
    monkeypatch.undo()
    assert len(verify_result(token, [KEY.public_key()], "cloud", NOW).guests[0].reasons) == 2


def test_the_batch_of_a_guest_is_that_of_its_host(results: Results, database: Database) -> None:
    record(results, database, {ONE: Verdict.TRUSTED})
    assert results.batch_of(ONE) is None
    with database.writer() as session:
        session.add(models.BatchRow(host="h", received=NOW, pcr_before="ab" * 32, batch=b"batch"))
    stored = results.batch_of(ONE)
    assert stored is not None
    assert (stored.batch, stored.pcr_before) == (b"batch", b"\xab" * 32)
    assert results.batch_of(TWO) is None
