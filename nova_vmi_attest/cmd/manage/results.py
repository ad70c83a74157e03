# SPDX-License-Identifier: Apache-2.0
"""``result``: the newest verdicts, and how they changed."""

from __future__ import annotations

import argparse
import time
from typing import Any

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns, moment
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.records.results import Change, ResultReader, StoredGuest, StoredResult


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("result", help="verdicts on hosts and guests")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    every = verbs.add_parser("list", parents=[common], help="list the newest verdicts")
    every.add_argument("--host", help="only the guests of this host")
    every.set_defaults(run=_list)
    show = verbs.add_parser("show", parents=[common], help="show one verdict with all its reasons")
    show.add_argument("subject", help="host name or guest UUID")
    show.set_defaults(run=_show)
    history = verbs.add_parser(
        "history", parents=[common], help="show how verdicts changed, the newest first"
    )
    history.add_argument("subject", nargs="?", help="host name or guest UUID; everything without it")
    history.add_argument("--limit", type=int, default=50, help="how many changes; 1 to 100000")
    history.set_defaults(run=_history)


def _list(args: argparse.Namespace, context: Context) -> None:
    reader = ResultReader(context.database())
    hosts = [item for item in reader.all() if args.host in (None, item.host)]
    rows = [_row(context, item) for item in hosts] + [
        _row(context, item) for item in reader.guests(args.host)
    ]
    context.table(("kind", "subject", "host", "verdict", "issued", "reasons"), _shortened(context, rows))


def _show(args: argparse.Namespace, context: Context) -> None:
    reader = ResultReader(context.database())
    found: StoredResult | StoredGuest | None = reader.newest(args.subject)
    if found is None:
        shown = [item for item in reader.guests() if str(item.guest) == args.subject.lower()]
        found = min(shown, key=_gravity, default=None)
    if found is None:
        raise CommandError(f"there is no result of {args.subject}", "see 'result list'")
    context.record(_row(context, found))


def _gravity(item: StoredGuest) -> tuple[bool, int]:
    """Where several hosts show a guest, the worst valid verdict counts, as for the scheduler."""
    order = (Verdict.UNTRUSTED, Verdict.UNKNOWN, Verdict.TRUSTED)
    return item.expires <= time.time(), order.index(item.verdict)


def _history(args: argparse.Namespace, context: Context) -> None:
    changes = ResultReader(context.database()).history(args.subject, min(max(1, args.limit), 100_000))
    rows = [_change(context, change) for change in changes]
    context.table(("at", "kind", "subject", "previous", "verdict", "reasons"), _shortened(context, rows))


def _row(context: Context, item: StoredResult | StoredGuest) -> dict[str, Any]:
    is_guest = isinstance(item, StoredGuest)
    stale = item.expires <= time.time()
    return {
        "kind": "guest" if is_guest else "host",
        "subject": str(item.guest) if isinstance(item, StoredGuest) else item.host,
        "host": item.host,
        "verdict": (Verdict.STALE if stale else item.verdict).value,
        "issued": _time(context, item.issued),
        "expires": _time(context, item.expires),
        "reasons": _reasons(context, item.reasons),
    }


def _change(context: Context, change: Change) -> dict[str, Any]:
    return {
        "at": _time(context, change.at),
        "kind": change.kind,
        "subject": change.subject,
        "host": change.host,
        "previous": change.previous.value if change.previous else None,
        "verdict": change.verdict.value,
        "reasons": _reasons(context, change.reasons),
    }


def _shortened(context: Context, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a table the first reason has to do."""
    if context.as_json:
        return rows
    return [{**row, "reasons": row["reasons"][:1]} for row in rows]


def _time(context: Context, seconds: int) -> int | str:
    return seconds if context.as_json else moment(seconds)


def _reasons(context: Context, reasons: tuple[Reason, ...]) -> list[Any]:
    if not context.as_json:
        return [_text(reason) for reason in reasons]
    names = ("check", "symbol", "offset", "length", "detail")
    return [{name: getattr(reason, name) for name in names} for reason in reasons]


def _text(reason: Reason) -> str:
    place = f" {reason.symbol}+{reason.offset:#x}" if reason.symbol else ""
    length = f" ({reason.length} bytes)" if reason.length else ""
    return f"{reason.check}{place}{length}: {reason.detail}"
