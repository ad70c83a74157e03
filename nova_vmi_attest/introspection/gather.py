# SPDX-License-Identifier: Apache-2.0
"""Reading many small values of a guest at once: thousands of keys cost a few views, not a read each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.guest import Guest

APART = 1 << 16  # places further from each other than this are read by another view


class Gather:
    """A fixed set of running addresses and the width of the value at each: 4 or 8 bytes."""

    def __init__(self, addresses: Iterable[int], width: int) -> None:
        wanted = np.array(list(addresses), np.uint64)
        self.width = width
        self.count = len(wanted)
        self._order = np.argsort(wanted, kind="stable")
        ordered = wanted[self._order]
        cuts = np.flatnonzero(np.diff(ordered) > np.uint64(APART)) + 1
        self._groups: list[tuple[int, int, NDArray[np.int64]]] = []
        for group in np.split(ordered, cuts) if len(ordered) else []:
            start = int(group[0])
            places = (group - group[0]).astype(np.int64)
            self._groups.append((start, int(places[-1]) + width, places[:, None] + np.arange(width)))

    def read(self, guest: Guest) -> NDArray[np.uint64]:
        """The values as unsigned integers, in the order of the addresses.

        :raises GuestFault: one of them, or memory between two of them, is not mapped to RAM.
        """
        found = np.zeros(self.count, np.uint64)
        filled = 0
        for start, length, places in self._groups:
            taken = guest.view(start, length)[places]
            values = np.ascontiguousarray(taken).view(f"<u{self.width}").ravel()
            found[self._order[filled : filled + len(values)]] = values
            filled += len(values)
        return found
