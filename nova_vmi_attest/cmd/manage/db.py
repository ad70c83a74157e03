# SPDX-License-Identifier: Apache-2.0
"""``db``: make and check the schema of the database."""

from __future__ import annotations

import argparse

from nova_vmi_attest.cmd.manage.context import Context, Nouns
from nova_vmi_attest.db.session import Database


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    verbs = nouns.add_parser("db", help="the database schema").add_subparsers(metavar="VERB", required=True)
    upgrade = verbs.add_parser("upgrade", parents=[common], help="bring the schema to the newest revision")
    upgrade.set_defaults(run=_upgrade)
    check = verbs.add_parser("check", parents=[common], help="fail unless the schema is the newest")
    check.set_defaults(run=_check)


def _upgrade(args: argparse.Namespace, context: Context) -> None:
    database = Database(context.conf.database.connection)
    before = database.revision()
    database.upgrade()
    after = database.revision()
    text = f"the schema is at revision {after}" + ("" if before == after else f" (was {before or 'empty'})")
    context.done(text, before=before, after=after)


def _check(args: argparse.Namespace, context: Context) -> None:
    database = Database(context.conf.database.connection)
    database.require_current()
    revision = database.revision()
    context.done(f"the schema is at revision {revision}, the newest", revision=revision)
