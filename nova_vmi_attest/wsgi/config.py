# SPDX-License-Identifier: Apache-2.0
"""Where an application in a web server finds its configuration: it has no command line of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_DIRECTORY = "OS_NOVA_VMI_ATTEST_CONFIG_DIR"
_FILES = "OS_NOVA_VMI_ATTEST_CONFIG_FILES"
_NAMES = ("nova-vmi-attest.conf", "api.conf")


def files(environment: Mapping[str, str]) -> list[str] | None:
    """The configuration files that the environment names: separated by ``;``, relative to its directory.

    With a directory alone, those in it of the usual names; without either, ``None``: the usual places.
    """
    directory = environment.get(_DIRECTORY, "").strip()
    names = [name.strip() for name in environment.get(_FILES, "").split(";") if name.strip()]
    if names:
        return [str(Path(directory, name)) for name in names]
    if directory:
        return [str(path) for name in _NAMES if (path := Path(directory, name)).is_file()]
    return None
