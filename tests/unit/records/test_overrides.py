# SPDX-License-Identifier: Apache-2.0
"""An override is bounded, recorded, ends by itself, and is nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from nova_vmi_attest.db.models import AuditRecord
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.overrides import MAX_LIFETIME, Override, OverrideError, Overrides

NOW = 1_000_000
DAY = 86400


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    return database


@pytest.fixture
def overrides(database: Database) -> Overrides:
    return Overrides(database)


def audit(database: Database) -> list[tuple[str, str, str]]:
    with database.reader() as session:
        rows = session.scalars(select(AuditRecord).order_by(AuditRecord.id))
        return [(row.action, row.host_name, row.detail) for row in rows]


def test_an_override_holds_until_it_ends(overrides: Overrides) -> None:
    made = overrides.set("compute-1", "TPM is being replaced", "ops", 3600, NOW)
    assert made == Override("compute-1", "TPM is being replaced", "ops", NOW, NOW + 3600, None)
    assert overrides.active("compute-1", NOW) == made
    assert overrides.active("compute-1", NOW + 3599) == made
    assert overrides.active("compute-1", NOW + 3600) is None
    assert overrides.active("compute-2", NOW) is None
    assert overrides.all(NOW) == (made,)
    assert overrides.all(NOW + 3600) == ()


def test_lifting_ends_it_at_once_and_both_are_recorded(overrides: Overrides, database: Database) -> None:
    overrides.set("compute-1", "why", "ops", 60, NOW)
    lifted = overrides.lift("compute-1", "night shift", NOW + 5)
    assert lifted.lifted_at == NOW + 5
    assert overrides.active("compute-1", NOW + 5) is None
    assert overrides.all(NOW + 5) == ()
    with pytest.raises(OverrideError, match="no override"):
        overrides.lift("compute-1", "night shift", NOW + 6)
    assert audit(database) == [
        ("override", "compute-1", "by ops for 60 s: why"),
        ("lift-override", "compute-1", "by night shift"),
    ]


def test_a_new_one_replaces_the_old_and_is_recorded(overrides: Overrides, database: Database) -> None:
    overrides.set("compute-1", "first", "ops", 60, NOW)
    overrides.lift("compute-1", "ops", NOW + 1)
    second = overrides.set("compute-1", "second", "other", 120, NOW + 2)
    assert overrides.active("compute-1", NOW + 100) == second
    assert len(overrides.all(NOW + 2)) == 1
    assert len(audit(database)) == 3


@pytest.mark.parametrize("host", ["", "a b", "x" * 254, "../etc", "ä", None, 7, ["compute-1"]])
def test_names_follow_the_one_rule(overrides: Overrides, database: Database, host: Any) -> None:
    with pytest.raises(OverrideError, match="host name"):
        overrides.set(host, "why", "ops", 60, NOW)
    assert audit(database) == []


@pytest.mark.parametrize(
    "text", ["", "   ", "x" * 1025, "two\nlines", "\0", "\x1b[31m", "\ud800", None, 7, b"x"]
)
def test_texts_are_bounded_and_printable(overrides: Overrides, text: Any) -> None:
    with pytest.raises(OverrideError, match="printable"):
        overrides.set("compute-1", text, "ops", 60, NOW)
    with pytest.raises(OverrideError, match="printable"):
        overrides.set("compute-1", "why", text, 60, NOW)
    with pytest.raises(OverrideError, match="printable"):
        overrides.lift("compute-1", text, NOW)
    assert overrides.all(NOW) == ()


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LIFETIME + 1, 1.5, True, None, "60"])
def test_nothing_holds_for_more_than_a_day(overrides: Overrides, lifetime: Any) -> None:
    with pytest.raises(OverrideError, match="86400"):
        overrides.set("compute-1", "why", "ops", lifetime, NOW)
    assert overrides.all(NOW) == ()


def test_a_clock_that_is_put_back_does_not_prolong_it(overrides: Overrides) -> None:
    overrides.set("compute-1", "why", "ops", DAY, NOW)
    assert overrides.active("compute-1", NOW - 60) is not None
    assert overrides.active("compute-1", NOW - 61) is None
    assert overrides.all(NOW - 61) == ()
    with pytest.raises(OverrideError, match="no override"):
        overrides.lift("compute-1", "ops", NOW - 61)
