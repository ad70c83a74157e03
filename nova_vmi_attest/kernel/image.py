# SPDX-License-Identifier: Apache-2.0
"""Unpack a boot image: bzImage in, the kernel's ELF file and the KASLR relocation table behind it out.

Nothing is executed and nothing is trusted: what comes out is as hostile as what went in, but never larger
than :data:`MAX_UNPACKED`.

Source: Documentation/arch/x86/boot.rst (boot protocol 2.08 and later); scripts/Makefile.lib for the
compressions.
"""

from __future__ import annotations

import lzma
import struct
import zlib

import lz4.block
import zstandard

from nova_vmi_attest.kernel.elf import MAGIC, ImageError

__all__ = ["MAX_UNPACKED", "ImageError", "unpack"]

MAX_UNPACKED = 512 << 20

_MAX_IMAGE = 256 << 20
_MAX_DECODER_MEMORY = 256 << 20
_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD = 0x248
_LZ4_LEGACY = 0x184C2102
_LZ4_BLOCK = 8 << 20
_LZ4_MAX_BLOCKS = 1024


def unpack(image: bytes) -> bytes:
    """The ELF file of a kernel and the relocation table behind it, from a bzImage (or that file itself).

    :raises ImageError: not a boot image, a compression that is not known, damaged, or larger than
        MAX_UNPACKED.
    """
    if len(image) > _MAX_IMAGE and not (image.startswith(MAGIC) and len(image) <= MAX_UNPACKED):
        raise ImageError(f"a kernel image of {len(image)} bytes is larger than any that is accepted")
    if image.startswith(MAGIC):
        return image
    payload = _payload(image)
    data = _decompress(payload)
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size != len(data):
        raise ImageError(f"the payload says that it holds {size} bytes, but it unpacks to {len(data)}")
    if not data.startswith(MAGIC):
        raise ImageError("the payload of the boot image is not an ELF file")
    return data


def _payload(image: bytes) -> bytes:
    """The compressed kernel inside a bzImage; its last four bytes are the unpacked size."""
    if len(image) < _PAYLOAD + 8 or image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError("this is neither a bzImage nor an ELF file")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTS] or 4) + 1) * 512 + offset
    if length < 16 or start + length > len(image):
        raise ImageError(
            f"the payload ({length} bytes at {start}) is not inside the image of {len(image)} bytes"
        )
    return image[start : start + length]


def _decompress(payload: bytes) -> bytes:
    try:
        if payload.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(31).decompress(payload, MAX_UNPACKED + 1)
        elif payload.startswith(b"\xfd7zXZ\0"):
            data = lzma.LZMADecompressor(memlimit=_MAX_DECODER_MEMORY).decompress(payload, MAX_UNPACKED + 1)
        elif payload.startswith(b"\x28\xb5\x2f\xfd"):
            data = _zstd(payload)
        elif payload.startswith(struct.pack("<I", _LZ4_LEGACY)):
            data = _lz4(payload)
        else:
            raise ImageError(
                f"the kernel is compressed in a way that is not known (it begins {payload[:6].hex()})",
                "gzip, xz, lz4 and zstd are read",
            )
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError, EOFError) as error:
        raise ImageError(f"the compressed kernel is damaged: {error}") from error
    except MemoryError as error:
        raise ImageError("the compressed kernel asks for more memory than there is") from error
    if len(data) > MAX_UNPACKED:
        raise ImageError(f"the kernel unpacks to more than {MAX_UNPACKED} bytes")
    return data


def _zstd(payload: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_DECODER_MEMORY)
    with decompressor.stream_reader(payload, read_across_frames=False) as reader:
        return reader.read(MAX_UNPACKED + 1)


def _lz4(payload: bytes) -> bytes:
    """LZ4 legacy: a magic word that may repeat, then blocks of 8 MiB (u32 size, then data)."""
    blocks: list[bytes] = []
    total = 0
    at = 4
    end = len(payload) - 4
    while at + 4 <= end:
        (size,) = struct.unpack_from("<I", payload, at)
        at += 4
        if size == _LZ4_LEGACY:
            continue
        if size == 0 or at + size > end or len(blocks) >= _LZ4_MAX_BLOCKS:
            raise ImageError(f"the LZ4 block at offset {at} of the payload is malformed")
        blocks.append(lz4.block.decompress(payload[at : at + size], uncompressed_size=_LZ4_BLOCK))
        total += len(blocks[-1])
        if total > MAX_UNPACKED:
            raise ImageError(f"the kernel unpacks to more than {MAX_UNPACKED} bytes")
        at += size
    return b"".join(blocks)
