# SPDX-License-Identifier: Apache-2.0
"""What the mechanisms of self-patching share: code bytes at their running addresses, patch tables, owners.

A mechanism reads a table, finds sites by running address and overwrites their bytes here. The same
mechanism serves the kernel (one region) and a module (a region per section), since all of them speak in
running addresses.

Addresses are int64: kernel addresses as two's complement, so that differences are exact modulo 2**64, as
the CPU computes them. The tables come from the reference (trusted, possibly corrupt): whatever points
outside the image raises :class:`ReplayError`. Values of the guest arrive through
:class:`~.inputs.LiveKernel` only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError

from .inputs import LiveKernel

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.int64]

MAX_TABLE_BYTES = 4 << 20  # no patch table of a known kernel reaches 1 MiB


class ReplayError(AttestError):
    """The reference cannot be replayed: a patch table is malformed or points outside the image."""


class Mechanism(enum.IntEnum):
    """Who wrote a byte last. Values are those of the owner map."""

    NONE = 0
    PARAVIRT = 1
    RETPOLINE = 2
    RETURN = 3
    ALTERNATIVE = 4
    SMP_LOCK = 5
    MCOUNT = 6
    JUMP_LABEL = 7
    STATIC_CALL = 8
    TRAMPOLINE = 9


@dataclass(frozen=True, slots=True)
class Region:
    """``size`` bytes that run at ``address`` (signed) and lie at ``offset`` of the image.

    ``lockable`` marks text whose lock prefixes the kernel patches, ``kept`` what stays after initialisation.
    """

    name: str
    address: int
    size: int
    offset: int
    lockable: bool = True
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A patch table: its bytes after relocation, and the running address of the first."""

    address: int
    data: Bytes

    def records(self, dtype: np.dtype[np.void]) -> tuple[Addresses, NDArray[np.void]]:
        """The address of each entry, and the entries. A remainder that is no full entry is padding."""
        count = len(self.data) // dtype.itemsize
        entries = np.frombuffer(self.data[: count * dtype.itemsize].tobytes(), dtype)
        return self.address + np.arange(count, dtype=np.int64) * dtype.itemsize, entries

    def self_relative(self) -> Addresses:
        """The addresses that a table of s32, each relative to its own place, points to."""
        count = len(self.data) // 4
        values = np.frombuffer(self.data[: count * 4].tobytes(), "<i4").astype(np.int64)
        return self.address + np.arange(count, dtype=np.int64) * 4 + values


class Patching:
    """The image while it is patched.

    :param image: writable bytes, relocated to where they run; patched in place.
    :param regions: where the image runs; disjoint.
    :param tables: patch tables by section name; an absent table means that nothing is patched by it.
    :param kernel: the values of the live kernel that decide what is written.
    :param trampolines: (address of a static call trampoline, address of its key), both signed.
    """

    def __init__(
        self,
        image: Bytes,
        regions: Sequence[Region],
        tables: Mapping[str, Table],
        kernel: LiveKernel,
        trampolines: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.image = image
        self.owner: Bytes = np.zeros(len(image), np.uint8)
        self.regions = tuple(sorted(regions, key=lambda region: region.address))
        self.kernel = kernel
        self.trampolines = tuple(trampolines)
        self._tables = tables
        self._starts = np.array([region.address for region in self.regions], np.int64)
        self._ends = np.array([region.address + region.size for region in self.regions], np.int64)
        self._shifts = np.array([region.offset - region.address for region in self.regions], np.int64)

    def table(self, name: str) -> Table | None:
        """The patch table of this section name.

        :raises ReplayError: it is larger than any real one.
        """
        found = self._tables.get(name)
        if found is not None and len(found.data) > MAX_TABLE_BYTES:
            raise ReplayError(f"patch table {name} has {len(found.data)} bytes")
        return found

    def locate(self, addresses: Addresses, length: int | NDArray[np.int64], what: str) -> NDArray[np.int64]:
        """Image offsets of ``length`` bytes at each address.

        :raises ReplayError: one of them is not wholly inside one region; ``what`` names the table.
        """
        if not len(addresses):
            return np.zeros(0, np.int64)
        if not len(self.regions):
            raise ReplayError(f"{what} points outside the image")
        index = np.maximum(np.searchsorted(self._starts, addresses, side="right") - 1, 0)
        inside = (addresses >= self._starts[index]) & (addresses <= self._ends[index] - length)
        if not bool(inside.all()):
            bad = int(addresses[np.argmin(inside)]) & (1 << 64) - 1
            raise ReplayError(f"{what} points to {bad:#x}, outside the image")
        return addresses + self._shifts[index]

    def in_regions(
        self, addresses: Addresses, *, lockable: bool = False, kept: bool = False
    ) -> NDArray[np.bool_]:
        """Which addresses lie in a region (of those only that are ``lockable``, or ``kept``)."""
        found = np.zeros(len(addresses), np.bool_)
        for region in self.regions:
            if (region.lockable or not lockable) and (region.kept or not kept):
                found |= (addresses >= region.address) & (addresses < region.address + region.size)
        return found

    def put(self, offset: int, data: bytes, owner: Mechanism) -> None:
        """Write at one image offset that :meth:`locate` gave."""
        self.image[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self.owner[offset : offset + len(data)] = owner

    def put_rows(self, offsets: NDArray[np.int64], rows: Bytes, owner: Mechanism) -> None:
        """Write row ``i`` of a 2-D array at ``offsets[i]``; only rows that change anything get the owner."""
        if not len(offsets):
            return
        places = offsets[:, None] + np.arange(rows.shape[1])
        changed = (self.image[places] != rows).any(axis=1)
        places = places[changed]
        self.image[places] = rows[changed]
        self.owner[places] = owner
