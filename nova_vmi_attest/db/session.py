# SPDX-License-Identifier: Apache-2.0
"""The database: transactions through oslo.db, and its schema through alembic.

Only ``nova-vmi-attest-manage db upgrade`` makes tables. A service calls :meth:`Database.require_current` when
it starts, and refuses to run on a schema that is not the one it was written for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import alembic.command
import alembic.config
import alembic.runtime.migration
import alembic.script
import alembic.util
import sqlalchemy.event
import sqlalchemy.exc
from oslo_db import exception as db_exc
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import Delete, Update
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.orm import Session

from nova_vmi_attest.errors import AttestError

_UPGRADE = "run: nova-vmi-attest-manage db upgrade"
_SQLITE_WAIT_MS = 30_000


class DatabaseError(AttestError):
    """The database cannot be reached, refused a statement, or has another schema."""


class DuplicateError(DatabaseError):
    """A row with that key exists."""


class BusyError(DatabaseError):
    """Another transaction was in the way, and this one was rolled back: trying again is all it takes."""


@enginefacade.transaction_context_provider
class _Context:
    """What oslo.db hangs a transaction on."""


class Database:
    """One database, shared by the threads of a service. Connects at the first use.

    :param connection: SQLAlchemy URL, as in ``[database] connection``.
    """

    def __init__(self, connection: str) -> None:
        self._manager = enginefacade.transaction_context()
        self._manager.configure(connection=connection, sqlite_fk=True, max_retries=1, retry_interval=1)
        self._manager.append_on_engine_create(_tune_sqlite)

    @contextlib.contextmanager
    def reader(self) -> Iterator[Session]:
        """A session that only reads. Objects stay usable after it, detached.

        :raises DatabaseError: when the database refuses.
        """
        with _translated(), self._manager.reader.using(_Context()) as session:
            yield session

    @contextlib.contextmanager
    def writer(self) -> Iterator[Session]:
        """A session that commits at its end, or rolls back when the block raises.

        :raises DuplicateError: for a key that exists.
        :raises BusyError: for a deadlock, or a lock that another one held for too long.
        :raises DatabaseError: when the database refuses.
        """
        with _translated(), self._manager.writer.using(_Context()) as session:
            _lock_sqlite(session.connection())
            yield session

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; does nothing when it is there already.

        :raises DatabaseError: when the database refuses or holds a revision that this version does not know.
        """
        with _translated(), self._engine().begin() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def revision(self) -> str | None:
        """The revision of the schema; ``None`` for a database without one.

        :raises DatabaseError: when the database cannot be read.
        """
        with _translated(), self._engine().connect() as connection:
            return alembic.runtime.migration.MigrationContext.configure(connection).get_current_revision()

    def check(self) -> bool:
        """Whether the schema is the one that this version was written for.

        :raises DatabaseError: when the database cannot be read.
        """
        return self.revision() == head_revision()

    def require_current(self) -> None:
        """Refuse any schema but the newest.

        :raises DatabaseError: with the remedy.
        """
        found = self.revision()
        if found is None:
            raise DatabaseError("the database has no tables yet", _UPGRADE)
        if found != head_revision():
            raise DatabaseError(
                f"the database schema is at revision {found}, this version needs {head_revision()}", _UPGRADE
            )

    def close(self) -> None:
        """Give back the connections; the database can be used again afterwards."""
        self._manager.dispose_pool()

    def _engine(self) -> Engine:
        engine: Engine = self._manager.writer.get_engine()
        return engine


def affected(session: Session, statement: Update | Delete) -> int:
    """Execute an update or delete and say how many rows it met: the answer of a compare-and-swap."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def head_revision() -> str | None:
    """The newest revision among the migrations of this package."""
    return alembic.script.ScriptDirectory.from_config(_alembic_config()).get_current_head()


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", "nova_vmi_attest.db:migrations")
    return config


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except db_exc.DBDuplicateEntry as error:
        raise DuplicateError(f"the database holds that key already: {_first_line(error)}") from error
    except db_exc.DBNonExistentTable as error:
        raise DatabaseError(f"a table is missing: {_first_line(error)}", _UPGRADE) from error
    except (db_exc.DBError, sqlalchemy.exc.SQLAlchemyError) as error:
        if isinstance(error, db_exc.DBDeadlock) or "database is locked" in str(error):
            raise BusyError(f"the database is busy: {_first_line(error)}", "try again") from error
        raise DatabaseError(
            f"the database refused: {_first_line(error)}",
            "check [database] connection and that the server runs",
        ) from error
    except ImportError as error:
        raise DatabaseError(
            f"the driver that [database] connection names is not installed: {error}", "install it"
        ) from error
    except alembic.util.CommandError as error:
        raise DatabaseError(
            f"the database schema cannot be migrated: {error}",
            "it may belong to a newer version of this package",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _tune_sqlite(engine: Engine) -> None:
    """Let the threads and services that share one SQLite file wait for each other instead of failing."""
    if engine.dialect.name != "sqlite":
        return

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_SQLITE_WAIT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")


def _lock_sqlite(connection: Connection) -> None:
    """Take the write lock of an SQLite file now, not at the first write.

    A transaction that reads and then writes fails at once when another one wrote in between, however long the
    busy timeout is. The one that oslo.db has begun is deferred and has read nothing, so it is replaced.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
