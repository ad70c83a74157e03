# SPDX-License-Identifier: Apache-2.0
"""Dumps: ELF cores and raw images, and that no file does harm."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    MemoryFault,
    MemoryRange,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.domain import Backend, DomainMemory, Source
from nova_vmi_attest.introspection.memory.dump import DumpError, DumpMemory

MIB = 1 << 20
LOAD, NOTE = 1, 4


def core(
    segments: Sequence[tuple[int, int, bytes]],
    *,
    extended: bool = False,
    header: dict[int, int] | None = None,
) -> bytes:
    """An ELF core of (type, guest-physical address, bytes) segments; ``header`` replaces fields by number."""
    table = 64 + (64 if extended else 0)
    count = 0xFFFF if extended else len(segments)
    fields = [b"\x7fELF\x02\x01\x01" + bytes(9), 4, 62, 1, 0, table, 64 if extended else 0, 0, 64, 56, count]
    fields += [64 if extended else 0, 1 if extended else 0, 0]
    for index, value in (header or {}).items():
        fields[index] = value
    out = struct.pack("<16sHHIQQQIHHHHHH", *fields)
    if extended:
        out += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, len(segments), 0, 0)
    offset = table + 56 * len(segments)
    for kind, address, data in segments:
        out += struct.pack("<IIQQQQQQ", kind, 0, offset, 0, address, len(data), len(data), 0)
        offset += len(data)
    return out + b"".join(data for _, _, data in segments)


PAGES = [bytes([value]) * 4096 for value in range(8)]
SAMPLE = core(
    [
        (NOTE, 0, b"note"), (LOAD, 4 << 30, PAGES[4]), (LOAD, 0x9F000, PAGES[1] + PAGES[2]),
        (LOAD, 0x100000, PAGES[3]), (LOAD, 0x101000, PAGES[5]),
        (LOAD, 0xFFFC0000, PAGES[6]), (LOAD, 0x200000, b""),
    ]
)  # fmt: skip


def opened(tmp_path: Path, data: bytes, machine: str = "pc", size: int | None = None) -> DumpMemory:
    path = tmp_path / "dump"
    path.write_bytes(data)
    return DumpMemory.of_file(path, machine, size)


@pytest.mark.parametrize("extended", [False, True])
def test_a_core_says_what_it_holds(tmp_path: Path, extended: bool) -> None:
    segments = [(LOAD, 4 << 30, PAGES[4]), (LOAD, 0x9F000, PAGES[1] + PAGES[2]), (LOAD, 0x100000, PAGES[3])]
    memory = opened(tmp_path, core(segments, extended=extended))
    assert [(part.start, part.end) for part in memory.ranges] == [
        (0x9F000, 0xA0000),
        (0x100000, 0x101000),
        (4 << 30, (4 << 30) + 4096),
    ]
    memory.begin_pass()
    assert memory.read(0x9F000, 4096) == PAGES[1]
    assert memory.view(4 << 30, 4096).tobytes() == PAGES[4]
    for address in (0xA0000, 0x101000, 0):
        with pytest.raises(MemoryFault):
            memory.read(address, 1)
    memory.close()


def test_neighbouring_segments_are_one_range(tmp_path: Path) -> None:
    memory = opened(tmp_path, SAMPLE)
    assert memory.read(0x100FF8, 16) == PAGES[3][:8] + PAGES[5][:8]
    memory.close()


def test_only_ram_counts_when_the_size_is_known(tmp_path: Path) -> None:
    everything = opened(tmp_path, SAMPLE)
    assert everything.read(0xFFFC0000, 1) == PAGES[6][:1]
    memory = opened(tmp_path, SAMPLE, "pc-i440fx-7.2", 0xE0001000)
    with pytest.raises(MemoryFault):
        memory.read(0xFFFC0000, 1)
    assert memory.read(4 << 30, 4096) == PAGES[4]
    everything.close()
    memory.close()


def test_a_raw_image_is_laid_out_like_the_guest(tmp_path: Path) -> None:
    data = bytes(MIB) + os.urandom(MIB)
    memory = opened(tmp_path, data, "pc-q35-7.2", len(data))
    assert memory.ranges[-1] == MemoryRange(MIB, 2 * MIB, MIB)
    assert memory.read(MIB, MIB) == data[MIB:]
    memory.close()


def test_a_guest_cannot_make_its_raw_image_a_core(tmp_path: Path) -> None:
    data = SAMPLE + bytes(2 * MIB - len(SAMPLE))
    memory = opened(tmp_path, data, "pc", len(data))
    assert memory.ranges[-1] == MemoryRange(MIB, 2 * MIB, MIB)
    memory.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF",
        SAMPLE[:70],
        SAMPLE[:-1],
        core([]),
        core([(NOTE, 0, b"note")]),
        core([(LOAD, 0xA0000, PAGES[0])]),
        core([(LOAD, 0x100000, b"part of a page")]),
        core([(LOAD, 0x100001, PAGES[0])]),
        core([(LOAD, (1 << 64) - 4096, PAGES[0])]),
        core([(LOAD, 0x100000, PAGES[0] * 2), (LOAD, 0x101000, PAGES[1])]),
        core([(LOAD, 0x100000, PAGES[0])], header={1: 2}),
        core([(LOAD, 0x100000, PAGES[0])], header={2: 183}),
        core([(LOAD, 0x100000, PAGES[0])], header={5: (1 << 64) - 1}),
        core([(LOAD, 0x100000, PAGES[0])], header={9: 0}),
        core([(LOAD, 0x100000, PAGES[0])], header={10: 0xFFFF}),
        core([(LOAD, 0x100000, PAGES[0])], extended=True, header={6: (1 << 64) - 1}),
        core([(LOAD, 0x100000, PAGES[0])], extended=True, header={6: 0}),
        core([(LOAD, 0x100000, PAGES[0])], extended=True, header={11: 0}),
    ],
)
def test_cores_that_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DumpError):
        opened(tmp_path, data)


def test_files_that_are_no_dump(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "absent", "nul\0byte"):
        with pytest.raises(DumpError):
            DumpMemory.of_file(path)
    with pytest.raises(DumpError, match="no ELF core"):
        opened(tmp_path, bytes(2 * MIB), "pc", 4 * MIB)
    for machine, data in (("pc", b""), ("pc", bytes(2 * MIB + 1)), ("microvm", bytes(2 * MIB))):
        with pytest.raises(UnsupportedLayout):
            opened(tmp_path, data, machine)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_domain_is_checked_before_its_dump_is_opened(tmp_path: Path) -> None:
    backends = (Backend(2 * MIB, Source.ANONYMOUS, False),)
    domain = DomainMemory(uuid.uuid4(), "guest", "pc", 2 * MIB, backends, running=False)
    with pytest.raises(DumpError):
        DumpMemory.open(domain)
    path = tmp_path / "raw"
    path.write_bytes(bytes(2 * MIB))
    given_dump = DomainMemory(domain.uuid, "guest", "pc", 2 * MIB, backends, running=False, dump=str(path))
    memory = DumpMemory.open(given_dump)
    assert memory.read(MIB, 4) == bytes(4)
    memory.close()
    protected = DomainMemory(domain.uuid, "guest", "pc", 2 * MIB, backends, encrypted="sev", dump=str(path))
    with pytest.raises(EncryptedMemory):
        DumpMemory.open(protected)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(0, len(SAMPLE)),
    st.sampled_from([None, 256 * MIB]),
)
def test_mutated_cores_give_typed_errors_only(
    changes: list[tuple[int, bytes]], length: int, size: int | None
) -> None:
    data = bytearray(SAMPLE)
    for offset, change in changes:
        data[offset : offset + len(change)] = change
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(AttestError):
        memory = opened(Path(directory), bytes(data[: length or None]), size=size)
        for part in memory.ranges:
            assert len(memory.read(part.start, part.end - part.start)) == part.end - part.start
        memory.close()
