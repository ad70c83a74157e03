# SPDX-License-Identifier: Apache-2.0
"""RAM inside the QEMU process, by process_vm_readv(2): the way to anonymous RAM, and it reads every other
kind too.

What is read is what QEMU sees at the addresses that hold the guest's RAM, private copies of pages included.
Reading a page that the guest never touched finds the kernel's zero page and allocates nothing for anonymous
RAM; for RAM in a shared file it would allocate the page, so there the file's own readers are to be preferred.

The process is held by a pidfd, looked at after every read: a number that was given to another process in
between is noticed, and what was read is thrown away. Needs the right to ptrace QEMU (root, or its user with
CAP_SYS_PTRACE).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np

from nova_vmi_attest.introspection.memory.base import (
    Bytes,
    GuestGone,
    GuestMemory,
    MemoryRange,
    ReaderError,
    Suitability,
)
from nova_vmi_attest.introspection.memory.domain import DomainMemory, Source
from nova_vmi_attest.introspection.memory.layout import PAGE, clip
from nova_vmi_attest.introspection.memory.mappings import RamMapping
from nova_vmi_attest.introspection.memory.qemu import QemuProcess
from nova_vmi_attest.introspection.memory.sparse import MAX_EXTENTS

CHUNK = 1 << 20

# An entry of /proc/PID/pagemap is 64 bits; these say that the page is in RAM or in swap
# (admin-guide/mm/pagemap.rst).
_IN_RAM_OR_SWAP = np.uint64(3 << 62)
_PAGEMAP_ENTRIES = 1 << 17


class _IoVector(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class ProcessMemory(GuestMemory):
    """Reads the RAM of one guest in its QEMU process. Takes over ``process``."""

    name = "process"

    def __init__(
        self, ranges: Sequence[MemoryRange], mappings: Sequence[RamMapping], process: QemuProcess
    ) -> None:
        super().__init__(ranges)
        self._mappings = tuple(mappings)
        self._process = process

    @classmethod
    def suitability(cls, domain: DomainMemory) -> Suitability:
        """Fits whatever QEMU maps once and in one piece; the only choice for RAM that is private to QEMU."""
        for backend in domain.backends:
            alike = [other for other in domain.backends if other.size == backend.size]
            if backend.source is not Source.FILE and len(alike) > 1:
                return Suitability(0, "NUMA cells of the same size without a file cannot be told apart")
        if domain.shared_files:
            return Suitability(20, "RAM is a shared file, read in the QEMU process")
        return Suitability(50, "RAM is private to the QEMU process and read there")

    @classmethod
    def open(cls, domain: DomainMemory) -> Self:
        """Find the RAM in the domain's QEMU process.

        :raises ReaderError: it cannot be told exactly where it is, or may not be read; also the errors of
            :meth:`~.domain.DomainMemory.ranges`.
        :raises GuestGone: the domain has no QEMU process.
        """
        ranges = domain.ranges()
        process = QemuProcess.of(domain)
        try:
            memory = cls(ranges, process.ram(domain), process)
            memory.read(ranges[0].start, 1)
            return memory
        except BaseException:
            process.close()
            raise

    def begin_pass(self) -> None:
        super().begin_pass()
        self.end_pass()

    def end_pass(self) -> None:
        super().end_pass()
        self._process.check()

    def read(self, address: int, length: int) -> bytes:
        return self.view(address, length).tobytes()

    def view(self, address: int, length: int) -> Bytes:
        """The same bytes as an array of their own: a snapshot, taken in pieces of a MiB."""
        offset = self.locate(address, length)
        self.bytes_read += length
        data: Bytes = np.empty(length, dtype=np.uint8)
        position = 0
        for start, count in self._pieces(offset, length):
            self._copy(data[position : position + count], start)
            position += count
        self._process.check()
        data.flags.writeable = False
        return data

    def populated(self) -> tuple[MemoryRange, ...]:
        """As QEMU's page tables say. RAM in a file counts as populated: its pages need not be in them."""
        extents: list[tuple[int, int]] = []
        base = 0
        for mapping in self._mappings:
            whole = [(0, mapping.size)]
            found = whole if mapping.path else self._present(mapping)
            extents += ((base + start, base + end) for start, end in found)
            base += mapping.size
        self._process.check()
        return clip(self.ranges, extents)

    def close(self) -> None:
        self._process.close()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where ``length`` bytes at ``offset`` of the RAM are in the process: (address, length)."""
        base = 0
        for mapping in self._mappings:
            start, end = max(offset, base), min(offset + length, base + mapping.size)
            if start < end:
                yield mapping.address + start - base, end - start
            base += mapping.size

    def _copy(self, target: Bytes, source: int) -> None:
        local, remote = _IoVector(), _IoVector()
        done = 0
        while done < len(target):
            count = min(CHUNK, len(target) - done)
            local.base, local.length = target.ctypes.data + done, count
            remote.base, remote.length = source + done, count
            # Fewer bytes than asked for are no error: the next call says what is wrong with the rest.
            got = _process_vm_readv()(self._process.pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
            if got <= 0:
                self._refuse(ctypes.get_errno() if got else errno.EFAULT, source + done)
            done += got

    def _refuse(self, code: int, address: int) -> None:
        self._process.check()
        if code == errno.ESRCH:
            raise GuestGone(f"QEMU process {self._process.pid} has ended")
        remedy = "run the agent as root or with CAP_SYS_PTRACE" if code == errno.EPERM else ""
        raise ReaderError(
            f"QEMU process {self._process.pid} cannot be read at {address:#x}: {os.strerror(code)}", remedy
        )

    def _present(self, mapping: RamMapping) -> list[tuple[int, int]]:
        """The offsets in ``mapping`` that QEMU has pages for; all of them if the kernel does not tell."""
        extents: list[tuple[int, int]] = []
        entries, first = mapping.size // PAGE, mapping.address // PAGE
        try:
            with open(f"/proc/{self._process.pid}/pagemap", "rb", buffering=0) as pagemap:
                for index in range(0, entries, _PAGEMAP_ENTRIES):
                    count = min(_PAGEMAP_ENTRIES, entries - index)
                    data = os.pread(pagemap.fileno(), count * 8, (first + index) * 8)
                    if len(data) != count * 8:
                        return [(0, mapping.size)]
                    present = (np.frombuffer(data, dtype="<u8") & _IN_RAM_OR_SWAP) != 0
                    _append_runs(extents, present, index)
                    if len(extents) > MAX_EXTENTS:
                        return [*extents[:MAX_EXTENTS], (extents[MAX_EXTENTS][0], mapping.size)]
        except OSError:
            return [(0, mapping.size)]
        return extents


def _append_runs(extents: list[tuple[int, int]], present: np.ndarray, index: int) -> None:
    """Add the runs of true in ``present``, which begins with page ``index``; what is adjacent is joined."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], present, [False])).astype(np.int8)))
    for start, end in ((edges + index) * PAGE).reshape(-1, 2).tolist():
        if extents and extents[-1][1] == start:
            extents[-1] = (extents[-1][0], end)
        else:
            extents.append((start, end))


@functools.cache
def _process_vm_readv() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    vector = ctypes.POINTER(_IoVector)
    function.argtypes = (ctypes.c_int, vector, ctypes.c_ulong, vector, ctypes.c_ulong, ctypes.c_ulong)
    function.restype = ctypes.c_ssize_t
    readv: Callable[..., int] = function
    return readv
