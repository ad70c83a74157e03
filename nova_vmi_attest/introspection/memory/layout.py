# SPDX-License-Identifier: Apache-2.0
"""Where QEMU puts the RAM of an x86 guest in guest-physical memory.

RAM is one run of bytes (one backend, or the backends of the NUMA cells end to end). The machine maps its
first part from address 0 and, when it is too large to fit below the PCI hole, the rest from 4 GiB. The rules
are those of ``pc_init1()`` in hw/i386/pc_piix.c and ``pc_q35_init()`` in hw/i386/pc_q35.c, unchanged from
QEMU 2.0 to 10:

==========  ==================  =====================
machine     split when RAM is   RAM below 4 GiB then
==========  ==================  =====================
i440fx pc   >= 0xe0000000       0xc0000000
q35         >= 0xb0000000       0x80000000
==========  ==================  =====================

What is left out, because the CPU may see other bytes there: 0xa0000-0xfffff. The first half is the VGA
window, whose backing bytes only system management mode reaches; the second is switched between ROM and RAM by
the guest (PAM registers). A guest could keep clean bytes in the backing and run others.

NOT checked: device windows that a guest moves over its RAM (local APIC, PCIe configuration space, TSEG).
Their content is device registers or all ones, not bytes that a guest can choose freely.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nova_vmi_attest.introspection.memory.base import MemoryRange, UnsupportedLayout

GIB = 1 << 30
ABOVE_4G = 4 * GIB
PAGE = 4096

LEGACY_START = 0xA0000
LEGACY_END = 0x100000

# First address of the HyperTransport hole. A machine with an AMD CPU moves all RAM above 4 GiB to 1 TiB when
# anything at all would lie in it (pc_set_amd_above_4g_mem_start() in hw/i386/pc.c); whether it does depends
# on the CPU model, the machine version and the address bits, so no guest that could reach it is read.
HYPERTRANSPORT_START = 0xFD_0000_0000

# machine family: (RAM size from which it is split, RAM below 4 GiB when it is split, default 64-bit PCI
# window)
_SPLIT = {
    "pc": (0xE0000000, 0xC0000000, 2 * GIB),
    "q35": (0xB0000000, 0x80000000, 32 * GIB),
}

# i440fx machines before 2.0, and what vendors derived from them, split at 3.5 GiB (no gigabyte alignment).
_I440FX = re.compile(
    r"pc-i440fx-(?:(?P<version>[1-9]\d?)\.\d+|rhel(?P<rhel>\d+)\.\d+(?:\.\d+)?|[a-z]+(?:-[a-z0-9]+)*)"
)
_Q35 = re.compile(r"pc-q35-(?:[1-9]\d?\.\d+(?:\.\d+)?|rhel\d+\.\d+(?:\.\d+)?|[a-z]+(?:-[a-z0-9]+)*)")


def machine_family(machine: str) -> str:
    """``"pc"`` or ``"q35"`` for a machine type as libvirt and QEMU write it, e.g. ``pc-i440fx-7.2``.

    :raises UnsupportedLayout: another machine type, or a version whose layout differs.
    """
    if machine in _SPLIT:
        return machine
    if found := _I440FX.fullmatch(machine):
        if int(found["version"] or 2) >= 2 and int(found["rhel"] or 7) >= 7:
            return "pc"
    elif _Q35.fullmatch(machine):
        return "q35"
    raise UnsupportedLayout(
        f"machine type {machine[:64]!r} has no known memory layout", "use an i440fx or q35 machine type"
    )


def guest_ranges(
    machine: str, size: int, *, hotplug: int = 0, pci_window: int | None = None
) -> tuple[MemoryRange, ...]:
    """The guest-physical ranges of ``size`` bytes of RAM; offsets are into the RAM as one run of bytes.

    :param machine: ``"pc"`` or ``"q35"``, see :func:`machine_family`.
    :param hotplug: bytes of address space that the machine reserves for memory devices, none of them plugged.
    :param pci_window: bytes of the 64-bit PCI window; ``None`` for the machine's default.
    :raises UnsupportedLayout: an unknown machine, a size that is no whole number of pages or not over 1
        MiB, or addresses that would reach the HyperTransport hole below 1 TiB.
    """
    if machine not in _SPLIT:
        raise UnsupportedLayout(f"machine {machine[:64]!r} has no known memory layout")
    split_from, split_at, default_window = _SPLIT[machine]
    if size <= LEGACY_END or size % PAGE:
        raise UnsupportedLayout(f"RAM of {size} bytes cannot be laid out")
    low = size if size < split_from else split_at
    window = default_window if pci_window is None else pci_window
    reach = ABOVE_4G + (size - low) + hotplug + window + 2 * GIB  # both areas begin at a whole GiB
    if hotplug < 0 or window < 0 or reach > HYPERTRANSPORT_START:
        raise UnsupportedLayout(
            f"addresses of a guest with {size} bytes of RAM reach the area below 1 TiB that AMD CPUs reserve"
        )
    ranges = [MemoryRange(0, LEGACY_START, 0), MemoryRange(LEGACY_END, low, LEGACY_END)]
    if low < size:
        ranges.append(MemoryRange(ABOVE_4G, ABOVE_4G + size - low, low))
    return tuple(ranges)


def clip(ranges: Sequence[MemoryRange], extents: Sequence[tuple[int, int]]) -> tuple[MemoryRange, ...]:
    """The parts of ``ranges`` whose backing bytes lie in ``extents``, ascending (start, end) pairs of
    offsets.
    """
    parts = []
    for ram in ranges:
        last = ram.offset + ram.end - ram.start
        for start, end in extents:
            first, until = max(start, ram.offset), min(end, last)
            if first < until:
                shift = ram.start - ram.offset
                parts.append(MemoryRange(first + shift, until + shift, first))
    return tuple(parts)
