# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import lzma
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel import image
from nova_vmi_attest.kernel.image import ImageError, unpack

from . import builders
from .mutation import mutated, refusal

KERNEL = builders.vmlinux()
IMAGES = {how: builders.bzimage(builders.compressed(KERNEL, how)) for how in ("gzip", "xz", "lz4", "zstd")}


@pytest.mark.parametrize("how", sorted(IMAGES))
def test_every_compression(how: str) -> None:
    assert unpack(IMAGES[how]) == KERNEL


def test_elf_is_returned_as_it_is() -> None:
    assert unpack(KERNEL) is KERNEL


def test_setup_sectors_zero_means_four() -> None:
    data = bytearray(builders.bzimage(builders.compressed(KERNEL, "gzip"), 4))
    data[0x1F1] = 0
    assert unpack(bytes(data)) == KERNEL


def test_lz4_of_several_blocks_and_repeated_magic() -> None:
    large = KERNEL + bytes(9 << 20)
    payload = builders.compressed(large, "lz4")
    assert unpack(builders.bzimage(payload)) == large
    assert unpack(builders.bzimage(payload[:4] + payload)) == large


@pytest.mark.parametrize("how", sorted(IMAGES))
def test_cut_off(how: str) -> None:
    payload = builders.compressed(KERNEL, how)
    with pytest.raises(ImageError):
        unpack(builders.bzimage(payload[: len(payload) // 2]))


@pytest.mark.parametrize("how", ["gzip", "xz", "lz4", "zstd"])
def test_bomb(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_UNPACKED", 20 << 20)
    bomb = builders.bzimage(builders.compressed(KERNEL + bytes(40 << 20), how))
    with pytest.raises(ImageError, match="more than"):
        unpack(bomb)


def test_window_that_asks_for_gigabytes() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = packer.compress(KERNEL) + packer.flush() + struct.pack("<I", len(KERNEL))
    xz = lzma.compress(KERNEL, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}])
    for data in (payload, xz + struct.pack("<I", len(KERNEL))):
        with pytest.raises(ImageError, match="damaged"):
            unpack(builders.bzimage(data))


@pytest.mark.parametrize(
    "payload",
    [
        b"BZh91AY&SY" + bytes(20),  # a compression that is not read
        builders.compressed(b"not an ELF file" * 10, "gzip"),
        builders.compressed(KERNEL, "xz")[:-4] + b"\1\0\0\0",  # another size
        struct.pack("<II", 0x184C2102, 0) + bytes(16),  # an empty block
        struct.pack("<II", 0x184C2102, 0x7FFFFFFF) + bytes(16),  # a block beyond the end
    ],
)
def test_payload_that_lies(payload: bytes) -> None:
    with pytest.raises(ImageError):
        unpack(builders.bzimage(payload))


@pytest.mark.parametrize(("offset", "length"), [(0xFFFFFFFF, 100), (64, 0xFFFFFFFF), (64, 3)])
def test_payload_outside_the_image(offset: int, length: int) -> None:
    data = bytearray(IMAGES["gzip"])
    struct.pack_into("<II", data, 0x248, offset, length)
    with pytest.raises(ImageError, match="payload"):
        unpack(bytes(data))


def test_file_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_MAX_IMAGE", 100)
    with pytest.raises(ImageError, match="larger"):
        unpack(IMAGES["gzip"])


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=1024))
def test_arbitrary_bytes(data: bytes) -> None:
    assert data.startswith(b"\x7fELF") or refusal(lambda: unpack(data))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(IMAGES)).flatmap(lambda how: mutated(IMAGES[how])))
def test_mutated_images(data: bytes) -> None:
    assert refusal(lambda: unpack(data)) != ""
