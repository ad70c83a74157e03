# SPDX-License-Identifier: Apache-2.0
"""What is remembered of Nova's servers: newest wins, projects stay apart, names cannot break a database."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.servers import MAX_PAGE, Server, Servers

ONE, TWO, THREE = (uuid.UUID(int=number) for number in (1, 2, 3))


def server(guest: uuid.UUID, **values: object) -> Server:
    fixed = Server(guest, "project-a", "web", "compute-1", "ACTIVE", "", True, seen_at=100)
    return replace(fixed, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('servers')}/attest.sqlite")
    database.upgrade()
    return Servers(database)


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    database = Database(f"sqlite:///{tmp_path}/attest.sqlite")
    database.upgrade()
    return Servers(database)


def test_what_was_learnt_is_read_back(servers: Servers) -> None:
    assert servers.learn([server(ONE), server(TWO, host="", required=False)]) == 2
    assert servers.get(ONE) == server(ONE)
    assert servers.get(THREE) is None
    assert servers.known([ONE, TWO, THREE]).keys() == {ONE, TWO}


def test_older_news_never_replaces_newer(servers: Servers) -> None:
    servers.learn([server(ONE, host="compute-2", seen_at=200)])
    assert servers.learn([server(ONE, host="compute-1", seen_at=199)]) == 0
    assert servers.gone([ONE], 150) == 0
    found = servers.get(ONE)
    assert found is not None
    assert (found.host, found.deleted_at) == ("compute-2", None)


def test_pages_follow_each_other_and_leave_out_the_deleted(servers: Servers) -> None:
    guests = [uuid.UUID(int=number) for number in range(1, 8)]
    servers.learn(server(guest) for guest in guests)
    servers.gone([guests[3]], 150)
    seen: list[uuid.UUID] = []
    while page := servers.all(seen[-1] if seen else None, 2):
        assert len(page) <= 2
        seen += [item.guest for item in page]
    assert seen == guests[:3] + guests[4:]
    assert servers.all(None, 0) == servers.all(None, -1) == ()
    assert len(servers.all(None, MAX_PAGE * 10)) == 6


def test_projects_see_their_own(servers: Servers) -> None:
    servers.learn([server(ONE), server(TWO, project="project-b"), server(THREE, project="PROJECT-A")])
    assert [item.guest for item in servers.of_project("project-a", None, 10)] == [ONE]
    assert servers.of_project("project-a", ONE, 10) == ()
    assert servers.of_project("", None, 10) == servers.of_project("' OR 1=1 --", None, 10) == ()


def test_a_host_has_what_nova_places_on_it(servers: Servers) -> None:
    servers.learn(
        [
            server(ONE),
            server(TWO, host="compute-2", allowed_host="compute-1", required=False),
            server(THREE, host="COMPUTE-1"),
        ]
    )
    assert [item.guest for item in servers.on_host("compute-1")] == [ONE]
    servers.gone([ONE], 100)
    assert servers.on_host("compute-1") == ()
    assert [item.guest for item in servers.on_host("compute-2")] == [TWO]


def test_a_deleted_server_stays_for_its_project_until_it_is_forgotten(servers: Servers) -> None:
    servers.learn([server(ONE)])
    assert servers.gone([ONE, TWO], 150) == 1
    found = servers.get(ONE)
    assert found is not None
    assert (found.project, found.deleted_at, found.required, found.host) == ("project-a", 150, False, "")
    assert servers.forget_deleted(150) == 0
    assert servers.forget_deleted(151) == 1
    assert servers.get(ONE) is None


def test_those_not_seen_for_long_are_named_first(servers: Servers) -> None:
    servers.learn([server(ONE, seen_at=30), server(TWO, seen_at=20), server(THREE, seen_at=10)])
    assert servers.not_seen_since(30, 10) == (THREE, TWO)
    assert servers.not_seen_since(30, 1) == (THREE,)


def test_more_servers_than_one_statement_names(servers: Servers) -> None:
    guests = [uuid.UUID(int=number) for number in range(1, 1203)]
    assert servers.learn(server(guest) for guest in guests) == 1202
    assert len(servers.known(guests)) == 1202
    assert servers.gone(guests, 101) == 1202


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=400))
def test_no_name_breaks_a_row(lasting: Servers, name: str) -> None:
    lasting.learn([server(ONE, name=name, host=name, project=name, status=name, task_state=name)])
    found = lasting.get(ONE)
    assert found is not None
    assert len(found.name) <= 255
    assert all(sign.isprintable() and sign <= "\uffff" for sign in found.name + found.host + found.status)


def test_a_clock_that_was_ahead_keeps_no_news_out(servers: Servers) -> None:
    """Else a verifier would believe for months what Nova said on the day of the wrong clock."""
    ahead = 100 + 30 * 86400
    servers.learn([server(ONE, seen_at=ahead), server(TWO, seen_at=ahead)])
    assert servers.not_seen_since(100, 10) == (ONE, TWO)
    assert servers.learn([server(ONE, host="compute-2", seen_at=100)]) == 1
    assert servers.gone([TWO], 100) == 1
    assert [item.guest for item in servers.all(None, 10)] == [ONE]
    found = servers.get(ONE)
    assert found is not None
    assert (found.host, found.seen_at) == ("compute-2", 100)
