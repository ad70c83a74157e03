# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence.measurement import Unmeasured
from nova_vmi_attest.introspection import locate
from nova_vmi_attest.introspection.locate import Located, NotFound, find_kernel, search_banners, validate
from nova_vmi_attest.introspection.paging import LARGE, PRESENT
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .fakes import FakeBtf, FakeMemory, FakeSymbols

MIB2 = 0x200000
BANNER = b"Linux version 6.1.0-test (somebody@somewhere) #1 SMP\n"
BUILD_ID = bytes(range(20))
SLIDE = 3 * MIB2
# Offsets in the image of 64 KiB.
RODATA, RODATA_END, AT_BANNER, AT_NOTES, TOP, FLAG, HEADER = (
    0x1000,
    0x3000,
    0x3000,
    0x3800,
    0x4000,
    0x5000,
    0x5008,
)


def reference(flag: bool = True) -> Vmlinux:
    image = np.zeros(0x10000, np.uint8)
    places = np.arange(RODATA, RODATA_END, 64)
    for place in places.tolist():
        image[place : place + 8] = np.frombuffer((LINK_BASE + place).to_bytes(8, "little"), np.uint8)
    image[AT_BANNER : AT_BANNER + len(BANNER)] = np.frombuffer(BANNER, np.uint8)
    image[AT_NOTES + 16 : AT_NOTES + 36] = np.frombuffer(BUILD_ID, np.uint8)
    offsets = {
        "linux_banner": AT_BANNER,
        "init_top_pgt": TOP,
        "__start_rodata": RODATA,
        "__end_rodata": RODATA_END,
        "real_mode_header": HEADER,
    } | ({"__pgtable_l5_enabled": FLAG} if flag else {})
    return cast(
        Vmlinux,
        SimpleNamespace(
            image=image,
            symbols=FakeSymbols({name: LINK_BASE + offset for name, offset in offsets.items()}),
            btf=FakeBtf({("real_mode_header", "trampoline_pgd"): 24}),
            offset_of=lambda name: offsets[name],
            section_offset=lambda name: (AT_NOTES, 64) if name == ".notes" else None,
            relocations=SimpleNamespace(add64=places),
            banner=BANNER,
            build_id=BUILD_ID.hex(),
        ),
    )


def install(memory: FakeMemory, vmlinux: Vmlinux, base: int, slide: int = SLIDE, levels: int = 4) -> None:
    """Put a kernel into memory as it runs: moved, and mapped by its own tables behind the image."""
    image = vmlinux.image.copy()
    for place in vmlinux.relocations.add64.tolist():
        moved = int.from_bytes(image[place : place + 8].tobytes(), "little") + slide
        image[place : place + 8] = np.frombuffer(moved.to_bytes(8, "little"), np.uint8)
    memory.put(base, image.tobytes())
    table, free = base + TOP, base + 0x11000
    for level in range(levels - 1, 1, -1):
        memory.word(table + (LINK_BASE + slide >> (12 + 9 * level) & 511) * 8, free | PRESENT)
        table, free = free, free + 0x1000
    memory.word(table + (LINK_BASE + slide >> 21 & 511) * 8, base | PRESENT | LARGE)
    if levels == 5:
        memory.word(base + FLAG, 1)


def map_low_memory(memory: FakeMemory, base: int) -> None:
    """The kernel at ``base`` has its real-mode header at guest-physical 0x99000, in its direct map."""
    memory.word(base + HEADER, 0xFFFF888000099000)
    memory.word(base + TOP + 273 * 8, base + 0x20000 | PRESENT)
    memory.word(base + 0x20000, 0x21000 + base | PRESENT)
    memory.word(base + 0x21000, 0 | PRESENT | LARGE)


def enter_by_trampoline(memory: FakeMemory, base: int) -> None:
    """The trampoline's page table at guest-physical 0x9a000 leads into the kernel at ``base``."""
    memory.put(0x99000 + 24, (0x9A000).to_bytes(4, "little"))
    memory.put(0x9A000 + 511 * 8, memory.read(base + TOP + 511 * 8, 8))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("slide", [0, SLIDE])
def test_a_kernel_is_found_where_it_runs(levels: int, slide: int) -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2, slide, levels)
    assert find_kernel(memory, [vmlinux]) == Located(0, 2 * MIB2, slide, levels)


def test_a_copy_of_the_banner_does_not_win() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    memory.put(MIB2 + AT_BANNER, BANNER + b"\0")
    memory.put(2 * MIB2, vmlinux.image.tobytes())
    install(memory, vmlinux, 4 * MIB2)
    map_low_memory(memory, 4 * MIB2)
    enter_by_trampoline(memory, 4 * MIB2)
    assert find_kernel(memory, [vmlinux]).physical_base == 4 * MIB2


def test_a_kernel_that_is_unpacked_beside_a_dead_one_is_starting() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2)
    memory.put(4 * MIB2, vmlinux.image.tobytes())
    with pytest.raises(NotFound) as caught:
        find_kernel(memory, [vmlinux])
    assert caught.value.reason is Unmeasured.BOOTING


def test_a_copy_of_the_whole_kernel_is_not_guessed_away() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2)
    install(memory, vmlinux, 4 * MIB2)
    with pytest.raises(NotFound) as caught:
        find_kernel(memory, [vmlinux])
    assert caught.value.reason is Unmeasured.UNSUPPORTED


def test_the_trampoline_tells_the_running_kernel_from_a_dead_one() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    for base, slide in ((2 * MIB2, SLIDE), (4 * MIB2, 0)):
        install(memory, vmlinux, base, slide)
        map_low_memory(memory, base)
    enter_by_trampoline(memory, 4 * MIB2)
    assert find_kernel(memory, [vmlinux]) == Located(0, 4 * MIB2, 0, 4)


def test_a_kernel_that_is_not_mapped_yet_is_starting() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    memory.put(2 * MIB2, vmlinux.image.tobytes())
    with pytest.raises(NotFound) as caught:
        find_kernel(memory, [vmlinux])
    assert caught.value.reason is Unmeasured.BOOTING


def test_a_running_kernel_that_lost_its_banner_is_not_measured() -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2)
    memory.put(2 * MIB2 + AT_BANNER + 14, b"9")
    with pytest.raises(NotFound) as caught:
        find_kernel(memory, [vmlinux])
    assert caught.value.reason is Unmeasured.UNKNOWN_KERNEL


@pytest.mark.parametrize(
    ("place", "data"),
    [
        (TOP + 511 * 8, b"\0" * 8),  # no page table
        (FLAG, b"\1\0\0\0"),  # claims five levels
        (RODATA, b"\xff" * (RODATA_END - RODATA)),  # pointers that agree on nothing
    ],
)
def test_a_candidate_that_contradicts_itself_is_none(place: int, data: bytes) -> None:
    memory, vmlinux = FakeMemory(8 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2)
    assert validate(memory, vmlinux, 0, 2 * MIB2) is not None
    memory.put(2 * MIB2 + place, data)
    assert validate(memory, vmlinux, 0, 2 * MIB2) is None


def test_no_reference_no_kernel() -> None:
    memory = FakeMemory(4 * MIB2)
    for references in ([], [reference()]):
        with pytest.raises(NotFound) as caught:
            find_kernel(memory, references)
        assert caught.value.reason is Unmeasured.NO_KERNEL


def test_banners_are_printable_bounded_and_whole() -> None:
    memory = FakeMemory(4 * MIB2)
    memory.put(locate.SEARCH_CHUNK - 20, BANNER + b"\0")  # across two chunks
    memory.put(0x3000, b"Linux version \x01\x02\x03\n\0")
    memory.put(0x4000, b"Linux version 6" + b"a" * 5000)
    memory.put(0x8000, b"Linux version %s (%s)\n\0")
    assert search_banners(memory) == (BANNER,)
    for number in range(20):
        memory.put(0x10000 + 64 * number, b"Linux version 6.%02d something\n\0" % number)
    assert len(search_banners(memory)) == locate.BANNER_LIMIT


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=16, max_size=512), st.integers(0, 0x6000))
def test_random_and_damaged_memory_is_unmeasured_or_the_kernel(noise: bytes, at: int) -> None:
    memory, vmlinux = FakeMemory(4 * MIB2), reference()
    install(memory, vmlinux, 2 * MIB2)
    memory.put(2 * MIB2 + at, noise)
    with suppress(NotFound):
        assert find_kernel(memory, [vmlinux]).physical_base == 2 * MIB2


def test_copies_in_front_do_not_decide_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "CANDIDATE_LIMIT", 3)
    memory, vmlinux = FakeMemory(12 * MIB2), reference()
    for number in range(4):
        memory.put(number * MIB2 + AT_BANNER, BANNER + b"\0")
    install(memory, vmlinux, 8 * MIB2)
    with pytest.raises(NotFound) as caught:
        find_kernel(memory, [vmlinux])
    assert caught.value.reason is Unmeasured.UNSUPPORTED
