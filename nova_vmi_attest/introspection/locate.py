# SPDX-License-Identifier: Apache-2.0
"""Finding the running kernel in guest-physical memory, with no help from the guest.

The kernel image lies at a 2 MiB boundary. At every such place two anchors of each reference are compared
with memory: the banner and the build id. A hit is only a candidate, since a guest can copy its kernel: it
counts when its relocated pointers agree on one slide, and when its own top-level page table, walked with the
number of levels that both the tables and the kernel state, maps the kernel's running address back to it.

A warm reset leaves the old kernel in memory, page tables and all. Of several candidates only the one that
the real-mode trampoline enters is taken: the running kernel overwrites that page below 1 MiB. What is left
ambiguous is not guessed.

NOT checked, because memory alone cannot tell: that the CPU's CR3 belongs to this kernel. A guest whose
running kernel has effaced both of its anchors, and which keeps a whole clean kernel with page tables and
trampoline in memory, is found by its decoy; only the CPU's registers would prove otherwise.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import Unmeasured
from nova_vmi_attest.introspection.memory.base import GuestMemory, MemoryFault
from nova_vmi_attest.introspection.paging import FRAME, PRESENT, AddressSpace
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

ALIGNMENT = 0x200000  # CONFIG_PHYSICAL_ALIGN, and the granule of the virtual slide
SLIDE_LIMIT = 1 << 30  # KERNEL_IMAGE_SIZE
SAMPLES = 200
CANDIDATE_LIMIT = 64
SEARCH_BYTES = 512 << 20
SEARCH_SECONDS = 1.0
SEARCH_CHUNK = 1 << 20
BANNER_BYTES = 512
BANNER_LIMIT = 8
SYSTEM_RUNNING = 3  # enum system_states, include/linux/kernel.h
BANNER_START = b"Linux version "
BANNER = re.compile(rb"(Linux version [0-9][\x20-\x7e]{4,480}\n)\0")


class NotFound(AttestError):  # noqa: N818 - it states an outcome
    """No kernel that can be measured, with the reason as the measurement states it."""

    def __init__(self, reason: Unmeasured, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Located:
    """Where reference ``index`` runs: physical base of ``_text``, virtual slide, page table levels."""

    index: int
    physical_base: int
    slide: int
    levels: int


def find_kernel(memory: GuestMemory, references: Sequence[Vmlinux]) -> Located:
    """The one running kernel among the references.

    :raises NotFound: none of them (reason ``NO_KERNEL``: the caller may :func:`search_banners`), one that has
        not built its page tables (``BOOTING``), or several or too many copies (``UNSUPPORTED``).
    :raises GuestGone: the guest ended meanwhile.
    """
    located, unmapped = [], 0
    for index, base in _candidates(memory, references):
        found = validate(memory, references[index], index, base)
        if found is None:
            unmapped += 1
        else:
            located.append(found)
    if len(located) > 1:
        located = [one for one in located if entered_by_trampoline(memory, references[one.index], one)]
        if len(located) != 1:
            raise NotFound(Unmeasured.UNSUPPORTED, "several kernels in memory: which one runs is not certain")
    if located:
        one = located[0]
        if unmapped and not entered_by_trampoline(memory, references[one.index], one):
            raise NotFound(Unmeasured.BOOTING, "a kernel starts over the remains of another")
        return _anchored(memory, references, one)
    if unmapped:
        raise NotFound(Unmeasured.BOOTING, "a known kernel lies in memory, but its page tables do not map it")
    raise NotFound(Unmeasured.NO_KERNEL, "no kernel of any reference in memory")


def validate(memory: GuestMemory, vmlinux: Vmlinux, index: int, base: int) -> Located | None:
    """The candidate at a physical base, or None: its pointers or its page tables do not fit."""
    try:
        slide = _slide(memory, vmlinux, base)
        if slide is None:
            return None
        root = base + vmlinux.offset_of("init_top_pgt")
        mapped = [n for n in (4, 5) if AddressSpace(memory, root, n).translate(LINK_BASE + slide) == base]
        stated = 4
        if vmlinux.symbols.get("__pgtable_l5_enabled") is not None:
            flag = memory.read(base + vmlinux.offset_of("__pgtable_l5_enabled"), 4)
            stated = 5 if any(flag) else 4
        return Located(index, base, slide, stated) if mapped == [stated] else None
    except MemoryFault:
        return None


def still_there(memory: GuestMemory, vmlinux: Vmlinux, located: Located) -> bool:
    """Whether a kernel that was found before still has its banner, and still maps itself where it was."""
    base = located.physical_base
    try:
        banner = memory.read(base + vmlinux.offset_of("linux_banner"), len(vmlinux.banner))
    except MemoryFault:
        return False
    space = AddressSpace(memory, base + vmlinux.offset_of("init_top_pgt"), located.levels)
    return banner == vmlinux.banner and space.translate(LINK_BASE + located.slide) == base


def entered_by_trampoline(memory: GuestMemory, vmlinux: Vmlinux, located: Located) -> bool:
    """Whether the real-mode trampoline's page table leads into this kernel's (arch/x86/realmode/init.c).

    The trampoline lies below 1 MiB at a place of the kernel's choice and holds a copy of the kernel's last
    top-level entry, so a kernel that started later has overwritten its predecessor's.
    """
    base = located.physical_base
    space = AddressSpace(memory, base + vmlinux.offset_of("init_top_pgt"), located.levels)
    try:
        header = int.from_bytes(memory.read(base + vmlinux.offset_of("real_mode_header"), 8), "little")
        start = space.translate(header)
        if start is None or start >= 1 << 20:
            return False
        # The boot code has turned the field into a physical address.
        field = vmlinux.btf.offset("real_mode_header", "trampoline_pgd")
        table = int.from_bytes(memory.read(start + field, 4), "little")
        if table >= 1 << 20:
            return False
        theirs = int.from_bytes(memory.read(table + 511 * 8, 8), "little")
        ours = int.from_bytes(memory.read(space.root + 511 * 8, 8), "little")
    except MemoryFault:
        return False
    return bool(ours & PRESENT) and (ours ^ theirs) & (FRAME | PRESENT) == 0


def search_banners(memory: GuestMemory) -> tuple[bytes, ...]:
    """What unknown Linux kernels in populated memory call themselves: bytes as ``linux_banner`` has them.

    A build has more than one text like it, so all are given, at most 8, printable but for the newline that
    ends them. Reads at most 512 MiB, for about one second; empty when there is none within that.
    """
    deadline = time.monotonic() + SEARCH_SECONDS
    left = SEARCH_BYTES
    found: dict[bytes, None] = {}
    for part in memory.populated():
        tail = b""
        for start in range(part.start, part.end, SEARCH_CHUNK):
            size = min(SEARCH_CHUNK, part.end - start, left)
            if size <= 0 or time.monotonic() > deadline or len(found) >= BANNER_LIMIT:
                return tuple(found)[:BANNER_LIMIT]
            try:
                data = tail + memory.read(start, size)
            except MemoryFault:
                break
            left -= size
            if BANNER_START in data:
                found.update((match[1], None) for match in BANNER.finditer(data))
            tail = data[-BANNER_BYTES:]
    return tuple(found)[:BANNER_LIMIT]


def _candidates(memory: GuestMemory, references: Sequence[Vmlinux]) -> Iterator[tuple[int, int]]:
    """(reference, physical base) wherever an anchor of a reference lies in place.

    :raises NotFound: there are more than 64. To look at the first ones only would let a guest choose which.
    """
    anchors: dict[int, list[tuple[int, bytes]]] = {}
    for index, vmlinux in enumerate(references):
        for offset, data in _anchors(vmlinux):
            anchors.setdefault(offset, []).append((index, data))
    seen: set[tuple[int, int]] = set()
    for offset, wanted in anchors.items():
        longest = max(len(data) for _, data in wanted)
        for base in _places(memory, offset, longest):
            live = memory.read(base + offset, longest)
            for index, data in wanted:
                if live.startswith(data) and (index, base) not in seen:
                    if len(seen) >= CANDIDATE_LIMIT:
                        raise NotFound(Unmeasured.UNSUPPORTED, "too many copies of known kernels in memory")
                    seen.add((index, base))
                    yield index, base


def _anchors(vmlinux: Vmlinux) -> list[tuple[int, bytes]]:
    """(offset from _text, bytes) that identify a build: its banner, and the build id in its notes."""
    found = [(vmlinux.offset_of("linux_banner"), vmlinux.banner + b"\0")]
    notes = vmlinux.section_offset(".notes")
    build_id = bytes.fromhex(vmlinux.build_id)
    if notes is not None and build_id:
        start, size = notes
        place = vmlinux.image[start : start + size].tobytes().find(build_id)
        if place >= 0:
            found.append((start + place, build_id))
    return found


def _places(memory: GuestMemory, offset: int, length: int) -> Iterator[int]:
    """2 MiB boundaries whose anchor at ``offset`` lies in populated RAM."""
    for part in memory.populated():
        first = -(-(part.start - offset) // ALIGNMENT) * ALIGNMENT
        yield from range(max(first, 0), part.end - offset - length + 1, ALIGNMENT)


def _anchored(memory: GuestMemory, references: Sequence[Vmlinux], located: Located) -> Located:
    """The same when its banner is there; a running kernel that lost it is not measured as what it was."""
    vmlinux = references[located.index]
    wanted = vmlinux.banner + b"\0"
    try:
        live = memory.read(located.physical_base + vmlinux.offset_of("linux_banner"), len(wanted))
    except MemoryFault:
        live = b""
    if live == wanted:
        return located
    detail = "a kernel with the build id of a reference runs, but its banner differs"
    raise NotFound(Unmeasured.UNKNOWN_KERNEL, detail)


def _slide(memory: GuestMemory, vmlinux: Vmlinux, base: int) -> int | None:
    """Virtual slide by majority of relocated 64-bit slots of read-only data: no single pointer decides."""
    places = vmlinux.relocations.add64
    start, end = vmlinux.offset_of("__start_rodata"), vmlinux.offset_of("__end_rodata")
    places = places[(places >= start) & (places <= end - 8)]
    places = places[:: max(1, len(places) // SAMPLES)][:SAMPLES]
    votes: Counter[int] = Counter()
    for place in places.tolist():
        linked = int.from_bytes(vmlinux.image[place : place + 8].tobytes(), "little")
        live = int.from_bytes(memory.read(base + place, 8), "little")
        votes[(live - linked) & ((1 << 64) - 1)] += 1
    if not votes:
        return None
    slide, count = votes.most_common(1)[0]
    fits = slide % ALIGNMENT == 0 and slide < SLIDE_LIMIT and 2 * count > len(places)
    return slide if fits else None
