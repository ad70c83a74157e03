# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a sparse file exist, without making any of the others exist.

lseek(2) with SEEK_DATA and SEEK_HOLE tells it of any file system that keeps holes (one that does not says
that all is data), at a cost that grows with the number of pages. mincore(2) is far cheaper for what this
process has mapped and touched before, but answers truthfully only about files that the caller may write
(mm/mincore.c, ``can_do_mincore()``); of others it says that everything is resident, so it is not asked.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable

import numpy as np

from nova_vmi_attest.introspection.memory.base import Bytes, ReaderError
from nova_vmi_attest.introspection.memory.layout import PAGE

# More runs of data than this are not told apart: what follows counts as populated.
MAX_EXTENTS = 1 << 16


def data_extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) offsets of ``descriptor`` that hold data, page-aligned; all of it where holes are not
    known.

    :raises ReaderError: the file system failed.
    """
    extents: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            if error.errno == errno.EINVAL:
                return [(0, size)]
            raise ReaderError(f"holes of the RAM file cannot be found: {error.strerror}") from error
        if start >= size:
            break
        if len(extents) >= MAX_EXTENTS:
            end = size
        extents.append((start, end))
        position = end
    return extents


def has_no_hole(descriptor: int, start: int, length: int) -> bool:
    """Whether ``length`` bytes from ``start`` are all data, inside the file."""
    try:
        return os.lseek(descriptor, start, os.SEEK_HOLE) >= start + length
    except OSError:
        return False


def tells_residency(descriptor: int) -> bool:
    """Whether mincore(2) is truthful about a file: it is to whoever may write it."""
    return os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


def is_resident(mapped: Bytes, start: int, length: int) -> bool:
    """Whether the pages of ``length`` bytes from ``start`` are in memory, in a mapping of the whole file.

    Only to be asked of a file that :func:`tells_residency`. False also means that the kernel does not say.
    """
    if not length:
        return False
    first, last = start // PAGE, (start + length - 1) // PAGE
    pages = np.empty(last - first + 1, dtype=np.uint8)
    address = mapped.ctypes.data + first * PAGE
    if _mincore()(address, len(pages) * PAGE, pages.ctypes.data):
        return False
    return bool(pages.all())


@functools.cache
def _mincore() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    function.restype = ctypes.c_int
    mincore: Callable[[int, int, int], int] = function
    return mincore
