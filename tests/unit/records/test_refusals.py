# SPDX-License-Identifier: Apache-2.0
"""Anybody on the bus can send a refusal: it is checked, counted and aged, and fills no disk."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from nova_vmi_attest.db.models import RefusalRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.refusals import (
    MAX_PAGE,
    Limits,
    RefusalError,
    Refusals,
    RefusedHost,
    _row,
)
from nova_vmi_attest.relying import refusals as sender

NOW = 1_000_000
HOUR = 3600
SERVER, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    return database


def refusal(server: str = SERVER, project: str = "p", **other: Any) -> dict[str, Any]:
    hosts = [{"host": "compute-1", "reason": "it is stale"}, {"host": "compute-2", "reason": "it is unknown"}]
    return {
        "at": NOW, "server": server, "project": project, "request": "build req-1", "level": "required",
        "total": 2, "hosts": hosts, **other,
    }  # fmt: skip


def rows(database: Database) -> int:
    with database.reader() as session:
        return session.scalar(select(func.count()).select_from(RefusalRow)) or 0


def test_what_was_refused_can_be_read(database: Database) -> None:
    refusals = Refusals(database)
    refusals.add(refusal(), NOW + 5)
    (kept,) = refusals.list()
    assert kept.hosts == (RefusedHost("compute-1", "it is stale"), RefusedHost("compute-2", "it is unknown"))
    assert (kept.server, kept.project, kept.request) == (SERVER, "p", "build req-1")
    assert (kept.level, kept.total) == ("required", 2)


def test_what_schedulers_send_is_accepted(database: Database) -> None:
    refusals = Refusals(database)
    hosts = [(f"compute-{number}" * 40, "x" * 1000) for number in range(200)]
    made = sender.Refusal(NOW, SERVER, "p" * 100, "build " + "r" * 100, "preferred", hosts)
    refusals.add(made.message(), NOW)
    (kept,) = refusals.list()
    assert (kept.total, len(kept.hosts)) == (200, sender.MAX_HOSTS)


def test_the_sender_does_not_say_when(database: Database) -> None:
    """Or it could write into the past what is never counted, and into the future what never ages."""
    refusals = Refusals(database)
    for at in (0, NOW, NOW + 10**9):
        refusals.add(refusal(at=at), NOW)
    assert {kept.at for kept in refusals.list()} == {NOW}


def test_pages_go_back_from_the_newest(database: Database) -> None:
    refusals = Refusals(database)
    for number in range(5):
        refusals.add(refusal(SERVER if number % 2 else OTHER, project=f"p{number}"), NOW + number)
    first = refusals.list(limit=2)
    assert [kept.project for kept in first] == ["p4", "p3"]
    assert [kept.project for kept in refusals.list(limit=10, after=first[-1].id)] == ["p2", "p1", "p0"]
    assert [kept.project for kept in refusals.list(server=SERVER)] == ["p3", "p1"]
    assert [kept.project for kept in refusals.list(project="p2")] == ["p2"]
    assert refusals.list(server=SERVER, project="p2") == ()
    assert len(refusals.list(limit=-7)) == 1
    assert len(refusals.list(limit=MAX_PAGE * 9)) == 5


def test_one_server_cannot_fill_the_table(database: Database) -> None:
    refusals = Refusals(database, Limits(server_hour=3, hour=5))
    for number in range(3):
        refusals.add(refusal(), NOW + number)
    with pytest.raises(RefusalError, match="of server"):
        refusals.add(refusal(), NOW + 3)
    refusals.add(refusal(OTHER), NOW + 3)
    refusals.add(refusal(), NOW + HOUR)
    assert rows(database) == 5


def test_a_forger_who_makes_up_servers_is_stopped(database: Database) -> None:
    refusals = Refusals(database, Limits(hour=4))
    for number in range(4):
        refusals.add(refusal(str(uuid.UUID(int=number))), NOW)
    with pytest.raises(RefusalError, match="within the hour"):
        refusals.add(refusal(str(uuid.uuid4())), NOW)
    refusals.add(refusal(str(uuid.uuid4())), NOW + HOUR)


def test_a_clock_that_is_put_back_opens_no_gate(database: Database) -> None:
    refusals = Refusals(database, Limits(hour=2))
    refusals.add(refusal(), NOW)
    refusals.add(refusal(), NOW)
    with pytest.raises(RefusalError):
        refusals.add(refusal(), NOW - 10 * HOUR)


def test_old_ones_make_room(database: Database) -> None:
    refusals = Refusals(database, Limits(rows=3, age=10 * HOUR))
    for number in range(6):
        refusals.add(refusal(project=f"p{number}"), NOW + number)
    assert [kept.project for kept in refusals.list()] == ["p5", "p4", "p3"]
    refusals.add(refusal(project="late"), NOW + 10 * HOUR + 5)
    assert [kept.project for kept in refusals.list()] == ["late", "p5"]


BAD: list[Any] = [
    None,
    [],
    "refusal",
    {},
    {**refusal(), "more": 1},
    refusal("not a uuid"),
    refusal(SERVER.replace("-", "")),
    refusal(at=-1),
    refusal(at=1.5),
    refusal(at=10**30),
    refusal(project="p" * 65),
    refusal(project="\x1b[2J"),
    refusal(project=7),
    refusal(request="r" * 65),
    refusal(request="line\nline"),
    refusal(level="nonsense"),
    refusal(level=None),
    refusal(total=1),
    refusal(total=True),
    refusal(total=10**9),
    refusal(hosts={}),
    refusal(hosts=[{"host": "h", "reason": "r"}] * 65, total=65),
    refusal(hosts=[{"host": "h"}]),
    refusal(hosts=[{"host": "h" * 300, "reason": "r"}]),
    refusal(hosts=[{"host": "h", "reason": "r" * 257}]),
    refusal(hosts=[["h", "r"]]),
    refusal(hosts=[{"host": "\u202eh", "reason": "r"}]),
]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_malformed_is_dropped(database: Database, bad: object) -> None:
    with pytest.raises(RefusalError):
        Refusals(database).add(bad, NOW)
    assert rows(database) == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(refusal())), JSON))
@settings(max_examples=100, deadline=None)
def test_arbitrary_members_are_refused_or_fit(members: dict[str, Any]) -> None:
    try:
        row = _row({**refusal(), **members}, NOW)
    except RefusalError:
        return
    assert len(row.hosts) < 1 << 20
    assert (len(row.server), len(row.project) <= 64, len(row.request) <= 64) == (36, True, True)
