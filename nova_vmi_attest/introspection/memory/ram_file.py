# SPDX-License-Identifier: Apache-2.0
"""RAM that QEMU shares through a file: a tmpfs or hugetlbfs file, or a memfd.

Two ways to the same bytes. ``read`` copies with pread(2), which finds zeros in a hole of the file and leaves
the hole alone. ``view`` maps: no copy, but touching a hole would allocate it, and touching what cannot be
allocated (a full tmpfs, a file that was cut) raises SIGBUS, which no Python code survives. So a view
asks first (see :mod:`.sparse`), and copies unless every byte of it is allocated and inside the file.

Trusted: QEMU and root. Whoever else may write the file can only alter it, as the guest can; cutting it needs
QEMU's user. libvirt unlinks the file when the guest stops; the inode, and the RAM of the host that it
occupies, last until the reader is closed. NOT covered: a file that is cut, or a page that is discarded, in
the instant between the check and the use of a view, and a memory error of the host's hardware: these end the
process.
"""

from __future__ import annotations

import abc
import contextlib
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, Self

import numpy as np

from nova_vmi_attest.introspection.memory.base import (
    Bytes,
    GuestGone,
    GuestMemory,
    MemoryRange,
    ReaderError,
    Suitability,
)
from nova_vmi_attest.introspection.memory.domain import DomainMemory
from nova_vmi_attest.introspection.memory.layout import clip
from nova_vmi_attest.introspection.memory.mappings import RamMapping
from nova_vmi_attest.introspection.memory.qemu import QemuProcess
from nova_vmi_attest.introspection.memory.sparse import (
    data_extents,
    has_no_hole,
    is_resident,
    tells_residency,
)

_HUGE_PAGE = 2 << 20


@dataclass(frozen=True, slots=True)
class RamFile:
    """An open file that holds ``size`` bytes of RAM from its start; ``mappable`` if its holes can be told."""

    descriptor: int
    size: int
    mappable: bool = True


class RamFiles(GuestMemory):
    """What every reader of RAM files shares: the open files, end to end, and the process that they belong to.

    A subclass says how bytes are got out of one file, in :meth:`_fetch`.
    """

    def __init__(
        self, ranges: Sequence[MemoryRange], files: Sequence[RamFile], process: QemuProcess | None = None
    ) -> None:
        """Take over the descriptors and ``process``, which is None for files that no guest uses."""
        super().__init__(ranges)
        self._files = tuple(files)
        self._process = process

    @classmethod
    def open(cls, domain: DomainMemory) -> Self:
        """Open the very files that the domain's QEMU has mapped as its RAM.

        :raises ReaderError: RAM is not a shared file or cannot be opened; also the errors of
            :meth:`~.domain.DomainMemory.ranges`.
        :raises GuestGone: the domain has no QEMU process.
        """
        ranges = domain.ranges()
        process = QemuProcess.of(domain)
        files: list[RamFile] = []
        try:
            for mapping in process.ram(domain):
                files.append(open_ram_file(process, mapping))
            return cls(ranges, files, process)
        except BaseException:
            for file in files:
                os.close(file.descriptor)
            process.close()
            raise

    def begin_pass(self) -> None:
        super().begin_pass()
        self.end_pass()
        for file in self._files:
            if os.fstat(file.descriptor).st_size < file.size:
                raise ReaderError("a RAM file is shorter than the guest's RAM")

    def end_pass(self) -> None:
        super().end_pass()
        if not self._files:
            raise GuestGone("the reader is closed")
        if self._process is not None:
            self._process.check()

    def read(self, address: int, length: int) -> bytes:
        pieces = list(self._pieces(self.locate(address, length), length))
        self.bytes_read += length
        if len(pieces) == 1:
            return self._fetch(*pieces[0])
        return b"".join(self._fetch(*piece) for piece in pieces)

    def populated(self) -> tuple[MemoryRange, ...]:
        extents: list[tuple[int, int]] = []
        base = 0
        for file in self._files:
            extents += ((base + start, base + end) for start, end in data_extents(file.descriptor, file.size))
            base += file.size
        return clip(self.ranges, extents)

    def close(self) -> None:
        for file in self._files:
            os.close(file.descriptor)
        self._files = ()
        if self._process is not None:
            self._process.close()

    @abc.abstractmethod
    def _fetch(self, index: int, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset`` of file number ``index``, all inside it when it was opened."""

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The files that ``length`` bytes at ``offset`` of the RAM are in: (index, offset in it, length)."""
        if not self._files:
            raise GuestGone("the reader is closed")
        base = 0
        for index, file in enumerate(self._files):
            start, end = max(offset, base), min(offset + length, base + file.size)
            if start < end:
                yield index, start - base, end - start
            base += file.size

    def _failed(self, message: str) -> NoReturn:
        """A read failed: because the guest ended, or for the reason that ``message`` gives."""
        self.end_pass()
        raise ReaderError(message)


class RamFileMemory(RamFiles):
    """Reads RAM files by pread(2) and, for what is allocated, through one read-only mapping of each."""

    name = "ram_file"

    def __init__(
        self, ranges: Sequence[MemoryRange], files: Sequence[RamFile], process: QemuProcess | None = None
    ) -> None:
        super().__init__(ranges, files, process)
        self._maps: dict[int, tuple[mmap.mmap, Bytes]] = {}
        self._told: dict[int, bool] = {}  # whether residency of a file is told, asked once a pass

    @classmethod
    def suitability(cls, domain: DomainMemory) -> Suitability:
        """Fits when every backend is a file or memfd that QEMU shares."""
        if domain.shared_files:
            kinds = sorted({backend.source.value for backend in domain.backends})
            return Suitability(100, f"RAM is a shared {' and '.join(kinds)}, mapped without a copy")
        return Suitability(0, "RAM is not a shared file")

    def begin_pass(self) -> None:
        super().begin_pass()
        self._told.clear()

    def view(self, address: int, length: int) -> Bytes:
        pieces = list(self._pieces(self.locate(address, length), length))
        if len(pieces) == 1 and self._is_allocated(*pieces[0]):
            index, start, count = pieces[0]
            self.bytes_read += length
            return self._mapped(index)[start : start + count]
        return super().view(address, length)

    def read(self, address: int, length: int) -> bytes:
        if len(self._files) != 1:
            return super().read(address, length)
        offset = self.locate(address, length)
        self.bytes_read += length
        return self._fetch(0, offset, length)

    def close(self) -> None:
        while self._maps:
            mapped = self._maps.popitem()[1][0]
            with contextlib.suppress(BufferError):  # a view is still held: the last of them ends the mapping
                mapped.close()
        super().close()

    def _fetch(self, index: int, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                data = os.pread(self._files[index].descriptor, length, offset)
            except OSError as error:
                self._failed(f"a RAM file cannot be read at {offset:#x}: {error.strerror}")
            if len(data) == length and not parts:
                return data
            if not data:
                self._failed(f"a RAM file was cut before {offset:#x}")
            parts.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(parts)

    def _is_allocated(self, index: int, start: int, length: int) -> bool:
        file = self._files[index]
        if not file.mappable:
            return False
        if index not in self._told:
            self._told[index] = tells_residency(file.descriptor)
        if self._told[index] and is_resident(self._mapped(index), start, length):
            return True
        return has_no_hole(file.descriptor, start, length)

    def _mapped(self, index: int) -> Bytes:
        if index not in self._maps:
            file = self._files[index]
            try:
                mapped = mmap.mmap(file.descriptor, file.size, mmap.MAP_SHARED, mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise ReaderError(f"a RAM file cannot be mapped: {error}") from error
            self._maps[index] = mapped, np.frombuffer(mapped, dtype=np.uint8)
        return self._maps[index][1]


def open_ram_file(process: QemuProcess, mapping: RamMapping) -> RamFile:
    """Open the very file that QEMU has mapped: by its path, or if that was deleted, through QEMU's
    descriptors.

    :raises ReaderError: it is not a shared file, or no path leads to its inode.
    """
    if not mapping.inode:
        raise ReaderError(
            "the guest's RAM is private to QEMU, not a shared file", "set memoryBacking access mode shared"
        )
    for path in _candidates(process, mapping):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) == (mapping.device, mapping.inode) and stat.S_ISREG(found.st_mode):
            if found.st_size < mapping.size:
                os.close(descriptor)
                raise ReaderError("the RAM file is shorter than the guest's RAM")
            # hugetlbfs shows no holes: there, only what QEMU allocated in advance is safe to touch.
            mappable = found.st_blksize < _HUGE_PAGE or mapping.preallocated
            return RamFile(descriptor, mapping.size, mappable)
        os.close(descriptor)
    process.check()
    raise ReaderError(f"the RAM file of QEMU process {process.pid} cannot be opened", "run the agent as root")


def _candidates(process: QemuProcess, mapping: RamMapping) -> Iterator[str]:
    yield mapping.path
    directory = f"/proc/{process.pid}/fd"
    try:
        yield from (f"{directory}/{entry}" for entry in os.listdir(directory))
    except OSError:
        return
