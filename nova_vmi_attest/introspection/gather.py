# SPDX-License-Identifier: Apache-2.0
"""Reading many small values of a guest at once: thousands of keys cost a few views, not a read each.

Values lie together in a few parts of the kernel's data. A part is viewed as a whole; where there is something
in it that is not mapped, each of its values is read by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.guest import Guest, GuestFault

APART = 1 << 20  # places further from each other than this are read by another view


class Gather:
    """A fixed set of running addresses and the width of the value at each: 4 or 8 bytes."""

    def __init__(self, addresses: Iterable[int], width: int) -> None:
        wanted = np.array(list(addresses), np.uint64)
        self.width = width
        self.count = len(wanted)
        self._order = np.argsort(wanted, kind="stable")
        ordered = wanted[self._order]
        cuts = np.flatnonzero(np.diff(ordered) > np.uint64(APART)) + 1
        self._groups = [_Group(part, width) for part in np.split(ordered, cuts)] if len(ordered) else []

    def read(self, guest: Guest) -> NDArray[np.uint64]:
        """The values as unsigned integers, in the order of the addresses.

        :raises GuestFault: one of them is not mapped to RAM.
        """
        found = np.zeros(self.count, np.uint64)
        filled = 0
        for group in self._groups:
            values = group.read(guest)
            found[self._order[filled : filled + len(values)]] = values
            filled += len(values)
        return found


class _Group:
    """Values close to each other, in the order of their addresses."""

    def __init__(self, addresses: NDArray[np.uint64], width: int) -> None:
        self._width = width
        self._start = int(addresses[0])
        self._places = (addresses - addresses[0]).astype(np.int64)
        self._aligned = not (self._places % width).any()

    def read(self, guest: Guest) -> NDArray[np.uint64]:
        width, places = self._width, self._places
        try:
            live = guest.view(self._start, int(places[-1]) + width)
        except GuestFault:
            return np.array([self._one(guest, place) for place in places.tolist()], np.uint64)
        if self._aligned:
            taken = live.view(f"<u{width}")[places // width]
        else:
            taken = live[places[:, None] + np.arange(width)].view(f"<u{width}").ravel()
        values: NDArray[np.uint64] = taken.astype(np.uint64)
        return values

    def _one(self, guest: Guest, place: int) -> int:
        return int.from_bytes(guest.read(self._start + place, self._width), "little")
