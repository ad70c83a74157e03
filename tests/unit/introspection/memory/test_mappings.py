# SPDX-License-Identifier: Apache-2.0
"""RAM in the mappings of a process: the one place that it can be, or none."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import ReaderError
from nova_vmi_attest.introspection.memory.command_line import RamBackend
from nova_vmi_attest.introspection.memory.mappings import RamMapping, find_ram, parse_maps

SIZE = 0x10000000
# As an emulating QEMU has them: memory of the allocator ends where the RAM begins.
ANONYMOUS = """\
564526514000-5645273c7000 rw-p 00000000 00:00 0                          [heap]
7f45af07d000-7f45afe00000 rw-p 00000000 00:00 0
7f45afe00000-7f45bfe00000 rw-p 00000000 00:00 0
7f45bfe00000-7f45bfe01000 ---p 00000000 00:00 0
7f45c0000000-7f45fffff000 rwxp 00000000 00:00 0
"""
SHARED = """\
7f45afe00000-7f45b7e00000 rw-s 00000000 00:19 42                         /dev/shm/pc.ram (deleted)
7f45b7e00000-7f45bfe00000 rw-s 08000000 00:19 42                         /dev/shm/pc.ram (deleted)
7f45bfe00000-7f45bfe01000 ---p 00000000 00:00 0
"""


def test_anonymous_ram_ends_at_its_guard_page() -> None:
    assert find_ram([RamBackend("ram", SIZE)], parse_maps(ANONYMOUS)) == (
        RamMapping(0x7F45AFE00000, SIZE, 0, 0, "", False),
    )


def test_anonymous_ram_that_the_kernel_split() -> None:
    split = ANONYMOUS.replace(
        "7f45afe00000-7f45bfe00000 rw-p 00000000 00:00 0\n",
        "7f45afe00000-7f45b0000000 rw-p 00000000 00:00 0\n7f45b0000000-7f45bfe00000 rw-p 00000000 00:00 0\n",
    )
    assert find_ram([RamBackend("ram", SIZE)], parse_maps(split))[0].address == 0x7F45AFE00000


@pytest.mark.parametrize(
    "text",
    [
        ANONYMOUS.replace("7f45afe00000 rw-p", "7f45bfe00000 rw-p").replace(
            "7f45afe00000-7f45bfe00000 rw-p 00000000 00:00 0\n", ""
        ),
        ANONYMOUS.replace("---p", "r--p"),
        ANONYMOUS.replace("7f45afe00000-7f45bfe00000 rw-p", "7f45afe00000-7f45bfe00000 rwxp"),
        ANONYMOUS + ANONYMOUS.replace("7f45", "7f46"),
        "",
    ],
    ids=["merged with its neighbour", "no guard", "executable", "two of them", "none"],
)
def test_anonymous_ram_that_cannot_be_told(text: str) -> None:
    with pytest.raises(ReaderError, match="mappings of QEMU"):
        find_ram([RamBackend("ram", SIZE)], parse_maps(text))


def test_a_shared_file_is_known_by_its_path() -> None:
    backend = RamBackend("file", SIZE, "/dev/shm/pc.ram", True)
    assert find_ram([backend], parse_maps(SHARED + ANONYMOUS)) == (
        RamMapping(0x7F45AFE00000, SIZE, os.makedev(0, 0x19), 42, "/dev/shm/pc.ram (deleted)", True),
    )
    with pytest.raises(ReaderError):
        find_ram([RamBackend("file", SIZE, "/dev/shm/other")], parse_maps(SHARED))
    with pytest.raises(ReaderError):
        find_ram([backend], parse_maps(SHARED.replace("08000000", "09000000")))


def test_a_directory_stands_for_the_file_that_qemu_makes_in_it() -> None:
    text = SHARED.replace("/dev/shm/pc.ram", "/dev/hugepages/libvirt/qemu/qemu_back_mem.pc.ram.Xy3")
    found = find_ram([RamBackend("file", SIZE, "/dev/hugepages/libvirt/qemu")], parse_maps(text))
    assert found[0].inode == 42


def test_private_file_memory_has_no_inode_to_open() -> None:
    found = find_ram(
        [RamBackend("file", SIZE, "/dev/shm/pc.ram")], parse_maps(SHARED.replace("rw-s", "rw-p"))
    )
    assert (found[0].device, found[0].inode) == (0, 0)
    assert found[0].path


def test_cells_that_are_alike_are_refused() -> None:
    memfd = SHARED.replace("/dev/shm/pc.ram", "/memfd:memory-backend-memfd")
    backend = RamBackend("memfd", SIZE)
    assert find_ram([backend], parse_maps(memfd))[0].inode == 42
    with pytest.raises(ReaderError, match="told apart"):
        find_ram([backend, backend], parse_maps(memfd))
    with pytest.raises(ReaderError, match="2 mappings"):
        find_ram(
            [backend, backend], parse_maps(memfd + memfd.replace("7f45", "7f46").replace(" 42 ", " 43 "))
        )


LINES = st.sampled_from([*ANONYMOUS.splitlines(), *SHARED.splitlines()]) | st.text(max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from(["ram", "file", "memfd"]), st.integers(0, 1 << 40))
def test_any_mappings_give_typed_errors_only(lines: list[str], kind: str, size: int) -> None:
    with contextlib.suppress(AttestError):
        found = find_ram([RamBackend(kind, size, "/dev/shm/pc.ram")], parse_maps("\n".join(lines)))
        assert found[0].size == size


def test_a_file_is_known_by_its_inode_where_its_path_looks_different() -> None:
    backend = RamBackend(size=0x10000000, kind="file", path="/dev/shm/pc.ram", preallocated=False)
    text = "7f0000000000-7f0010000000 rw-s 00000000 00:1a 77 /containers/nova/dev/shm/pc.ram\n"
    mappings = parse_maps(text)
    with pytest.raises(ReaderError):
        find_ram([backend], mappings)
    with pytest.raises(ReaderError):
        find_ram([backend], mappings, lambda path: (os.makedev(0, 0x1A), 78))
    (found,) = find_ram([backend], mappings, lambda path: (os.makedev(0, 0x1A), 77))
    assert (found.address, found.inode) == (0x7F0000000000, 77)
