# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.elf import ImageError
from nova_vmi_attest.kernel.kallsyms import SymbolError
from nova_vmi_attest.kernel.vmlinux import LINK_BASE, Vmlinux

from . import builders
from .mutation import mutated, refusal

KERNEL = builders.vmlinux()
SLIDE = 0x2000000


@pytest.fixture(scope="module")
def vmlinux() -> Vmlinux:
    return Vmlinux.load(builders.boot_image())


def test_identity(vmlinux: Vmlinux) -> None:
    assert vmlinux.banner == builders.BANNER
    assert vmlinux.release == builders.RELEASE
    assert vmlinux.build_id == builders.BUILD_ID.hex()
    assert vmlinux.symbols["_text"] == LINK_BASE
    assert vmlinux.btf.offset("task_struct", "tasks") == 16
    assert vmlinux.sections[".text"].size == builders.TEXT_SIZE


def test_image_is_laid_out_as_in_memory(vmlinux: Vmlinux) -> None:
    assert len(vmlinux.image) == 0x6000 + builders.BSS_SIZE
    assert vmlinux.image[:4].tolist() == [0, 1, 2, 3]
    at = vmlinux.offset_of("linux_banner")
    assert vmlinux.image[at : at + len(builders.BANNER)].tobytes() == builders.BANNER
    assert not vmlinux.image[0x6000:].any()


def test_image_cannot_be_written(vmlinux: Vmlinux) -> None:
    with pytest.raises(ValueError, match="read-only"):
        vmlinux.image[0] = 1


def test_offsets(vmlinux: Vmlinux) -> None:
    assert vmlinux.offset_of("_etext") == builders.TEXT_SIZE
    assert vmlinux.offset_of("do_work") == 0x10
    with pytest.raises(SymbolError):
        vmlinux.offset_of("absent")
    with pytest.raises(ImageError, match="not in the kernel's image"):
        vmlinux.offset_of("cpu_number")  # a per-CPU symbol has no place in the image


def test_section_offsets(vmlinux: Vmlinux) -> None:
    assert vmlinux.section_offset(".text") == (0, builders.TEXT_SIZE)
    assert vmlinux.section_offset(".bss") == (0x6000, builders.BSS_SIZE)
    assert vmlinux.section_offset(".absent") is None
    assert vmlinux.section_offset(".BTF") is None  # here it has no place in memory


def test_relocated(vmlinux: Vmlinux) -> None:
    whole = vmlinux.image.copy()
    vmlinux.relocations.apply(whole, SLIDE)
    assert (whole != vmlinux.image).any()
    for start, end in ((0, len(whole)), (0, 0), (0x12, 0x13), (0x22, 0x30), (0x33, 0x1083), (0x5FFF, 0x9000)):
        assert (vmlinux.relocated(SLIDE, start, end) == whole[start:end]).all()
    assert vmlinux.relocated(SLIDE, 0, 16).flags.writeable
    assert (vmlinux.relocated(0, 0, 64) == vmlinux.image[:64]).all()


def test_relocated_outside_the_image(vmlinux: Vmlinux) -> None:
    for start, end in ((-1, 4), (4, 3), (0, len(vmlinux.image) + 1)):
        with pytest.raises(ImageError, match="not inside"):
            vmlinux.relocated(SLIDE, start, end)


def _segment(memory_size: int | None = None, physical: int | None = None) -> bytes:
    data = bytearray(KERNEL)
    if physical is not None:
        struct.pack_into("<Q", data, 64 + 24, physical)
    if memory_size is not None:
        struct.pack_into("<Q", data, 64 + 40, memory_size)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        _segment(memory_size=1 << 40),
        _segment(memory_size=(1 << 64) - 1),
        _segment(physical=0),
        _segment(physical=1 << 60),
        builders.elf([builders.Part(".text", b"\x90")]),
        KERNEL[:-4] + struct.pack("<I", 0x8100FFFF),  # a relocation beyond the image
        KERNEL.replace(b"Linux version 6", b"Minix version 6"),
        KERNEL.replace(b"Linux version 6", b"Linux version \xff"),
        KERNEL.replace(b"\x9f\xeb\x01", b"\0\0\0"),  # no types
        KERNEL.replace(b".rodata", b".rabata"),
        KERNEL.replace(b"T_text", b"T_test"),
    ],
)
def test_malformed(data: bytes) -> None:
    assert data != KERNEL
    with pytest.raises(AttestError):
        Vmlinux.load(data)


def test_kernel_linked_elsewhere() -> None:
    at = KERNEL.index(struct.pack("<QQ", LINK_BASE, 10))
    data = KERNEL[:at] + struct.pack("<Q", LINK_BASE + 0x1000) + KERNEL[at + 8 :]
    with pytest.raises(ImageError, match="linked"):
        Vmlinux.load(data)


def test_two_kernels_do_not_share_memory() -> None:
    one, other = Vmlinux.load(KERNEL), Vmlinux.load(KERNEL)
    assert not np.shares_memory(one.image, other.image)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=100), mutated(KERNEL), mutated(KERNEL, around=(0x1070, len(KERNEL)))))
def test_mutated(data: bytes) -> None:
    assert refusal(lambda: Vmlinux.load(data)) != ""
