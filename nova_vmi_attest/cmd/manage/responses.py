# SPDX-License-Identifier: Apache-2.0
"""``response``: what the verifiers did by themselves when verdicts changed, and what they did not."""

from __future__ import annotations

import argparse
from typing import Any

from nova_vmi_attest.cmd.manage.context import Context, Nouns, moment
from nova_vmi_attest.records.responses import ResponseReader, StoredResponse

_COLUMNS = ("at", "response", "subject", "change", "outcome", "detail")


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("response", help="responses to changed verdicts")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    every = verbs.add_parser("list", parents=[common], help="list responses, the newest first")
    every.add_argument("subject", nargs="?", help="host name or guest UUID; everything without it")
    every.add_argument("--limit", type=int, default=50, help="how many; 1 to 100000")
    every.set_defaults(run=_list)


def _list(args: argparse.Namespace, context: Context) -> None:
    reader = ResponseReader(context.database())
    found = reader.newest(args.subject, min(max(1, args.limit), 100_000))
    context.table(_COLUMNS, [_row(context, item) for item in found])


def _row(context: Context, item: StoredResponse) -> dict[str, Any]:
    return {
        "at": item.at if context.as_json else moment(item.at),
        "response": item.response,
        "subject": item.subject,
        "change": item.change,
        "outcome": item.outcome.value,
        "detail": item.detail,
    }
