# SPDX-License-Identifier: Apache-2.0
"""RAM files: nothing is populated by reading, and a file that is cut is an error instead of a signal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nova_vmi_attest.introspection.memory.base import GuestGone, MemoryFault, MemoryRange, ReaderError
from nova_vmi_attest.introspection.memory.layout import guest_ranges
from nova_vmi_attest.introspection.memory.libvmi import LibvmiMemory
from nova_vmi_attest.introspection.memory.ram_file import RamFile, RamFileMemory, RamFiles

MIB = 1 << 20
SIZE = 16 * MIB
Opener = Callable[..., RamFiles]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """16 MiB, of which two pages at 4 MiB and one at 12 MiB hold data."""
    path = tmp_path / "ram"
    with open(path, "wb") as file:
        file.truncate(SIZE)
        file.seek(4 * MIB)
        file.write(bytes(range(256)) * 32)
        file.seek(12 * MIB)
        file.write(b"\xaa" * 4096)
    return path


@pytest.fixture(params=[RamFileMemory, LibvmiMemory])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    opened: list[RamFiles] = []

    def open_files(*paths: Path) -> RamFiles:
        files = [RamFile(os.open(path, os.O_RDONLY), path.stat().st_size) for path in paths]
        opened.append(request.param(guest_ranges("pc", sum(file.size for file in files)), files))
        return opened[-1]

    yield open_files
    for memory in opened:
        memory.close()


def test_bytes_and_holes(opener: Opener, path: Path) -> None:
    memory = opener(path)
    memory.begin_pass()
    data = path.read_bytes()
    for start, length in [
        (4 * MIB - 8, 4096),
        (4 * MIB, 8192),
        (12 * MIB, 1),
        (MIB, 15 * MIB),
        (SIZE - 1, 1),
        (0, 0),
    ]:
        assert memory.read(start, length) == data[start : start + length]
        assert memory.view(start, length).tobytes() == data[start : start + length]
        assert not memory.view(start, length).flags.writeable
    memory.begin_pass()
    assert memory.bytes_read == 0
    memory.read(MIB, 100)
    memory.view(4 * MIB, 8)
    assert memory.bytes_read == 108


def test_reading_populates_nothing(opener: Opener, path: Path) -> None:
    before = path.stat().st_blocks
    memory = opener(path)
    for address in range(MIB, SIZE, 4096):
        memory.read(address, 8)
        assert memory.view(address, 4096).shape == (4096,)
    assert memory.view(MIB, 15 * MIB).shape == (15 * MIB,)
    assert path.stat().st_blocks == before


def test_populated_ranges(opener: Opener, path: Path) -> None:
    memory = opener(path)
    assert memory.populated() == (
        MemoryRange(4 * MIB, 4 * MIB + 8192, 4 * MIB),
        MemoryRange(12 * MIB, 12 * MIB + 4096, 12 * MIB),
    )


def test_files_follow_each_other(opener: Opener, path: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(b"\xbb" * 4 * MIB)
    memory = opener(path, second)
    expected = path.read_bytes() + second.read_bytes()
    for start, length in [(SIZE - 4096, 8192), (SIZE, 16), (SIZE - 1, 1), (MIB, 19 * MIB)]:
        assert memory.read(start, length) == expected[start : start + length]
        assert memory.view(start, length).tobytes() == expected[start : start + length]
    assert memory.populated()[-1] == MemoryRange(SIZE, SIZE + 4 * MIB, SIZE)


def test_a_new_pass_sees_what_changed(opener: Opener, path: Path) -> None:
    memory = opener(path)
    assert memory.read(4 * MIB, 4) == b"\0\1\2\3"
    with open(path, "r+b") as file:
        file.seek(4 * MIB)
        file.write(b"LIVE")
    memory.begin_pass()
    assert memory.read(4 * MIB, 4) == b"LIVE"
    assert memory.view(4 * MIB, 4).tobytes() == b"LIVE"


def test_a_file_that_was_cut(opener: Opener, path: Path) -> None:
    memory = opener(path)
    assert memory.view(4 * MIB, 4096)[3] == 3
    os.truncate(path, 8 * MIB)
    for address in (12 * MIB, 8 * MIB - 8):
        with pytest.raises(ReaderError):
            memory.read(address, 4096)
        with pytest.raises(ReaderError):
            memory.view(address, 4096)
    with pytest.raises(ReaderError, match="shorter"):
        memory.begin_pass()


def test_a_closed_reader(opener: Opener, path: Path) -> None:
    memory = opener(path)
    view = memory.view(4 * MIB, 16)
    memory.close()
    memory.close()
    assert view[3] == 3
    for use in (memory.begin_pass, memory.end_pass, lambda: memory.read(MIB, 1), lambda: memory.view(MIB, 1)):
        with pytest.raises(GuestGone):
            use()


@pytest.mark.parametrize(
    ("address", "length"), [(0xA0000, 1), (SIZE, 1), (-1, 1), (1 << 64, 8), (MIB, 1 << 70), (MIB, -1)]
)
def test_only_ram_is_read(opener: Opener, path: Path, address: int, length: int) -> None:
    memory = opener(path)
    with pytest.raises(MemoryFault):
        memory.read(address, length)
    with pytest.raises(MemoryFault):
        memory.view(address, length)
    assert memory.bytes_read == 0


def test_a_huge_page_file_is_not_mapped_unless_it_was_allocated(path: Path) -> None:
    memory = RamFileMemory(
        guest_ranges("pc", SIZE), [RamFile(os.open(path, os.O_RDONLY), SIZE, mappable=False)]
    )
    view = memory.view(4 * MIB, 4)
    with open(path, "r+b") as file:
        file.seek(4 * MIB)
        file.write(b"LIVE")
    assert view.tobytes() == b"\0\1\2\3"
    memory.close()
