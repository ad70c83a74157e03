# SPDX-License-Identifier: Apache-2.0
"""Rows of the results, and how a row is measured."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the median ``value``, its spread ``low`` .. ``high``, and what it is compared with.

    ``ratio`` is the median of the ratios pair by pair, so that it holds when the machine's speed drifts;
    ``against`` says what the value is divided by, empty when there is nothing to compare with (ratio 0).
    """

    name: str
    value: float
    unit: str
    against: str
    ratio: float
    low: float
    high: float


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def compare(
    name: str, work: Callable[[], object], against: str, other: Callable[[], object], runs: int = 25
) -> Row:
    """Both in turn, after a warm-up: milliseconds of ``work``, and its ratio to ``other``."""
    work()
    other()
    pairs = [(timed(work), timed(other)) for _ in range(runs)]
    values = [mine for mine, _ in pairs]
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    return row(name, values, "ms", against, ratio)


def row(name: str, values: Sequence[float], unit: str, against: str = "", ratio: float = 0.0) -> Row:
    """A row of several measured values."""
    return Row(
        name,
        round(statistics.median(values), 4),
        unit,
        against,
        round(ratio, 3),
        round(min(values), 4),
        round(max(values), 4),
    )


def present(rows: Sequence[Row], path: Path) -> None:
    """Print the table and write the file."""
    table = Table(
        "figure",
        "median",
        "unit",
        "low",
        "high",
        "ratio",
        "against",
        title="Benchmarks",
        title_justify="left",
    )
    for one in rows:
        ratio = f"{one.ratio:.2f} x" if one.against else ""
        table.add_row(
            one.name, f"{one.value:,}", one.unit, f"{one.low:,}", f"{one.high:,}", ratio, one.against
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 180).print(table)
    path.write_text(json.dumps([asdict(one) for one in rows], indent=2) + "\n")
