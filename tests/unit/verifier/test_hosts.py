# SPDX-License-Identifier: Apache-2.0
"""Known hosts and their states, and what only one of several verifiers may do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nova_vmi_attest.db.session import Database, DuplicateError
from nova_vmi_attest.verifier.appraisal import HostState
from nova_vmi_attest.verifier.hosts import Hosts, StateConflictError, StoredState, advance, answered

STATE = HostState("tpm", 1, 0, 2**63 + 5, 41, b"\x01" * 32, b"\x02" * 32)


@pytest.fixture
def hosts(database: Database) -> Hosts:
    return Hosts(database)


def move(database: Database, read: StoredState, new: HostState) -> None:
    with database.writer() as session:
        advance(session, "h", read, new)


def test_an_announcement_is_news_once(hosts: Hosts) -> None:
    assert hosts.remember("h", "tpm", "pem", 10)
    assert not hosts.remember("h", "tpm", "pem2", 20)
    known = hosts.get("h")
    assert known is not None
    assert (known.announced_at, known.challenged_at, known.answered_at) == (20, None, None)
    assert hosts.get("other") is None
    assert hosts.all() == (known,)


def test_another_tpm_is_news_and_due_at_once(hosts: Hosts) -> None:
    hosts.remember("h", "tpm", "pem", 10)
    hosts.challenged("h", 11)
    assert hosts.remember("h", "new tpm", "pem", 20)
    known = hosts.get("h")
    assert known is not None
    assert (known.tpm, known.challenged_at) == ("new tpm", None)


def test_the_turn_to_challenge_is_taken_once(hosts: Hosts) -> None:
    hosts.remember("h", "tpm", "pem", 10)
    (seen,) = hosts.all()
    assert hosts.claim(seen, 20)
    assert not hosts.claim(seen, 20)
    (seen,) = hosts.all()
    assert hosts.claim(seen, 80)


def test_errors_are_kept_until_the_host_answers(hosts: Hosts, database: Database) -> None:
    hosts.remember("h", "tpm", "pem", 10)
    hosts.note_error("h", "x" * 5000)
    hosts.note_error("nobody", "ignored")
    known = hosts.get("h")
    assert known is not None
    assert known.last_error == "x" * 1024
    with database.writer() as session:
        answered(session, "h", 30)
    known = hosts.get("h")
    assert known is not None
    assert (known.last_error, known.answered_at) == ("", 30)


def test_a_state_is_kept_exactly(hosts: Hosts, database: Database) -> None:
    assert hosts.state("h") == StoredState(None, 0)
    move(database, hosts.state("h"), STATE)
    assert hosts.state("h") == StoredState(STATE, 1)
    later = replace(STATE, recnum=42, clock=2**64 - 1)
    move(database, hosts.state("h"), later)
    assert hosts.state("h") == StoredState(later, 2)


def test_of_two_verifiers_that_read_the_same_state_one_has_to_look_again(
    hosts: Hosts, database: Database
) -> None:
    first = hosts.state("h")
    move(database, first, STATE)
    with pytest.raises(DuplicateError):
        move(database, first, STATE)
    read = hosts.state("h")
    move(database, read, replace(STATE, recnum=42))
    with pytest.raises(StateConflictError):
        move(database, read, replace(STATE, recnum=43))
    assert hosts.state("h").version == 2


def test_records_are_wanted_from_where_this_tpm_was_left(hosts: Hosts, database: Database) -> None:
    assert hosts.since("h") == 0
    hosts.remember("h", "tpm", "pem", 10)
    move(database, hosts.state("h"), STATE)
    assert hosts.since("h") == 42
    hosts.remember("h", "new tpm", "pem", 20)
    assert hosts.since("h") == 0


def test_a_forgotten_host_starts_afresh(hosts: Hosts, database: Database) -> None:
    hosts.remember("h", "tpm", "pem", 10)
    move(database, hosts.state("h"), STATE)
    assert hosts.forget("h")
    assert not hosts.forget("h")
    assert hosts.state("h") == StoredState(None, 0)
    assert hosts.remember("h", "tpm", "pem", 20)
