# SPDX-License-Identifier: Apache-2.0
"""The exact bytes that a loaded module must have: its file, linked where it runs, and patched as the kernel
is.

Code is exact to the last byte, and so is read-only data but for the tables that the kernel reorders or
marks when it loads them; :data:`INEXACT` lists those with the reason. Initialisation sections are freed and
not looked at.

Source: kernel/module/main.c (load_module), arch/x86/kernel/module.c (module_finalize).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nova_vmi_attest.kernel.module import ModuleObject
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .inputs import LiveInputs, LiveKernel, ReplaySource, signed
from .layout import Placed, place
from .linking import Linker
from .patching import Bytes, Patching, Region, Table
from .sorting import SORTED
from .text import KEY_NAME, MECHANISMS, SECTIONS, TRAMPOLINE_NAME

PAGE = 4096
TABLES = (*SECTIONS, "__mcount_loc", "__jump_table", ".static_call_sites")

# Sections without the write flag that loading changes, and how.
INEXACT: Mapping[str, str] = {
    ".orc_unwind_ip": "sorted when the module is loaded, in an order that is not unique",
    ".orc_unwind": "sorted when the module is loaded, in an order that is not unique",
    "__jump_table": "sorted when the module is loaded, and sites of initialisation code are marked",
    ".static_call_sites": "sorted when the module is loaded, and sites of initialisation code are marked",
}


@dataclass(frozen=True, slots=True)
class ReplayedSection:
    """``expected`` bytes (read-only) at the unsigned running ``address``.

    ``owner`` is the Mechanism that wrote each byte, empty for data. ``name`` is "" for the zeros between
    and after sections of code, which lie in executable pages too.
    """

    name: str
    address: int
    executable: bool
    expected: Bytes
    owner: Bytes


@dataclass(frozen=True, slots=True)
class ReplayedModule:
    """``sections`` by address; ``inexact``: (name, reason) of read-only sections that are not among them.

    ``unresolved`` names symbols (or sections) that a relocation of ``sections`` needed and nothing defined,
    and ``overflowed`` relocations whose value does not fit: with either, the bytes they decide will not
    match.
    """

    name: str
    sections: tuple[ReplayedSection, ...]
    inexact: tuple[tuple[str, str], ...]
    unresolved: tuple[str, ...]
    overflowed: tuple[tuple[str, int], ...]
    inputs: LiveInputs


def replay_module(
    source: ReplaySource,
    vmlinux: Vmlinux,
    module: ModuleObject,
    addresses: Mapping[str, int],
    resolve: Callable[[str], int | None],
) -> ReplayedModule:
    """Compute the code and read-only data of one loaded module.

    :param addresses: section name -> running address, as the guest says (untrusted); ``.data..percpu`` ->
        the module's per-cpu offset (``struct module.percpu``), where the module has such data.
    :param resolve: the running address of a symbol that the module imports: of the kernel, or of another
        module.
    :raises SectionAddressError: the addresses cannot be those of this module.
    :raises ReplayError: the module file's patch tables are malformed.
    :raises GuestGone: the guest ended meanwhile.
    """
    kernel = LiveKernel(source, vmlinux)
    placed = place(module, addresses)
    linker = Linker(module, placed, addresses, resolve)
    code = [one for one in placed if one.executable and one.has_contents]
    data = [one for one in placed if _is_constant(one) and one.section.name not in INEXACT]
    linked = {one.index: linker.link(one) for one in (*code, *data)}
    unresolved = tuple(linker.unresolved)
    overflowed = tuple(linker.overflowed)
    tables = {
        one.section.name: Table(
            signed(one.address), linked[one.index] if one.index in linked else linker.link(one)
        )
        for one in placed
        if one.section.name in TABLES and one.has_contents
    }
    regions = list(_regions(code))
    image = np.concatenate([_EMPTY, *(linked[one.index] for one in code)])
    patching = Patching(image, regions, tables, kernel, list(_trampolines(module, linker)))
    for mechanism in MECHANISMS:
        mechanism(patching)
    sections = [*_code_sections(code, regions, patching), *_padding(code)]
    for one in data:
        final = SORTED.get(one.section.name, np.copy)(linked[one.index])
        sections.append(ReplayedSection(one.section.name, one.address, False, final, _EMPTY))
    for section in sections:
        section.expected.setflags(write=False)
    return ReplayedModule(
        module.name,
        tuple(sorted(sections, key=lambda section: section.address)),
        tuple((o.section.name, INEXACT[o.section.name]) for o in placed if o.section.name in INEXACT),
        unresolved,
        overflowed,
        kernel.inputs(),
    )


_EMPTY: Bytes = np.zeros(0, np.uint8)


def _is_constant(one: Placed) -> bool:
    return one.kept and one.has_contents and not one.executable and not one.writable


def _regions(code: list[Placed]) -> Iterator[Region]:
    filled = 0
    for one in code:
        size = one.section.size
        name = one.section.name
        yield Region(name, signed(one.address), size, filled, lockable=name == ".text", kept=one.kept)
        filled += size


def _trampolines(module: ModuleObject, linker: Linker) -> Iterator[tuple[int, int]]:
    """The static call trampolines that the module itself defines, with their keys."""
    numbers = {symbol.name: number for number, symbol in enumerate(module.symbols)}
    for name, number in numbers.items():
        key = numbers.get(KEY_NAME + name.removeprefix(TRAMPOLINE_NAME))
        if not name.startswith(TRAMPOLINE_NAME) or key is None:
            continue
        where, value = linker.address(number), linker.address(key)
        if where is not None and value is not None:
            yield signed(where), signed(value)


def _code_sections(
    code: list[Placed], regions: list[Region], patching: Patching
) -> Iterator[ReplayedSection]:
    for one, region in zip(code, regions, strict=True):
        if one.kept:
            span = slice(region.offset, region.offset + region.size)
            expected, owner = patching.image[span], patching.owner[span]
            yield ReplayedSection(one.section.name, one.address, True, expected, owner)


def _padding(code: list[Placed]) -> Iterator[ReplayedSection]:
    """The zeros between sections of code, and after the last to the end of its page."""
    kept = [one for one in code if one.kept]
    for before, after in itertools.zip_longest(kept, kept[1:]):
        end = -(-before.end // PAGE) * PAGE
        if after is not None:
            end = min(end, after.address)
        if end > before.end:
            zeros = np.zeros(end - before.end, np.uint8)
            yield ReplayedSection("", before.end, True, zeros, np.zeros(len(zeros), np.uint8))
