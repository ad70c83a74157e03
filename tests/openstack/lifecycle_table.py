# SPDX-License-Identifier: Apache-2.0
"""The table of operations in the manual: rows as they were observed, written and read as reStructuredText."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

FILE = Path(__file__).parents[2] / "doc" / "source" / "reference" / "lifecycle-table.rst"
HEADER = ("Operation", "What Nova says", "Measured on", "Verdict")
COMMENT = (
    ".. Written by tests/openstack/test_lifecycle.py, which fails when this is not what it observed.\n"
    "   To write it anew, run that test with NOVA_VMI_ATTEST_LIFECYCLE_TABLE=1 in the environment.\n"
)
FIRST_CELL, CELL = "   * - ", "     - "


@dataclass(frozen=True, slots=True)
class Row:
    """One operation and what there was when it was over.

    :param nova: the status of the server, and its host: ``first`` or ``second``.
    :param measured: the hosts whose evidence holds the guest.
    :param verdict: what the server's owner is shown.
    """

    operation: str
    nova: str
    measured: str
    verdict: str


def render(rows: Iterable[Row]) -> str:
    """The table as the manual includes it."""
    lines = [COMMENT, ".. list-table::", "   :header-rows: 1", ""]
    for cells in (HEADER, *map(astuple, rows)):
        lines += [f"{CELL if number else FIRST_CELL}{cell}" for number, cell in enumerate(cells)]
    return "\n".join(lines) + "\n"


def parse(text: str) -> list[Row]:
    """The rows of a table that :func:`render` made."""
    cells = [line[len(CELL) :] for line in text.splitlines() if line.startswith((FIRST_CELL, CELL))]
    rows = [Row(*cells[start : start + len(HEADER)]) for start in range(0, len(cells), len(HEADER))]
    return rows[1:]
