# SPDX-License-Identifier: Apache-2.0
"""RAM lies where QEMU puts it; what is not known is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.memory.base import MemoryRange, UnsupportedLayout
from nova_vmi_attest.introspection.memory.layout import ABOVE_4G, GIB, clip, guest_ranges, machine_family

MIB = 1 << 20


@pytest.mark.parametrize(
    ("machine", "size", "low"),
    [
        ("pc", 0xE0000000 - MIB, 0xE0000000 - MIB),
        ("pc", 0xE0000000, 0xC0000000),
        ("pc", 5 * GIB, 0xC0000000),
        ("q35", 0xB0000000 - MIB, 0xB0000000 - MIB),
        ("q35", 0xB0000000, 0x80000000),
        ("q35", 5 * GIB, 0x80000000),
    ],
)
def test_ram_is_split_at_the_pci_hole(machine: str, size: int, low: int) -> None:
    ranges = guest_ranges(machine, size)
    assert ranges[:2] == (MemoryRange(0, 0xA0000, 0), MemoryRange(0x100000, low, 0x100000))
    high = (MemoryRange(ABOVE_4G, ABOVE_4G + size - low, low),)
    assert ranges[2:] == (high if size > low else ())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["pc", "q35"]), st.integers(257, 900 << 18))
def test_ranges_cover_all_ram_but_the_legacy_area(machine: str, pages: int) -> None:
    ranges = guest_ranges(machine, pages << 12)
    assert sum(part.end - part.start for part in ranges) == (pages << 12) - 0x60000
    for last, part in itertools.pairwise(ranges):
        assert last.end <= part.start
        assert last.offset + last.end - last.start <= part.offset


@pytest.mark.parametrize("size", [-4096, 0, 4096, 1 << 20, (256 << 20) + 1, 1012 * GIB, 1 << 60])
def test_sizes_that_cannot_be_laid_out_are_refused(size: int) -> None:
    with pytest.raises(UnsupportedLayout):
        guest_ranges("pc", size)


def test_whatever_could_reach_the_hypertransport_hole_is_refused() -> None:
    assert guest_ranges("q35", 960 * GIB)
    for more in ({"hotplug": 64 * GIB}, {"pci_window": 128 * GIB}, {"hotplug": -1}, {"pci_window": -1}):
        with pytest.raises(UnsupportedLayout):
            guest_ranges("q35", 960 * GIB, **more)
    with pytest.raises(UnsupportedLayout):
        guest_ranges("q35", 256 << 20, pci_window=1024 * GIB)


@pytest.mark.parametrize(
    ("machine", "family"),
    [
        ("pc", "pc"), ("q35", "q35"), ("pc-i440fx-2.0", "pc"), ("pc-i440fx-7.2", "pc"),
        ("pc-i440fx-10.1", "pc"),
        ("pc-q35-7.2", "q35"), ("pc-q35-4.0.1", "q35"), ("pc-q35-rhel9.4.0", "q35"),
        ("pc-i440fx-rhel7.6.0", "pc"), ("pc-i440fx-jammy", "pc"), ("pc-q35-noble-v2", "q35"),
    ],
)  # fmt: skip
def test_machine_types(machine: str, family: str) -> None:
    assert machine_family(machine) == family


@pytest.mark.parametrize(
    "machine",
    [
        "",
        "microvm",
        "isapc",
        "xenfv",
        "virt",
        "pc-1.0",
        "pc-i440fx-1.7",
        "pc-i440fx-rhel6.6.0",
        "pc-q35-",
        "pc-q35-7",
    ],
)
def test_other_machine_types_are_refused(machine: str) -> None:
    with pytest.raises(UnsupportedLayout):
        machine_family(machine)
    with pytest.raises(UnsupportedLayout):
        guest_ranges(machine, 256 << 20)


def test_clip_maps_offsets_to_addresses() -> None:
    ranges = guest_ranges("pc", 4 * GIB)
    extents = [(0x9F000, 0x101000), (0xC0000000 - 4096, 0xC0000000 + 4096)]
    assert clip(ranges, extents) == (
        MemoryRange(0x9F000, 0xA0000, 0x9F000),
        MemoryRange(0x100000, 0x101000, 0x100000),
        MemoryRange(0xC0000000 - 4096, 0xC0000000, 0xC0000000 - 4096),
        MemoryRange(ABOVE_4G, ABOVE_4G + 4096, 0xC0000000),
    )
