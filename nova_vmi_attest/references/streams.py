# SPDX-License-Identifier: Apache-2.0
"""Compressed data of packages, unpacked as it is read and never beyond a bound.

A few kilobytes of package can unpack to terabytes, and a reader that is told a wrong size asks for all of it
at once. So every stream here counts what it gives, refuses to give more than a bound in all and at once, and
turns each library's own errors into :class:`PackageError`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from typing import BinaryIO, Protocol

import zstandard

from nova_vmi_attest.errors import AttestError

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"

_MAX_DECODER_MEMORY = 256 << 20
_PIECE = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class PackageError(AttestError):
    """A kernel package cannot be read, or does not hold exactly one kernel and its modules."""


class Readable(Protocol):
    """The part of a binary file that the decompressors use."""

    def read(self, size: int = -1, /) -> bytes: ...


class Slice(io.RawIOBase):
    """``size`` bytes of a seekable file from ``start``, as a file that is read forward."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._next = start
        self._end = start + size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._next
        self._file.seek(self._next)
        data = self._file.read(left if size < 0 else min(size, left))
        self._next += len(data)
        return data


class Forward:
    """An unpacked stream that is only read forward, with the few methods that tarfile needs.

    :param limit: the most bytes to give in all.
    :param at_once: the most bytes to give in one read.
    """

    def __init__(self, source: Readable, limit: int, at_once: int) -> None:
        self._source = source
        self._limit = limit
        self._at_once = at_once
        self._position = 0

    def tell(self) -> int:
        """How many bytes were read or skipped."""
        return self._position

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end. Raises PackageError: damaged, or beyond a bound."""
        if not 0 <= size <= self._at_once:
            raise PackageError(f"the package holds an item of {size} bytes, more than is accepted")
        pieces = []
        while size > 0:
            piece = self._some(min(size, _PIECE))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def seek(self, position: int) -> None:
        """Skip forward to ``position``. Raises PackageError, also for a step back."""
        if position < self._position:
            raise PackageError("the package's contents are not in order")
        while self._position < position and self._some(min(position - self._position, _PIECE)):
            pass

    def _some(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except _DAMAGE as error:
            raise PackageError(f"the package is damaged: {error}") from error
        self._position += len(data)
        if self._position > self._limit:
            raise PackageError(f"the package unpacks to more than {self._limit} bytes")
        return data


class _XzReader:
    """An xz stream as a file. The standard library's own takes no bound on the dictionary's memory."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._decoder = lzma.LZMADecompressor(memlimit=_MAX_DECODER_MEMORY)

    def read(self, size: int = -1, /) -> bytes:
        while not self._decoder.eof:
            data = self._source.read(_PIECE) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not data:
                raise EOFError("it is cut off")
            unpacked = self._decoder.decompress(data, size)
            if unpacked:
                return unpacked
        return b""


def unpacked(source: Slice | io.BytesIO, magic: bytes, limit: int, at_once: int) -> Forward:
    """The unpacked contents of ``source``, which begins with ``magic`` (not consumed); see Forward.

    What begins like none of gzip, xz and zstd is given as it is.
    """
    reader: Readable = source
    if magic.startswith(GZIP):
        reader = gzip.GzipFile(fileobj=source, mode="rb")
    elif magic.startswith(XZ):
        reader = _XzReader(source)
    elif magic.startswith(ZSTD):
        decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_DECODER_MEMORY)
        reader = decoder.stream_reader(source, read_across_frames=True)  # type: ignore[arg-type]  # it only reads
    return Forward(reader, limit, at_once)


def unpack_whole(data: bytes, limit: int) -> bytes:
    """``data`` unpacked when it is compressed, else as it is.

    Raises PackageError when damaged or beyond ``limit``.
    """
    if not data.startswith((GZIP, XZ, ZSTD)):
        return data
    return unpacked(io.BytesIO(data), data[:6], limit, limit + 1).read(limit + 1)
