# SPDX-License-Identifier: Apache-2.0
"""Every page that the kernel can execute is accounted for, and none of them can be written.

Explained are: kernel text; the code of modules that some view of them names (their bytes are the check
``modules``); the real-mode trampoline, whose bytes are worked out from the build; and the packs in which the
kernel keeps translated BPF programs, whose unused parts must be filler. Everything else is code that nobody
answers for: hidden modules, instruction slots of probes, trampolines of tracing.

NOT checked: the code of BPF programs. How much there is, is stated with the result.

Sources: arch/x86/realmode/init.c, kernel/bpf/core.c (bpf_prog_pack_alloc).
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.paging import PAGE, WRITABLE, Leaves
from nova_vmi_attest.introspection.structures import MODULE_LIVE, Extent

ATTEMPTS = 5
SETTLE = 0.02  # seconds
MODULE_CODE_LIMIT = 64 << 20
PACK_LIMIT = 64
PACK_SIZE = 0x200000
CHUNK = 64  # bytes of a pack that one bit of its bitmap stands for
FILLER = np.uint64(0xCCCC_CCCC_CCCC_CCCC)
NODE_LIMIT = 64
RELOCATION_LIMIT = 4096
RUN_LIMIT = 1024
LOW_MEMORY = 1 << 20


class ExecutablePages(Check):
    """See the module."""

    name = "executable_pages"
    needs = ("modules", "text")

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """Take away what is explained; what is left is not."""
        guest = context.guest
        pages = guest.space.executable()
        for va, size in _runs(pages.select((pages.flags & np.uint64(WRITABLE)) != 0)):
            findings.add(context.name(va), "executable memory that can be written", length=size, address=va)
        trampoline = self._trampoline(context, findings, pages)
        packs = self._packs(context, findings)
        explained = [*self._code(context), *([trampoline] if trampoline else []), *packs]
        left = pages.select(~_covered(pages, explained))
        for _ in range(ATTEMPTS):
            if not len(left.va) or len(left.va) > MODULE_CODE_LIMIT // PAGE:
                break  # nothing, or more than any module: that does not go away by waiting
            # A module that is being loaded or was just initialised: its code comes before its description,
            # and outlives it for as long as readers may be in it.
            time.sleep(SETTLE)
            guest.refresh()
            pages = guest.space.executable()
            left = pages.select(
                ~_covered(pages, [*explained, *self._code(context)]) & np.isin(pages.va, left.va)
            )
        for start, size in _runs(left):
            code = guest.read(start, 32)
            detail = "executable memory that nothing accounts for"
            findings.add(context.name(start), detail, length=size, address=start, actual=code)

    def _code(self, context: CheckContext) -> list[Extent]:
        """Kernel text, and the code of every module that some view has now or had when this pass began."""
        guest, structures = context.guest, context.structures
        found = [Extent("text", guest.symbol("_text"), -(-context.state.build.text.end // PAGE) * PAGE)]
        modules = {module.address: module for module in context.facts.modules}
        for address in structures.module_list():
            if address not in modules:
                modules[address] = structures.module(address)
        for module in modules.values():
            kinds = ("text",) if module.state == MODULE_LIVE else ("text", "init_text")
            for extent in module.extents:
                if extent.kind in kinds and extent.size <= MODULE_CODE_LIMIT:
                    found.append(Extent("module", extent.base, -(-extent.size // PAGE) * PAGE))
        return found

    def _trampoline(self, context: CheckContext, findings: Findings, pages: Leaves) -> Extent | None:
        """The executable pages of the real-mode trampoline, when their bytes are those of the build."""
        guest = context.guest
        low = pages.select((pages.gpa < LOW_MEMORY) & (pages.size == PAGE))
        if not len(low.va):
            return None
        start = guest.u64(guest.symbol("real_mode_header"))
        physical = guest.space.translate(start)
        if physical is None or physical >= LOW_MEMORY:
            return None
        known = context.state.trampoline
        if known is None or known[0] != physical:
            known = context.state.trampoline = physical, _real_mode(guest, physical)
        expected = known[1]
        first, last = int(low.gpa[0]), int(low.gpa[-1]) + PAGE
        if not (physical <= first and last <= physical + -(-len(expected) // PAGE) * PAGE):
            return None
        text = guest.offset("real_mode_header", "text_start")
        begin = int.from_bytes(expected[text : text + 4].tobytes(), "little")
        end = int.from_bytes(expected[text + 4 : text + 8].tobytes(), "little")
        if first != begin or not begin < end <= physical + len(expected):
            return None
        wanted = expected[begin - physical : end - physical]
        different = np.flatnonzero(guest.view(start + begin - physical, len(wanted)) != wanted)
        findings.bytes_verified += len(wanted)
        if len(different):
            at = begin - physical + int(different[0])
            findings.add("real_mode_blob", "the real-mode trampoline differs", offset=at,
            length=len(different),
                         address=start + at)  # fmt: skip
        return Extent("trampoline", start + begin - physical, last - begin)

    def _packs(self, context: CheckContext, findings: Findings) -> list[Extent]:
        """The packs of BPF programs: their unused chunks are filler."""
        guest, structures = context.guest, context.structures
        known = guest.vmlinux.btf.has("bpf_prog_pack", "ptr")
        if not guest.has_symbol("pack_list") or not known:
            return []
        offset = structures.offset
        member = offset("bpf_prog_pack", "list")
        found, programs = [], 0
        # A pack is one large page for each node that memory may have (BPF_PROG_PACK_SIZE).
        nodes = guest.u32(guest.symbol("nr_node_ids")) if guest.has_symbol("nr_node_ids") else 1
        size = PACK_SIZE * min(max(nodes, 1), NODE_LIMIT)
        for pack in guest.list_entries(guest.symbol("pack_list"), member, PACK_LIMIT):
            base = guest.u64(pack + offset("bpf_prog_pack", "ptr"))
            bitmap = guest.read(pack + offset("bpf_prog_pack", "bitmap"), size // CHUNK // 8)
            used = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(bool)
            odd = _not_filler(guest, base, size)
            odd = odd[~used[odd * 8 // CHUNK]]
            findings.bytes_verified += int(np.count_nonzero(~used)) * CHUNK
            if len(odd):
                at = base + 8 * int(odd[0])
                findings.add("bpf_prog_pack", "code in an unused part of a pack of BPF programs",
                             offset=at - base, length=8 * len(odd), address=at)  # fmt: skip
            programs += int(np.count_nonzero(used)) * CHUNK
            found.append(Extent("bpf", base, size))
        if programs:
            findings.remark(f"{programs} bytes of BPF programs, whose code is not verified")
        return found


def _not_filler(guest: Guest, base: int, size: int) -> NDArray[np.int64]:
    """The numbers of the 64-bit words of a pack of ``size`` bytes that are not filler, ascending."""
    found, start = [], 0
    pieces = guest.pieces(base, size)
    if any(len(piece) % 8 for piece in pieces):  # a base that is not aligned: not what the kernel allocates
        pieces = [np.concatenate(pieces)]
    for piece in pieces:
        words = np.ascontiguousarray(piece).view("<u8")
        found.append(np.flatnonzero(words != FILLER) + start)
        start += len(words)
    return np.concatenate(found)


def _real_mode(guest: Guest, physical: int) -> NDArray[np.uint8]:
    """The trampoline of the build as it is after its relocation to a physical address."""
    vmlinux = guest.vmlinux
    start, end = vmlinux.offset_of("real_mode_blob"), vmlinux.offset_of("real_mode_blob_end")
    table = vmlinux.offset_of("real_mode_relocs")
    blob = vmlinux.image[start:end].copy()

    def word(at: int) -> int:
        return int.from_bytes(vmlinux.image[at : at + 4].tobytes(), "little")

    for width, value in ((2, physical >> 4), (4, physical)):
        count = min(word(table), RELOCATION_LIMIT)
        for at in range(table + 4, table + 4 + 4 * count, 4):
            place = word(at)
            old = int.from_bytes(blob[place : place + width].tobytes(), "little") if width == 4 else 0
            new = (old + value) & ((1 << 8 * width) - 1)
            if place + width <= len(blob):
                blob[place : place + width] = np.frombuffer(new.to_bytes(width, "little"), np.uint8)
        table += 4 + 4 * count
    return blob


def _covered(pages: Leaves, explained: list[Extent]) -> NDArray[np.bool_]:
    """Which mappings lie wholly inside an explained extent."""
    found = np.zeros(len(pages.va), np.bool_)
    for extent in explained:
        first, last = np.searchsorted(pages.va, np.array([extent.base, extent.base + extent.size], np.uint64))
        end = np.uint64(extent.base + extent.size)
        found[first:last] |= pages.va[first:last] + pages.size[first:last] <= end
    return found


def _runs(pages: Leaves) -> list[tuple[int, int]]:
    """(address, size) of neighbouring mappings taken together, of the first :data:`RUN_LIMIT` of them."""
    if not len(pages.va):
        return []
    ends = pages.va + pages.size
    first = np.concatenate([[0], np.flatnonzero(pages.va[1:] != ends[:-1]) + 1])
    last = np.concatenate([first[1:] - 1, [len(pages.va) - 1]])
    starts = pages.va[first[:RUN_LIMIT]]
    return list(zip(starts.tolist(), (ends[last[:RUN_LIMIT]] - starts).tolist(), strict=True))
