# SPDX-License-Identifier: Apache-2.0
"""Changes are appended in one order, and a reader's position moves for one of several readers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records import changes
from nova_vmi_attest.records.changes import Changes, Position, Standing

GUEST = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    return database


def row(verdict: str, previous: str = "", *, host: str = "h", at: int = 5) -> models.VerdictChange:
    return models.VerdictChange(
        at=at, kind="guest", subject=GUEST, host=host, previous=previous, verdict=verdict, reasons="[]"
    )


def append(database: Database, *rows: models.VerdictChange) -> None:
    with database.writer() as session:
        changes.add(session, rows, 7)


def turns(database: Database) -> list[tuple[str, int]]:
    with database.reader() as session:
        return [(item.name, item.position) for item in session.scalars(select(models.CursorRow))]


def test_changes_are_numbered_in_their_order(database: Database) -> None:
    append(database, row("trusted"), row("untrusted", "trusted"))
    append(database)
    append(database, row("trusted", "untrusted"))
    read = Changes(database).after(0, 10)
    assert [(item.number, item.change.verdict) for item in read] == [
        (1, Verdict.TRUSTED),
        (2, Verdict.UNTRUSTED),
        (3, Verdict.TRUSTED),
    ]
    assert turns(database) == [("verdict_changes", 2)]
    assert [item.number for item in Changes(database).after(1, 1)] == [2]
    assert Changes(database).newest() == 3


def test_who_appends_at_once_waits_for_the_turn(database: Database) -> None:
    """Numbers are given in the order of the commits, so a reader that saw one has seen all before it."""
    append(database, row("trusted"))
    entered = threading.Event()

    def second() -> None:
        entered.set()
        append(database, row("unknown", "untrusted"))

    thread = threading.Thread(target=second)
    with database.writer() as session:
        changes.add(session, [row("untrusted", "trusted")], 7)
        thread.start()
        assert entered.wait(10)
    thread.join(10)
    assert [item.change.verdict for item in Changes(database).after(1, 10)] == [
        Verdict.UNTRUSTED,
        Verdict.UNKNOWN,
    ]


def test_a_new_reader_begins_behind_what_is_history(database: Database) -> None:
    append(database, row("trusted"))
    reader = Changes(database)
    assert reader.position("one") == Position(1, 0)
    append(database, row("untrusted", "trusted"))
    assert reader.position("one") == Position(1, 0)
    assert reader.position("two") == Position(2, 0)


def test_of_two_readers_one_moves_on(database: Database) -> None:
    reader = Changes(database)
    read = reader.position("one")
    with database.writer() as session:
        assert changes.move(session, "one", read, 3, 100)
    with database.writer() as session:
        assert not changes.move(session, "one", read, 3, 100)
        assert not changes.move(session, "other", read, 3, 100)
    assert reader.position("one") == Position(3, 100)


def test_a_transaction_that_fails_moves_nothing(database: Database) -> None:
    reader = Changes(database)
    read = reader.position("one")

    def cut_off() -> None:
        with database.writer() as session:
            changes.move(session, "one", read, 3, 100)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off()
    assert reader.position("one") == read


def test_what_is_known_of_a_change(database: Database) -> None:
    reader = Changes(database)
    append(database, row("trusted"), row("untrusted", host="other"), row("unknown", "trusted"))
    first, elsewhere, third = reader.after(0, 10)
    assert reader.is_first(first)
    assert not reader.is_first(elsewhere), "the guest had a verdict before it came to this host"
    assert not reader.is_first(third)
    assert reader.later(first) == third
    assert reader.later(elsewhere) is None
    assert reader.later(third) is None
    assert reader.get(2) == elsewhere
    with database.writer() as session:
        session.execute(delete(models.VerdictChange).where(models.VerdictChange.id == 2))
    assert reader.get(2) is None


def test_the_project_is_that_of_nova(database: Database) -> None:
    append(database, row("trusted"))
    assert Changes(database).after(0, 1)[0].project == ""
    with database.writer() as session:
        session.add(
            models.ServerRow(
                guest=GUEST, project="p1", name="n", host="h", allowed_host="", required=True,
                status="ACTIVE", task_state="", seen_at=1,
            )
        )  # fmt: skip
    assert Changes(database).after(0, 1)[0].project == "p1"


def test_the_newest_result_on_the_same_host(database: Database) -> None:
    append(database, row("trusted"))
    reader = Changes(database)
    item = reader.after(0, 1)[0]
    assert reader.standing(item) is None
    with database.writer() as session:
        session.add(
            models.GuestResultRow(
                guest=GUEST, host="h", verdict="trusted", reasons="[]", sequence=1, issued=5, expires=9
            )
        )
    assert reader.standing(item) == Standing(5, 9)
