# SPDX-License-Identifier: Apache-2.0
"""From the API's JSON to what the command prints: the same rows for a table, a record, JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from osc_lib.cli import format_columns

# Text that comes from a guest or a package may hold anything; a terminal obeys control characters.
_MASK = "?"


class ReasonsColumn(format_columns.ListColumn):
    """Reasons: one a line for people, the API's objects for machines."""

    def human_readable(self) -> str:
        return "\n".join(reason_text(reason) for reason in self._value)


class ItemsColumn(format_columns.ListColumn):
    """A list of anything: one item a line for people."""

    def human_readable(self) -> str:
        return "\n".join(_item_text(item) for item in self._value)


class MembersColumn(format_columns.DictColumn):
    """An object: one member a line for people."""

    def human_readable(self) -> str:
        return "\n".join(printable(f"{name}: {value}") for name, value in self._value.items())


def reason_text(reason: Mapping[str, Any]) -> str:
    """A reason on one line: check, place, length and detail."""
    offset = reason.get("offset")
    place = (
        f" {reason['symbol']}+{offset if isinstance(offset, int) else 0:#x}" if reason.get("symbol") else ""
    )
    length = f" ({reason['length']} bytes)" if reason.get("length") else ""
    return printable(f"{reason.get('check', '')}{place}{length}: {reason.get('detail', '')}")


def printable(text: str) -> str:
    """The text without characters that a terminal would act on."""
    return "".join(character if character.isprintable() else _MASK for character in text)


def table(
    columns: Sequence[str], items: Iterable[Mapping[str, Any]]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """What a lister prints: one row for each item, in the order of ``columns``."""
    return tuple(columns), [tuple(_value(column, item.get(column)) for column in columns) for item in items]


def record(item: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """What a show command prints: every member of the item, by name."""
    names = sorted(item)
    return tuple(map(printable, names)), tuple(_value(name, item[name]) for name in names)


def _value(name: str, value: Any) -> Any:
    if name == "reasons" and isinstance(value, list):
        return ReasonsColumn([reason for reason in value if isinstance(reason, Mapping)])
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return ItemsColumn(value)
    if isinstance(value, Mapping):
        return MembersColumn(dict(value))
    return value


def _item_text(item: Any) -> str:
    if isinstance(item, Mapping):
        return printable(", ".join(f"{name}: {value}" for name, value in item.items()))
    return printable(str(item))
