# SPDX-License-Identifier: Apache-2.0
"""Configuration files: written whole for OpenStack's services, made from the generated samples for ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lab.errors import LabError

Value = str | int | Path | list[str]
Options = Mapping[str, Mapping[str, Value]]
"""Group -> option -> value; a list is an option that is given several times."""


def write(path: Path, options: Options) -> None:
    """Write a configuration file that has just these options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(options))


def text(options: Options) -> str:
    """Options as a configuration file has them."""
    return "\n".join(f"[{group}]\n" + "".join(_lines(values)) for group, values in options.items())


def fill(sample: str, options: Options) -> str:
    """Return a sample with options set, each below the commented line that shows its default.

    Raises LabError when the sample lacks an option: an operator would look for it in vain, too.
    """
    lines = sample.splitlines(keepends=True)
    for group, values in options.items():
        for name, value in values.items():
            lines.insert(_place(lines, group, name), "".join(_lines({name: value})))
    return "".join(lines)


def _place(lines: list[str], group: str, name: str) -> int:
    """The number of the line after the sample's default of an option."""
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("["):
            inside = line.strip() == f"[{group}]"
        elif inside and re.match(rf"#\s?{re.escape(name)}\s*=", line):
            return number + 1
    raise LabError(f"the sample configuration has no option [{group}] {name}")


def _lines(values: Mapping[str, Value]) -> list[str]:
    return [
        f"{name} = {one}\n"
        for name, value in values.items()
        for one in (value if isinstance(value, list) else [value])
    ]
