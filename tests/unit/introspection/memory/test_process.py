# SPDX-License-Identifier: Apache-2.0
"""Reading another process's memory, here our own; and knowing a QEMU process from any other."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import uuid

import pytest

from nova_vmi_attest.introspection.memory.base import GuestGone, MemoryFault, MemoryRange, ReaderError
from nova_vmi_attest.introspection.memory.domain import Backend, DomainMemory, Source
from nova_vmi_attest.introspection.memory.layout import guest_ranges
from nova_vmi_attest.introspection.memory.mappings import RamMapping
from nova_vmi_attest.introspection.memory.process import ProcessMemory
from nova_vmi_attest.introspection.memory.qemu import QemuProcess

MIB = 1 << 20
SIZE = 16 * MIB


class ThisProcess(QemuProcess):
    """Stands for QEMU: the checks that it is one are not made, everything else is."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        self._pidfd = os.pidfd_open(self.pid)
        self.arguments = []


@pytest.fixture
def ram() -> tuple[mmap.mmap, int]:
    area = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def mapping(address: int, size: int = SIZE, path: str = "") -> RamMapping:
    return RamMapping(address, size, 0, 0, path, False)


def test_bytes_and_populated_pages(ram: tuple[mmap.mmap, int]) -> None:
    area, address = ram
    area[4 * MIB : 4 * MIB + 8192] = bytes(range(256)) * 32
    memory = ProcessMemory(guest_ranges("pc", SIZE), [mapping(address)], ThisProcess())
    memory.begin_pass()
    assert memory.populated() == (MemoryRange(4 * MIB, 4 * MIB + 8192, 4 * MIB),)
    for start, length in [(4 * MIB - 8, 4096), (MIB, 3 * MIB + 5), (SIZE - 1, 1), (0, 0)]:
        assert memory.read(start, length) == area[start : start + length]
        assert memory.view(start, length).tobytes() == area[start : start + length]
        assert not memory.view(start, length).flags.writeable
    with pytest.raises(MemoryFault):
        memory.read(0xA0000, 1)
    memory.end_pass()
    memory.close()
    memory.close()
    with pytest.raises(GuestGone):
        memory.begin_pass()


def test_mappings_follow_each_other(ram: tuple[mmap.mmap, int]) -> None:
    area, address = ram
    area[8 * MIB - 2 : 8 * MIB + 2] = b"edge"
    halves = [mapping(address + 8 * MIB, 8 * MIB), mapping(address, 8 * MIB, path="/file")]
    memory = ProcessMemory(guest_ranges("pc", SIZE), halves, ThisProcess())
    assert memory.read(SIZE - 2, 2) == b"ed"
    area[0:4] = b"half"
    assert memory.read(8 * MIB - 2, 4) == b"\0\0ha"
    # What lies in a file counts as populated, whatever the page tables of the process hold.
    assert memory.populated()[-1].end == SIZE
    memory.close()


def test_memory_that_is_not_there_any_more(ram: tuple[mmap.mmap, int]) -> None:
    memory = ProcessMemory(guest_ranges("pc", SIZE), [mapping(4096)], ThisProcess())
    with pytest.raises(ReaderError, match="Bad address"):
        memory.read(MIB, 8)
    memory.close()


def test_a_process_that_ended() -> None:
    child = subprocess.Popen(["sleep", "60"])
    memory = ProcessMemory(guest_ranges("pc", SIZE), [mapping(4096)], ThisProcess(child.pid))
    child.kill()
    # A zombie still has its number; it has no memory.
    with open(f"/proc/{child.pid}/stat") as stat:
        while stat.read().split()[2] != "Z":
            stat.seek(0)
    for use in (memory.begin_pass, memory.end_pass, memory.populated, lambda: memory.read(MIB, 8)):
        with pytest.raises(GuestGone):
            use()
    child.wait()
    memory.close()


def domain(pid: int | None = None) -> DomainMemory:
    backends = (Backend(SIZE, Source.ANONYMOUS, False),)
    return DomainMemory(uuid.uuid4(), "guest", "pc", SIZE, backends, pid=pid)


def test_other_processes_are_not_qemu() -> None:
    with pytest.raises(ReaderError, match="is not QEMU"):
        QemuProcess(os.getpid())
    with pytest.raises(ReaderError, match="is not QEMU"):
        ProcessMemory.open(domain(os.getpid()))


@pytest.mark.parametrize("pid", [2**22 + 1, 2**40, None])
def test_processes_that_do_not_exist(pid: int | None) -> None:
    with pytest.raises(GuestGone):
        ProcessMemory.open(domain(pid))
