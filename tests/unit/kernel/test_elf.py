# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel.elf import SHT_NOBITS, ElfImage, ImageError, c_string

from . import builders
from .mutation import mutated, refusal

IMAGE = builders.vmlinux()
TAIL = builders.relocation_tail([0x20, builders.RODATA_AT + 0x80], [0x40], [0x10, 0x31])


def test_sections_and_segments() -> None:
    elf = ElfImage.parse(IMAGE)
    assert list(elf.sections) == ["", ".text", ".rodata", ".BTF", ".notes", ".bss", ".shstrtab"]
    assert elf.sections[".text"].address == builders.LINK_BASE
    assert elf.sections[".text"].index == 1
    assert elf.sections[".bss"].type == SHT_NOBITS
    assert elf.sections[".bss"].size == builders.BSS_SIZE
    assert [(s.physical, s.memory_size) for s in elf.segments] == [
        (builders.PHYSICAL_BASE, 0x6000 + builders.BSS_SIZE)
    ]


def test_end_is_where_the_relocations_begin() -> None:
    assert IMAGE[ElfImage.parse(IMAGE).end :] == TAIL


def test_contents_of_a_section() -> None:
    elf = ElfImage.parse(IMAGE)
    assert bytes(elf.contents(IMAGE, ".BTF")) == builders.btf()
    for name in (".bss", ".absent"):
        with pytest.raises(ImageError, match="no contents"):
            elf.contents(IMAGE, name)


def test_build_id() -> None:
    assert ElfImage.parse(IMAGE).build_id(IMAGE) == builders.BUILD_ID.hex()


def test_build_id_behind_other_notes() -> None:
    other = struct.pack("<III", 6, 5, 1) + b"Linux\0\0\0" + b"12345\0\0\0"
    wanted = struct.pack("<III", 4, 20, 3) + b"GNU\0" + builders.BUILD_ID
    data = builders.elf([builders.Part(".note", other + wanted, builders.NOTE)])
    assert ElfImage.parse(data).build_id(data) == builders.BUILD_ID.hex()


@pytest.mark.parametrize(
    "note",
    [
        b"",
        struct.pack("<III", 4, 0xFFFFFFFF, 3) + b"GNU\0",
        struct.pack("<III", 4, 20, 3) + b"GNU\0short",
        struct.pack("<III", 0xFFFFFFFF, 20, 3) + b"GNU\0",
    ],
)
def test_no_build_id(note: bytes) -> None:
    data = builders.elf([builders.Part(".note", note, builders.NOTE)])
    with pytest.raises(ImageError, match="build id"):
        ElfImage.parse(data).build_id(data)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (4, b"\x01"),  # 32-bit
        (18, b"\x03\0"),  # another machine
        (40, b"\xff" * 8),  # sections outside of the file
        (58, b"\x00\x01"),  # section headers of another size
        (60, b"\xff\xff"),  # more sections than the file has room for
        (62, b"\xfe\x00"),  # names in a section that does not exist
        (62, b"\x00\x00"),  # names in no section
        (32, b"\xf0" * 8),  # segments outside of the file
    ],
)
def test_header_that_lies(offset: int, value: bytes) -> None:
    data = bytearray(IMAGE)
    data[offset : offset + len(value)] = value
    with pytest.raises(ImageError):
        ElfImage.parse(bytes(data))


def test_section_outside_the_file() -> None:
    (at,) = struct.unpack_from("<Q", IMAGE, 40)
    data = bytearray(IMAGE)
    struct.pack_into("<Q", data, at + 64 + 32, 1 << 62)
    with pytest.raises(ImageError, match="beyond"):
        ElfImage.parse(bytes(data))


def test_load_segment_outside_the_file() -> None:
    data = bytearray(IMAGE)
    struct.pack_into("<Q", data, 64 + 32, 1 << 40)
    with pytest.raises(ImageError, match="load segment"):
        ElfImage.parse(bytes(data))


def test_strings() -> None:
    assert c_string(b"ab\0cd\0", 3) == "cd"
    for data, offset in ((b"ab\0", 3), (b"ab\0", -1), (b"abc", 0), (b"\xff\0", 0), (b"a" * 600 + b"\0", 0)):
        with pytest.raises(ImageError):
            c_string(data, offset)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(ImageError):
        ElfImage.parse(data)


@settings(max_examples=100, deadline=None)
@given(mutated(IMAGE, around=(0, 200)))
def test_mutated_headers(data: bytes) -> None:
    assert refusal(lambda: ElfImage.parse(data).build_id(data)) != ""
