# SPDX-License-Identifier: Apache-2.0
"""Requests to enrol wait within bounds, whoever makes them; only the key that an operator names enrols."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from nova_vmi_attest.db.models import PendingHostRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.pending import PendingHosts
from nova_vmi_attest.records.registry import HostRegistry, RegistryError


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'attest.sqlite'}")
    database.upgrade()
    return database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pending(database: Database, clock: Clock) -> PendingHosts:
    return PendingHosts(database, clock)


def digest(number: int) -> str:
    return f"{number:064x}"


def waiting(pending: PendingHosts) -> list[tuple[str, str]]:
    return [(item.host, item.ek_digest) for item in pending.page(("", ""), 5000)]


def test_a_request_is_noted_once_and_remembers_when_it_came_first_and_last(
    pending: PendingHosts, clock: Clock
) -> None:
    assert pending.note("compute-0", digest(1), "pem")
    clock.now += 3600
    assert pending.note("compute-0", digest(1), "pem")
    found = pending.get("compute-0", digest(1))
    assert found is not None
    assert (found.asked_at, found.asked_last, found.ek_certificate) == (1_000_000, 1_003_600, "pem")
    assert pending.get("COMPUTE-0", digest(1)) is None


def test_one_key_under_many_names_keeps_only_its_newest_few(pending: PendingHosts, clock: Clock) -> None:
    for number in range(20):
        clock.now += 60
        assert pending.note(f"host-{number:02}", digest(1), "pem")
    assert [host for host, _ in waiting(pending)] == ["host-16", "host-17", "host-18", "host-19"]


def test_many_keys_make_room_for_the_newest(pending: PendingHosts, database: Database, clock: Clock) -> None:
    for number in range(1030):
        clock.now += 1
        assert pending.note("compute-0", digest(number), "pem")
    with database.reader() as session:
        assert session.scalar(select(func.count()).select_from(PendingHostRow)) == 1024
    assert pending.get("compute-0", digest(0)) is None
    assert pending.get("compute-0", digest(1029)) is not None


def test_a_burst_writes_only_so_much_a_minute(pending: PendingHosts, clock: Clock) -> None:
    clock.now = 60.0 * 20_000
    noted = [pending.note("compute-0", digest(number), "pem") for number in range(150)]
    assert noted == [True] * 120 + [False] * 30
    clock.now += 60
    assert pending.note("compute-0", digest(200), "pem")


def test_approval_takes_the_key_that_was_named_and_forgets_the_others(
    pending: PendingHosts, database: Database
) -> None:
    pending.note("compute-0", digest(1), "true")
    pending.note("compute-0", digest(2), "forged")
    pending.note("compute-1", digest(3), "other")
    assert pending.approve("compute-0", digest(1), 5)
    host = HostRegistry(database).host("compute-0")
    assert host is not None
    assert (host.ek_digest, host.ek_certificate, host.registered_at) == (digest(1), "true", 5)
    assert waiting(pending) == [("compute-1", digest(3))]


def test_what_did_not_ask_cannot_be_approved(pending: PendingHosts, database: Database) -> None:
    pending.note("compute-0", digest(1), "pem")
    assert not pending.approve("compute-0", digest(2), 5)
    assert not pending.approve("compute-9", digest(1), 5)
    assert HostRegistry(database).hosts() == ()


def test_a_key_of_another_host_is_not_approved(pending: PendingHosts) -> None:
    pending.note("compute-0", digest(1), "pem")
    pending.note("compute-1", digest(1), "pem")
    assert pending.approve("compute-0", digest(1), 5)
    with pytest.raises(RegistryError, match="registered to host compute-0"):
        pending.approve("compute-1", digest(1), 5)


def test_pages_follow_each_other(pending: PendingHosts) -> None:
    for number in range(5):
        pending.note(f"host-{number // 2}", digest(number), "pem")
    first = pending.page(("", ""), 2)
    second = pending.page((first[-1].host, first[-1].ek_digest), 3)
    assert [(item.host, item.ek_digest) for item in (*first, *second)] == waiting(pending)
