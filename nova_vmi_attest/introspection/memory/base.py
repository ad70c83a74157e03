# SPDX-License-Identifier: Apache-2.0
"""Guest-physical memory, as every reader offers it.

The bytes belong to the guest and change while they are read. A reader is trusted to deliver what the guest's
CPU would see at a guest-physical address, and nothing else is taken from it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError

Bytes = NDArray[np.uint8]

KEPT_PAGES = 4096
_PAGE = 0x1000


class MemoryFault(AttestError):  # noqa: N818
    """Guest-physical ``address`` .. ``address + length`` is not RAM of this guest."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"guest-physical {address:#x}+{length:#x} is not RAM")
        self.address = address
        self.length = length


class GuestGone(AttestError):  # noqa: N818
    """The guest's memory went away: it stopped, migrated, or its QEMU process ended."""


class ReaderError(AttestError):
    """A reader could not be opened, or does not fit this domain."""


class EncryptedMemory(ReaderError):  # noqa: N818
    """The guest's memory is encrypted or protected from its host (SEV, SEV-SNP, TDX, secure execution)."""


class UnsupportedLayout(ReaderError):  # noqa: N818
    """Where the guest's RAM lies in guest-physical memory is not known exactly, so it is not read at all."""


@dataclass(frozen=True, slots=True)
class Suitability:
    """How well a reader fits a domain: a ``score`` of 0 is not at all. ``reason`` is for the log."""

    score: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """RAM from guest-physical ``start`` up to ``end`` (exclusive), at ``offset`` of the backing bytes."""

    start: int
    end: int
    offset: int


class GuestMemory(abc.ABC):
    """Read-only access to the RAM of one guest.

    ``name`` is the reader's name in the ``nova_vmi_attest.memory`` namespace; ``ranges`` are ascending,
    disjoint and page-aligned; ``bytes_read`` counts what was asked for since :meth:`begin_pass`; ``kept`` are
    the pages that :meth:`page` keeps, by address.
    """

    name: str

    def __init__(self, ranges: Sequence[MemoryRange]) -> None:
        self.ranges = tuple(ranges)
        self.bytes_read = 0
        self.kept: dict[int, bytes] = {}

    def begin_pass(self) -> None:
        """Forget whatever was cached, and start counting bytes anew. Called before each measurement.

        :raises GuestGone: the guest no longer runs.
        """
        self.bytes_read = 0
        self.forget()

    def page(self, address: int) -> bytes:
        """The 4 KiB at a guest-physical address, read once and kept, at most until the pass ends.

        :raises MemoryFault: it is not RAM.
        :raises GuestGone: the guest ended meanwhile.
        """
        held = self.kept.get(address)
        if held is None:
            held = self.read(address, _PAGE)
            if len(self.kept) >= KEPT_PAGES:
                self.kept.clear()
            self.kept[address] = held
        return held

    def forget(self) -> None:
        """Let go of the pages that :meth:`page` kept: what follows sees them as they are now."""
        self.kept.clear()

    @abc.abstractmethod
    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at guest-physical ``address``, without ever populating sparse backing memory.

        :raises MemoryFault: any byte of it is not RAM.
        :raises GuestGone: the guest ended meanwhile.
        """

    def view(self, address: int, length: int) -> Bytes:
        """The same bytes as a read-only array, without a copy where the reader can.

        For bulk comparison of memory that the guest is known to have populated. The array must not be kept
        beyond the pass.
        """
        return np.frombuffer(self.read(address, length), dtype=np.uint8)

    def populated(self) -> Sequence[MemoryRange]:
        """The parts of :attr:`ranges` that hold data, as far as the reader can tell without touching them."""
        return self.ranges

    def end_pass(self) -> None:
        """Forget, and make sure that what was read since :meth:`begin_pass` was memory of a guest that still
        runs.

        Needed because the bytes of a RAM file outlive the guest for as long as a reader holds it open.

        :raises GuestGone: the guest ended meanwhile.
        """
        self.forget()

    def close(self) -> None:  # noqa: B027 - not every reader holds something
        """Release what the reader holds. Idempotent."""

    def locate(self, address: int, length: int) -> int:
        """Offset of ``address`` in the backing bytes, when all ``length`` bytes lie in one range.

        :raises MemoryFault: they do not.
        """
        for part in self.ranges:
            if part.start <= address and length >= 0 and address + length <= part.end:
                return part.offset + address - part.start
        raise MemoryFault(address, length)
