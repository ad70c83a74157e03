# SPDX-License-Identifier: Apache-2.0
"""The exact text that a running kernel must have: its build, moved, and patched as it patches itself.

The mechanisms run in the kernel's own order (arch/x86/kernel/alternative.c, alternative_instructions,
explains why it matters; ftrace, static branches and static calls come later). The result is what memory
must hold as long as the live inputs keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nova_vmi_attest.kernel.vmlinux import LINK_BASE, Vmlinux

from . import alternatives, jump_labels, mcount, paravirt, retpolines, returns, smp_locks, static_calls
from .inputs import LiveInputs, LiveKernel, ReplaySource, signed
from .patching import MAX_TABLE_BYTES, Bytes, Patching, Region, ReplayError, Table

SHF_EXECINSTR = 4
TRAMPOLINE_NAME, KEY_NAME = "__SCT__", "__SCK__"

# A table of the kernel is a section, or lies between two symbols of its linker script.
SECTIONS = (".parainstructions", ".retpoline_sites", ".return_sites", ".altinstructions", ".smp_locks")
BOUNDED = {
    "__mcount_loc": ("__start_mcount_loc", "__stop_mcount_loc"),
    "__jump_table": ("__start___jump_table", "__stop___jump_table"),
    ".static_call_sites": ("__start_static_call_sites", "__stop_static_call_sites"),
}

MECHANISMS: tuple[Callable[[Patching], None], ...] = (
    paravirt.apply,
    retpolines.apply,
    returns.apply,
    alternatives.apply,
    smp_locks.apply,
    mcount.apply,
    jump_labels.apply,
    static_calls.apply,
)


@dataclass(frozen=True, slots=True)
class Replayed:
    """``image``: the expected bytes from _text to _etext; ``owner``: the Mechanism that wrote each one."""

    image: Bytes
    owner: Bytes
    inputs: LiveInputs


def replay_kernel(source: ReplaySource, vmlinux: Vmlinux) -> Replayed:
    """Compute the text of the kernel that ``source`` reads.

    The reference is trusted. The guest decides nothing but through ``inputs``, which are NOT validated here.

    :raises ReplayError: the reference's tables are malformed, or of a generation without rules.
    :raises GuestGone: the guest ended meanwhile.
    """
    kernel = LiveKernel(source, vmlinux)
    text_size = vmlinux.offset_of("_etext")
    pieces, regions = _code(vmlinux, kernel.slide, text_size)
    patching = Patching(
        np.concatenate(pieces), regions, _tables(vmlinux, kernel.slide), kernel, list(_trampolines(kernel))
    )
    for mechanism in MECHANISMS:
        mechanism(patching)
    image, owner = patching.image[:text_size].copy(), patching.owner[:text_size].copy()
    image.setflags(write=False)
    owner.setflags(write=False)
    return Replayed(image, owner, kernel.inputs())


def _code(vmlinux: Vmlinux, slide: int, text_size: int) -> tuple[list[Bytes], list[Region]]:
    """The text, then every other executable section: replacements are patched before they are copied."""
    base = signed(LINK_BASE + slide)
    pieces = [vmlinux.relocated(slide, 0, text_size)]
    regions = [Region("text", base, text_size, 0)]
    filled = text_size
    for name, section in vmlinux.sections.items():
        place = vmlinux.section_offset(name)
        if place is None or not section.flags & SHF_EXECINSTR or place[0] < text_size:
            continue
        offset, size = place
        pieces.append(vmlinux.relocated(slide, offset, offset + size))
        regions.append(Region(name, base + offset, size, filled, lockable=False, kept=False))
        filled += size
    return pieces, regions


def _tables(vmlinux: Vmlinux, slide: int) -> dict[str, Table]:
    places = {name: vmlinux.section_offset(name) for name in SECTIONS}
    for name, (first, last) in BOUNDED.items():
        start, end = vmlinux.symbols.get(first), vmlinux.symbols.get(last)
        places[name] = None if start is None or end is None else (start - LINK_BASE, end - start)
    found = {}
    for name, place in places.items():
        if place is None:
            continue
        offset, size = place
        if not 0 <= size <= MAX_TABLE_BYTES or not 0 <= offset <= len(vmlinux.image) - size:
            raise ReplayError(f"patch table {name} is not inside the kernel image")
        data = vmlinux.relocated(slide, offset, offset + size)
        found[name] = Table(signed(LINK_BASE + slide + offset), data)
    return found


def _trampolines(kernel: LiveKernel) -> Iterator[tuple[int, int]]:
    """The static call trampolines that have a key: they lie together, between two symbols of the linker."""
    symbols = kernel.vmlinux.symbols
    start, end = symbols.get("__static_call_text_start"), symbols.get("__static_call_text_end")
    if start is None or end is None:
        return
    first, last = np.searchsorted(symbols.starts, np.array([start, end], np.uint64))
    for address in np.unique(symbols.starts[first:last]).tolist():
        for name in symbols.names_at(address):
            key = kernel.symbol(KEY_NAME + name.removeprefix(TRAMPOLINE_NAME))
            if name.startswith(TRAMPOLINE_NAME) and key is not None:
                yield signed(address + kernel.slide), signed(key)
