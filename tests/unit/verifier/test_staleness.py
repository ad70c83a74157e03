# SPDX-License-Identifier: Apache-2.0
"""A host that falls silent is a change, once; a verifier does not take its own absence for that."""

from __future__ import annotations

import evidence_examples as examples
import pytest

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import HostResult, Verdict
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.hosts import Hosts
from nova_vmi_attest.verifier.results import Results
from nova_vmi_attest.verifier.staleness import Staleness

NOW = 1_000_000
LIFETIME = 300
ENDED = NOW + LIFETIME + 60


@pytest.fixture
def results(database: Database) -> Results:
    return Results(database, examples.key("verifier"), "cloud", LIFETIME, 1)


def answer(results: Results, database: Database, host: str, now: int, known: bool = True) -> None:
    if known:
        Hosts(database).remember(host, "tpm", "certificate", now)
    with database.writer() as session:
        results.record(session, Appraisal(True, HostResult(host, Verdict.TRUSTED), ()), now)


def history(results: Results, host: str) -> list[tuple[str, str]]:
    return [(str(item.previous), item.verdict.value) for item in reversed(results.history(host))]


def test_silence_is_a_change_once_and_its_end_another(results: Results, database: Database) -> None:
    staleness = Staleness(database, LIFETIME, 0)
    answer(results, database, "h", NOW)
    assert staleness.look(ENDED - 1, 1000) == ()
    assert staleness.look(ENDED, 1000) == ("h",)
    assert staleness.look(ENDED + 5, 1000) == ()
    answer(results, database, "h", ENDED + 10)
    assert history(results, "h") == [("None", "trusted"), ("trusted", "stale"), ("stale", "trusted")]
    assert results.newest("h").sequence == 2  # type: ignore[union-attr]


def test_a_verifier_that_just_started_blames_nobody(results: Results, database: Database) -> None:
    answer(results, database, "h", NOW)
    staleness = Staleness(database, LIFETIME, 5000.0)
    assert not staleness.is_settled(5299)
    assert staleness.look(ENDED, 5299) == ()
    assert staleness.look(ENDED, 5300) == ("h",)


def test_forgotten_hosts_are_not_missed(results: Results, database: Database) -> None:
    answer(results, database, "gone", NOW, known=False)
    assert Staleness(database, LIFETIME, 0).look(ENDED, 1000) == ()


def test_of_two_verifiers_one_notes_it(results: Results, database: Database) -> None:
    answer(results, database, "h", NOW)
    marked = [Staleness(database, LIFETIME, 0).look(ENDED, 1000) for _ in range(2)]
    assert marked == [("h",), ()]


def test_many_hosts_are_marked_in_pieces(results: Results, database: Database) -> None:
    for number in range(3):
        answer(results, database, f"h{number}", NOW)
    staleness = Staleness(database, LIFETIME, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nova_vmi_attest.verifier.staleness._AT_ONCE", 2)
        assert staleness.look(ENDED, 1000) == ("h0", "h1")
        assert staleness.look(ENDED, 1000) == ("h2",)
