# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel.elf import ImageError
from nova_vmi_attest.kernel.relocations import Relocations

from . import builders
from .mutation import mutated, refusal

SLIDE = 0x1E00000
TAIL = builders.relocation_tail(add64=[0, 16], sub32=[24], add32=[8, 12])


def _image() -> np.ndarray:
    return np.frombuffer(struct.pack("<QIIQI", (1 << 64) - 5, 7, 0xFFFFFFFF, 3, 0x10), np.uint8).copy()


def test_lists() -> None:
    relocations = Relocations.parse(TAIL)
    assert relocations.add64.tolist() == [0, 16]
    assert relocations.sub32.tolist() == [24]
    assert relocations.add32.tolist() == [8, 12]
    assert relocations.add32.dtype == np.int64
    assert not relocations.add32.flags.writeable


def test_apply_wraps_around_like_the_machine() -> None:
    image = _image()
    Relocations.parse(TAIL).apply(image, SLIDE)
    assert struct.unpack("<QIIQI", image.tobytes()) == (
        SLIDE - 5,
        7 + SLIDE,
        SLIDE - 1,
        3 + SLIDE,
        (0x10 - SLIDE) & 0xFFFFFFFF,
    )


def test_no_slide_changes_nothing() -> None:
    image = _image()
    Relocations.parse(TAIL).apply(image, 0)
    assert (image == _image()).all()


@pytest.mark.parametrize("start", range(20))
def test_window_is_a_part_of_the_whole(start: int) -> None:
    relocations = Relocations.parse(TAIL)
    whole = _image()
    relocations.apply(whole, SLIDE)
    # With eight bytes more on each side every place that touches the part lies inside the window.
    low, high = max(0, start - 8), min(len(whole), start + 16)
    window = _image()[low:high]
    relocations.apply_within(window, low, SLIDE)
    assert (window[start - low : start - low + 8] == whole[start : start + 8]).all()


def test_no_table_means_no_slide() -> None:
    relocations = Relocations.parse(b"")
    assert [len(x) for x in (relocations.add32, relocations.sub32, relocations.add64)] == [0, 0, 0]


def test_padding_before_the_table() -> None:
    assert Relocations.parse(b"\0\0" + TAIL).add64.tolist() == [0, 16]


@pytest.mark.parametrize(
    "tail",
    [
        b"\1\0" + TAIL,  # what is too much is not zero
        struct.pack("<I", 1) + TAIL,  # does not begin with zero
        TAIL[:-4] + bytes(4),  # four lists
        builders.relocation_tail(add64=[16, 8]),  # not ascending
        builders.relocation_tail(add64=[8, 8]),  # twice
        builders.relocation_tail(add64=[8, 12]),  # overlapping
        builders.relocation_tail(add32=[-4]),  # before the image
        builders.relocation_tail(add32=[600 << 20]),  # beyond any image
        struct.pack("<III", 0, 0x81000000, 0),  # the two lists of another generation
    ],
)
def test_malformed(tail: bytes) -> None:
    with pytest.raises(ImageError):
        Relocations.parse(tail)


def test_place_outside_the_image() -> None:
    image = np.zeros(27, np.uint8)
    with pytest.raises(ImageError, match="outside"):
        Relocations.parse(TAIL).apply(image, SLIDE)
    assert not image.any()


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=64), mutated(TAIL)))
def test_mutated(tail: bytes) -> None:
    image = _image()
    refused = refusal(lambda: Relocations.parse(tail).apply(image, SLIDE))
    assert refused is None or (image == _image()).all()
