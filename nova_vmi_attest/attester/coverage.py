# SPDX-License-Identifier: Apache-2.0
"""Which entries of the measurement log a quote has covered, and which can no longer be.

A reboot clears the PCR: entries that no quote covered before it are unattested for good, whatever the file
says. The small file kept here errs to one side only: when it is lost or old, more entries count as
unattested, never fewer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova_vmi_attest.evidence import encoding
from nova_vmi_attest.evidence.encoding import EncodingError

_FORMAT = 1
_MAX_BYTES = 1 << 16
# Older ranges are forgotten; each is a boot of the host.
_MAX_RANGES = 1024


@dataclass(frozen=True, slots=True)
class Coverage:
    """Entries numbered below ``quoted`` were covered by a quote, but for those in ``unattested``.

    :param unattested: ranges of entry numbers, in order, that a reboot put out of reach of any quote.
    """

    quoted: int = 0
    unattested: tuple[range, ...] = ()


class CoverageFile:
    """A :class:`Coverage` that survives restarts. Its user locks; every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = Coverage()

    def load(self) -> None:
        """Read the file; one that is missing or unreadable says that nothing was quoted."""
        self.state = Coverage()
        try:
            with self._path.open("rb") as file:
                value = encoding.parse(file.read(_MAX_BYTES + 1), _MAX_BYTES)
            self.state = _decode(value)
        except (FileNotFoundError, EncodingError):
            return

    def quoted(self, count: int) -> None:
        """A quote covers the entries numbered below ``count``."""
        if count > self.state.quoted:
            # Not synced: losing it to a crash makes entries count as unattested, which is the safe side.
            self._store(Coverage(count, self.state.unattested), sync=False)

    def epoch_ended(self, count: int) -> None:
        """The PCR was cleared with ``count`` entries in the log: what was not quoted is unattested."""
        missed = range(self.state.quoted, count)
        if missed:
            self._store(Coverage(count, (*self.state.unattested, missed)[-_MAX_RANGES:]), sync=True)

    def _store(self, state: Coverage, *, sync: bool) -> None:
        data = encoding.canonical(
            {
                "format": _FORMAT,
                "quoted": state.quoted,
                "unattested": [[missed.start, missed.stop] for missed in state.unattested],
            }
        )
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        new.replace(self._path)
        self.state = state


def _decode(value: dict[str, Any]) -> Coverage:
    encoding.exact_keys(value, ("format", "quoted", "unattested"), "coverage")
    encoding.integer(value, "format", _FORMAT, _FORMAT)
    ranges = []
    for pair in encoding.items(value, "unattested", _MAX_RANGES):
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(end) is int for end in pair):
            raise EncodingError("unattested is not a list of pairs")
        ranges.append(range(pair[0], pair[1]))
    return Coverage(encoding.integer(value, "quoted"), tuple(ranges))
