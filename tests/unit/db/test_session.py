# SPDX-License-Identifier: Apache-2.0
"""The schema is made by migrations alone, equals the models, and concurrent writers wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import BusyError, Database, DatabaseError, DuplicateError, head_revision


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'attest.sqlite'}"


@pytest.fixture
def database(url: str) -> Database:
    database = Database(url)
    database.upgrade()
    return database


def host(name: str, digest: str) -> models.Host:
    return models.Host(name=name, ek_digest=digest, ek_certificate="pem", registered_at=1)


def test_no_tables_appear_by_themselves(url: str) -> None:
    database = Database(url)
    assert database.revision() is None
    assert not database.check()
    with pytest.raises(DatabaseError, match="nova-vmi-attest-manage db upgrade"):
        database.require_current()
    with database.reader() as session:
        assert sa.inspect(session.connection()).get_table_names() == []


def test_upgrade_reaches_the_head_and_may_be_repeated(database: Database) -> None:
    database.upgrade()
    assert database.check()
    assert database.revision() == head_revision()
    database.require_current()


def test_another_revision_is_refused(database: Database) -> None:
    with database.writer() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = 'f00'"))
    with pytest.raises(DatabaseError, match="revision f00"):
        database.require_current()
    with pytest.raises(DatabaseError, match="cannot be migrated"):
        database.upgrade()


def test_migrations_make_the_tables_that_the_models_describe(database: Database) -> None:
    with database.reader() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, models.Base.metadata) == []


def test_a_writer_commits_or_rolls_back_as_a_whole(database: Database) -> None:
    with database.writer() as session:
        session.add(host("one", "aa"))
    with pytest.raises(DuplicateError), database.writer() as session:
        session.add_all((host("two", "bb"), host("one", "cc")))
    with database.reader() as session:
        assert session.scalars(sa.select(models.Host.name)).all() == ["one"]


def test_a_key_is_taken_once(database: Database) -> None:
    with database.writer() as session:
        session.add(host("one", "aa"))
    with pytest.raises(DuplicateError), database.writer() as session:
        session.add(host("two", "aa"))


def test_a_lock_that_somebody_holds_for_too_long_is_told_from_other_faults(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nova_vmi_attest.db.session._SQLITE_WAIT_MS", 10)
    impatient = Database(url)
    with database.writer(), pytest.raises(BusyError, match="busy"), impatient.writer():
        raise AssertionError("two writers at once")
    with impatient.writer() as session:
        session.add(host("one", "aa"))


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(DatabaseError, match="driver"):
        Database("oracle+oracledb://user@nowhere/none").check()


def test_missing_table_and_unusable_file_are_named(url: str) -> None:
    with pytest.raises(DatabaseError, match="table is missing"), Database(url).reader() as session:
        session.scalars(sa.select(models.Host)).all()
    with pytest.raises(DatabaseError, match="refused"):
        Database("sqlite:////nonexistent/folder/file.sqlite").check()


@pytest.mark.parametrize("clock", [0, 1, 2**63 - 1, 2**63, 0xFFFF000000000000, 2**64 - 1])
def test_the_clock_of_a_tpm_keeps_all_64_bits(database: Database, clock: int) -> None:
    state = models.HostState(
        host="h", tpm="t", reset_count=2**32 - 1, restart_count=0, clock=clock, recnum=-1
    )
    state.pcr_value, state.head, state.version = "", "", 1
    with database.writer() as session:
        session.add(state)
    with database.reader() as session:
        assert session.get_one(models.HostState, "h").clock == clock


def test_concurrent_writers_lose_no_update(database: Database, url: str) -> None:
    """Read-modify-write in many threads: with deferred transactions SQLite would refuse some of them."""
    with database.writer() as session:
        session.add(host("counter", "0"))
    errors: list[Exception] = []

    def work(own: Database) -> None:
        try:
            for _ in range(25):
                with own.writer() as session:
                    session.get_one(models.Host, "counter").registered_at += 1
        except DatabaseError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in (database, database, Database(url))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.reader() as session:
        assert session.get_one(models.Host, "counter").registered_at == 1 + 75
