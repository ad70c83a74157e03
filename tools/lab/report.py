# SPDX-License-Identifier: Apache-2.0
"""What a round came to, as a table for people and as figures for ``demo-report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from rich.table import Table

from nova_vmi_attest.evidence.result import AttestationResult, GuestResult, Verdict

COLOURS = {
    Verdict.TRUSTED: "green",
    Verdict.UNTRUSTED: "bold red",
    Verdict.UNKNOWN: "yellow",
    Verdict.STALE: "yellow",
}


def table(result: AttestationResult, names: Mapping[UUID, str]) -> Table:
    """The guests of one result, a line each."""
    lines = Table(title=f"host {result.host.host}: {coloured(result.host.verdict)}", title_justify="left")
    lines.add_column("guest")
    lines.add_column("verdict")
    lines.add_column("read by")
    lines.add_column("kernel")
    for figure in ("code bytes", "unexplained", "modules", "processes", "ms"):
        lines.add_column(figure, justify="right")
    for guest in sorted(result.guests, key=lambda item: names[item.guest]):
        lines.add_row(
            names[guest.guest],
            coloured(guest.verdict),
            guest.reader,
            guest.release,
            f"{guest.code_bytes:,}",
            f"{guest.unexplained_bytes:,}",
            str(guest.modules),
            str(guest.processes),
            f"{guest.microseconds / 1000:.1f}",
        )
    return lines


def reasons(guest: GuestResult) -> list[str]:
    """Each reason of a verdict in one line: check, symbol, offset, and what was there instead."""
    return [
        f"{reason.check}: {reason.symbol}+{reason.offset:#x}, {reason.length} bytes: {reason.detail}"
        if reason.symbol
        else f"{reason.check}: {reason.detail}"
        for reason in guest.reasons
    ]


def coloured(verdict: Verdict) -> str:
    """The verdict in its colour, as rich markup."""
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def figures(result: AttestationResult, names: Mapping[UUID, str], quotes: int) -> dict[str, Any]:
    """One round for the report; ``quotes`` is how many quotes the TPM made for it."""
    return {
        "host": result.host.host,
        "host_verdict": str(result.host.verdict),
        "sequence": result.sequence,
        "quotes": quotes,
        "guests": [
            {
                "name": names[guest.guest],
                "uuid": str(guest.guest),
                "reader": guest.reader,
                "verdict": str(guest.verdict),
                "reasons": [
                    {
                        "check": reason.check,
                        "symbol": reason.symbol,
                        "offset": reason.offset,
                        "length": reason.length,
                        "detail": reason.detail,
                    }
                    for reason in guest.reasons
                ],
                "kernel": guest.release,
                "code_bytes": guest.code_bytes,
                "unexplained_bytes": guest.unexplained_bytes,
                "modules": guest.modules,
                "processes": guest.processes,
                "milliseconds": guest.microseconds / 1000,
            }
            for guest in sorted(result.guests, key=lambda item: names[item.guest])
        ],
    }
