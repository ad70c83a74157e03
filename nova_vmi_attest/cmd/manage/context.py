# SPDX-License-Identifier: Apache-2.0
"""What every command works with: the configuration, what it names, and one way to print."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from oslo_config import cfg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.references.store import ReferenceStore

# Wide enough that nothing is cut when a table goes into a file or a pipe.
_PIPE_WIDTH = 250

# Where each noun adds its parser.
Nouns: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class CommandError(AttestError):
    """A command cannot be carried out as it was given."""


class Context:
    """The configuration of one command and its output.

    :param as_json: print JSON instead of tables.
    """

    def __init__(self, conf: cfg.ConfigOpts, as_json: bool) -> None:
        self.conf = conf
        self.as_json = as_json
        self._console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)

    def database(self) -> Database:
        """The database, whose schema is current.

        :raises DatabaseError: when it is not.
        """
        database = Database(self.conf.database.connection)
        database.require_current()
        return database

    def references(self) -> ReferenceStore:
        """The store of reference kernels."""
        return ReferenceStore(self.conf.references.path)

    def table(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with these columns; in JSON a list of objects with all that the rows hold."""
        if self.as_json:
            self.json(list(rows))
            return
        table = Table(
            *[name.replace("_", " ") for name in columns], box=None, header_style="bold", pad_edge=False
        )
        for row in rows:
            table.add_row(*[_cell(row[name]) for name in columns])
        self._console.print(table)

    def record(self, fields: Mapping[str, Any]) -> None:
        """One object, a line for each field."""
        if self.as_json:
            self.json(fields)
            return
        table = Table("", "", box=None, show_header=False, pad_edge=False)
        for name, value in fields.items():
            table.add_row(name.replace("_", " "), _cell(value))
        self._console.print(table)

    def json(self, value: Any) -> None:
        """A JSON text on standard output."""
        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def done(self, text: str, **fields: Any) -> None:
        """Say that something was done; in JSON only what came of it."""
        if self.as_json:
            self.json(fields)
        else:
            self._console.print(text, markup=False, soft_wrap=True)


def read_file(path: Path, limit: int) -> bytes:
    """The contents of a file of at most ``limit`` bytes.

    :raises CommandError: when it cannot be read or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise CommandError(f"{path} has more than {limit} bytes")
    return data


def moment(seconds: int | None) -> str:
    """Seconds since 1970 for people; a dash for never."""
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _cell(value: Any) -> Text:
    """Text that is shown as it is: names come from guests, and might hold what rich takes for markup."""
    if isinstance(value, (list, tuple)):
        value = "\n".join(str(item) for item in value)
    return Text("-" if value is None or value == "" else str(value))
