# SPDX-License-Identifier: Apache-2.0
"""The table that the boot code uses to move a kernel to a random address, and its effect on an image.

The table follows the ELF file inside a boot image: a zero word, the places that hold 64-bit addresses, a zero
word, the 32-bit places that hold an address *subtracted* (per-CPU symbols), a zero word, the 32-bit places.
Each word is the low half of a link-time address.

Source: arch/x86/tools/relocs.c (emit_relocs), arch/x86/boot/compressed/misc.c (handle_relocations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nova_vmi_attest.kernel.elf import ImageError

LINK_BASE = 0xFFFFFFFF81000000

Offsets = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MAX_ENTRIES = 8 << 20
_MAX_IMAGE = 512 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Relocations:
    """Places in an image, as ascending int64 byte offsets from ``_text``, by what the slide does to them."""

    add32: Offsets
    sub32: Offsets
    add64: Offsets

    @classmethod
    def parse(cls, tail: bytes | memoryview) -> Relocations:
        """Read the bytes that follow the ELF file. An empty tail is a kernel without KASLR.

        :raises ImageError: not a table of a known layout. That the places lie inside an image is checked by
            ``apply``.
        """
        extra = len(tail) % 4
        if bytes(tail[:extra]).strip(b"\0") or len(tail) // 4 > _MAX_ENTRIES:
            raise ImageError(f"{len(tail)} bytes follow the ELF file, which is not a relocation table")
        words = np.frombuffer(tail, "<u4", offset=extra) if len(tail) > extra else np.zeros(0, "<u4")
        if not len(words):
            return cls(_frozen(()), _frozen(()), _frozen(()))
        zeros = np.flatnonzero(words == 0)
        if len(zeros) != 3 or zeros[0] != 0:
            raise ImageError(
                f"the relocation table has {len(zeros)} lists, not the three of this generation of kernels",
                "only the layout of Linux 6.1 is read",
            )
        add64, sub32, add32 = (
            _places(words[start + 1 : end], width)
            for start, end, width in zip(zeros, [*zeros[1:], len(words)], (8, 4, 4), strict=True)
        )
        return cls(add32, sub32, add64)

    def require_within(self, size: int) -> None:
        """Raise ImageError unless every place lies inside an image of ``size`` bytes."""
        for places, width in ((self.add32, 4), (self.sub32, 4), (self.add64, 8)):
            if len(places) and int(places[-1]) + width > size:
                raise ImageError(
                    f"a relocation at offset {int(places[-1])} is outside the image of {size} bytes"
                )

    def apply(self, image: Bytes, slide: int) -> None:
        """Move ``image`` (uint8, from ``_text``) by ``slide`` bytes, in place.

        Raises ImageError, changing nothing.
        """
        self.require_within(len(image))
        self.apply_within(image, 0, slide)

    def apply_within(self, window: Bytes, start: int, slide: int) -> None:
        """Move the part of an image that begins at ``start``; places not wholly inside are left alone."""
        if not slide:
            return
        for places, width, change in (
            (self.add32, 4, slide),
            (self.sub32, 4, -slide),
            (self.add64, 8, slide),
        ):
            low, high = np.searchsorted(places, (start, start + len(window) - width + 1))
            if high > low:
                _add(window, places[low:high] - start, width, change)


def _places(words: npt.NDArray[np.uint32], width: int) -> Offsets:
    places = words.astype(np.int64) - (LINK_BASE & 0xFFFFFFFF)
    # Places must not overlap: all of a list are changed at once, where the boot code goes one by one.
    if len(places) and (places[0] < 0 or places[-1] > _MAX_IMAGE or (np.diff(places) < width).any()):
        raise ImageError("the relocation table does not ascend from the start of the image")
    return _frozen(places)


def _frozen(values: npt.ArrayLike) -> Offsets:
    array = np.array(values, np.int64)
    array.setflags(write=False)
    return array


def _add(window: Bytes, places: Offsets, width: int, change: int) -> None:
    kind = np.dtype(np.uint32 if width == 4 else np.uint64)
    index = places[:, None] + np.arange(width)
    values = window[index].view(kind).ravel()
    values += kind.type(change & ((1 << 8 * width) - 1))
    window[index] = values[:, None].view(np.uint8)
