# SPDX-License-Identifier: Apache-2.0
"""Where a guest says that it placed the sections of a module: checked before anything is computed from it.

The addresses come from the guest's memory. They are believed only as far as they could be those of this
module: inside the module region, aligned, disjoint, with the sizes that the reference gives. Whether the
guest really runs the module there is for the page tables to say, not for this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.module import ModuleObject, ModuleSection

MODULES_START = 0xFFFFFFFFC0000000
MODULES_END = 0xFFFFFFFFFF000000
PERCPU = ".data..percpu"
PERCPU_END = 1 << 31  # module variables live in the first per-cpu chunk, at small offsets
SHF_WRITE, SHF_EXECINSTR = 1, 4
SHT_NOBITS = 8


class SectionAddressError(AttestError):
    """The section addresses cannot be those of this module: the guest's bookkeeping was altered."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A section of the module file, and the unsigned address at which it runs."""

    index: int
    section: ModuleSection
    address: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + self.section.size

    @property
    def executable(self) -> bool:
        """Whether it holds code."""
        return bool(self.section.flags & SHF_EXECINSTR)

    @property
    def writable(self) -> bool:
        """Whether it may change while the module runs."""
        return bool(self.section.flags & SHF_WRITE)

    @property
    def has_contents(self) -> bool:
        """Whether the file gives its bytes."""
        return self.section.type != SHT_NOBITS

    @property
    def kept(self) -> bool:
        """Whether it stays in memory after initialisation (kernel/module/main.c, module_init_section)."""
        return not self.section.name.startswith(".init")


def place(module: ModuleObject, addresses: Mapping[str, int]) -> tuple[Placed, ...]:
    """The sections of ``module`` that the guest placed, by address. Per-CPU data is checked, but not among
    them.

    :raises SectionAddressError: a name is not that of a section; an address is unaligned, outside the
        module region or inside another section; or code that stays has no address.
    """
    placed = []
    for name, address in addresses.items():
        index = module.section_index(name)
        if index is None:
            raise SectionAddressError(f"{module.name} has no section {name!r:.80}")
        if not module.sections[index].allocated:
            continue  # the kernel places the symbol table too, for its own use
        if name == PERCPU:
            if not 0 <= address < PERCPU_END:
                raise SectionAddressError(f"per-cpu data of {module.name} at {address:#x} is not an offset")
            continue
        found = Placed(index, module.sections[index], address)
        if address < MODULES_START or found.end > MODULES_END:
            raise SectionAddressError(f"{name} of {module.name} at {address:#x} is outside the module region")
        if address % max(found.section.align, 1):
            raise SectionAddressError(f"{name} of {module.name} at {address:#x} is not aligned")
        placed.append(found)
    placed.sort(key=lambda one: (one.address, one.end))
    for before, after in itertools.pairwise(placed):
        if after.address < before.end:
            raise SectionAddressError(
                f"{after.section.name} of {module.name} overlaps {before.section.name}: {after.address:#x}"
            )
    _require_code(module, {one.index for one in placed})
    return tuple(placed)


def _require_code(module: ModuleObject, placed: set[int]) -> None:
    for index, section in enumerate(module.sections):
        wanted = section.allocated and section.flags & SHF_EXECINSTR and section.size
        if wanted and not section.name.startswith(".init") and index not in placed:
            raise SectionAddressError(f"code section {section.name} of {module.name} has no address")
