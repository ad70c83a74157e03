# SPDX-License-Identifier: Apache-2.0
"""Loaded modules: three views agree, each module is one of the build, and its code and constants are exact.

The views are the ``modules`` list, the trees by which the kernel finds the module of an address, and the
objects behind /sys/module. A module that any of them has is looked at; one that not all of them have is
hidden. The views are read one after the other while modules may come and go, so a disagreement is confirmed
before it is reported. Tables that loading sorts are compared as the replay says; a module's own writable
data is NOT checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.measurement import Module
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.memory.base import GuestGone, ReaderError
from nova_vmi_attest.introspection.replay.layout import (
    MODULES_END,
    MODULES_START,
    PERCPU,
    SectionAddressError,
)
from nova_vmi_attest.introspection.replay.module import ReplayedModule, replay_module
from nova_vmi_attest.introspection.state import ModulePart, ModuleText
from nova_vmi_attest.introspection.structures import MODULE_LIMIT, MODULE_LIVE, Extent, LiveModule
from nova_vmi_attest.kernel.module import ModuleObject

ATTEMPTS = 3
REPLAY_LIMIT = 256  # what is left comes in the next pass: a guest that makes up modules must not stall one
EXACT_KINDS = ("text", "rodata")
STT_FUNC = 2
STB_LOCAL = 0


class Modules(Check):
    """See the module."""

    name = "modules"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The views, then each module."""
        addresses = self._views(context, findings)
        if len(addresses) > MODULE_LIMIT:
            findings.incomplete(f"more than {MODULE_LIMIT} modules")
            addresses = addresses[:MODULE_LIMIT]
        found = []
        for address in addresses:
            try:
                found.append(self._described(context, address))
            except GuestFault as fault:
                context.guest.refresh()
                if address not in context.structures.module_list():
                    findings.incomplete("a module was removed meanwhile")
                    continue
                findings.add("modules", f"a module cannot be read: {fault.message}", address=address)
        context.facts.modules = tuple(found)
        for known in (context.state.modules, context.state.descriptions):
            for gone in known.keys() - set(addresses):
                del known[gone]
        self._overlaps(found, findings)
        facts, verified = [], []
        names, budget = set[str](), iter(range(REPLAY_LIMIT))
        for module in sorted(found, key=lambda one: one.name):
            before = context.facts.unexplained_bytes
            if module.name in names:
                findings.incomplete(f"there are several modules of the name {module.name}")
                continue
            names.add(module.name)
            exact = self._examine_one(context, findings, module, budget)
            if exact and context.facts.unexplained_bytes == before:
                verified.append(module)
            text = module.extent("text")
            digest = context.reference.module_digest(module.name) or ""
            facts.append(Module(module.name, digest, text.size if text else 0))
        context.facts.verified = tuple(verified)
        context.facts.module_facts = tuple(facts)

    def _views(self, context: CheckContext, findings: Findings) -> list[int]:
        """Every module of any view. A disagreement that three readings show is reported."""
        structures = context.structures
        listed: list[int] = []
        seen: set[int] = set()
        persistent: set[tuple[int, str]] | None = None
        for _ in range(ATTEMPTS):
            listed = structures.module_list()
            views = {"the list": set(listed), "/sys/module": structures.module_objects()}
            tree = structures.module_tree()
            if tree is not None:
                views["the address tree"] = tree
            seen = set().union(*views.values())
            lacking = {(module, view) for view, has in views.items() for module in seen - has}
            persistent = lacking if persistent is None else persistent & lacking
            if not persistent:
                break
            context.guest.refresh()
        for module, view in sorted(persistent or ()):
            self._hidden(context, findings, module, view)
        return [*listed, *sorted(seen - set(listed))]

    def _hidden(self, context: CheckContext, findings: Findings, address: int, view: str) -> None:
        try:
            module = context.structures.module(address)
        except GuestFault:
            detail = f"a module without a readable description is not in {view}"
            findings.add("modules", detail, address=address)
            return
        if module.state == MODULE_LIVE:
            findings.add(module.name, f"hidden: the module is not in {view}", address=address)
        else:
            findings.incomplete(f"module {module.name} is being loaded or removed")

    def _described(self, context: CheckContext, address: int) -> LiveModule:
        """A module as its ``struct module`` describes it, taken apart anew only where any byte of it changed.

        :raises GuestFault: it cannot be read.
        """
        guest, known = context.guest, context.state.descriptions
        size = guest.vmlinux.btf.size("module")
        raw = guest.read(address, size)
        if address not in known or known[address][0] != raw:
            known.pop(address, None)
            module = context.structures.module(address)
            if guest.read(address, size) != raw:  # what was taken apart is not what was compared
                return module
            known[address] = raw, module
        return known[address][1]

    def _overlaps(self, modules: list[LiveModule], findings: Findings) -> None:
        """Each module has memory of its own, inside the region for modules."""
        parts = sorted((part.base, part.size, module.name) for module in modules for part in module.extents)
        end = MODULES_START
        for base, size, name in parts:
            if base < end or base + size > MODULES_END:
                detail = "its memory overlaps another module's, or lies outside the region for modules"
                findings.add(name, detail, address=base, length=size)
            end = max(end, base + size)

    def _examine_one(
        self, context: CheckContext, findings: Findings, module: LiveModule, budget: Iterator[int]
    ) -> bool:
        """Compare one module. False where it could not be. ``budget`` runs out with what may be replayed."""
        if module.state != MODULE_LIVE:
            findings.incomplete(f"module {module.name} is being loaded or removed")
            return False
        try:
            reference = context.reference.module(module.name)
            if reference is None:
                findings.add(module.name, "the reference has no such module", address=module.address)
                return False
            known = context.state.modules.get(module.address)
            if known is not None and known.live == module and not self._differs(context, known):
                self._count(context, findings, known)
                return True
            if next(budget, None) is None:
                findings.incomplete(f"more than {REPLAY_LIMIT} modules to work out in one pass")
                return False
            context.guest.refresh()
            known = context.state.modules[module.address] = work_out(context, module, reference)
            if self._differs(context, known) and self._changed(context, module):
                findings.incomplete(f"module {module.name} changed while it was compared")
                return False
            self._count(context, findings, known)
            self._report(context, findings, known)
        except (GuestGone, ReaderError):
            raise
        except (SectionAddressError, GuestFault) as fault:
            if self._changed(context, module):
                findings.incomplete(f"module {module.name} changed while it was compared")
                return False
            findings.add(module.name, fault.message, address=module.address)
            return False
        except AttestError as error:
            findings.incomplete(f"module {module.name}: {error.message}")
            return False
        return True

    def _changed(self, context: CheckContext, module: LiveModule) -> bool:
        """Whether a module is no longer what it was said to be: it was removed, or is being removed."""
        context.guest.refresh()
        try:
            return context.structures.module(module.address) != module
        except GuestFault:
            return module.address not in context.structures.module_list()

    def _differs(self, context: CheckContext, known: ModuleText) -> bool:
        for part in known.parts:
            live = context.guest.view(part.address, len(part.expected))
            if part.exact is None:
                if not np.array_equal(live, part.expected):
                    return True
            elif ((live != part.expected) & part.exact).any():
                return True
        return False

    def _count(self, context: CheckContext, findings: Findings, known: ModuleText) -> None:
        for part in known.parts:
            size = len(part.expected) if part.exact is None else int(np.count_nonzero(part.exact))
            findings.bytes_verified += size
            if part.executable:
                context.facts.code_bytes += size

    def _report(self, context: CheckContext, findings: Findings, known: ModuleText) -> None:
        """What differs from a fresh replay."""
        name, replayed = known.live.name, known.replayed
        for symbol in replayed.unresolved[:4]:
            findings.add(name, f"nothing defines the symbol {symbol} that it imports")
        for one in replayed.inputs.invalid[:4]:
            findings.add(name, f"{one.kind}: {one.detail}", address=one.address)
        for part in known.parts:
            live = context.guest.view(part.address, len(part.expected))
            different = live != part.expected
            if part.exact is not None:
                different &= part.exact
            offsets = np.flatnonzero(different)
            if not len(offsets):
                continue
            if part.executable:
                context.facts.unexplained_bytes += len(offsets)
            findings.differences(
                offsets,
                lambda at, size, part=part: part.expected[at : at + size].tobytes(),  # type: ignore[misc]
                live,
                part.address,
                lambda at, part=part: (name, at - known.live.extents[0].base),  # type: ignore[misc]
                "module code differs" if part.executable else "read-only data of a module differs",
            )


def work_out(context: CheckContext, module: LiveModule, reference: ModuleObject) -> ModuleText:
    """The bytes that a loaded module must have, where the guest says that it placed its sections.

    :raises GuestFault: its bookkeeping cannot be read, or does not fit its memory.
    :raises AttestError: it cannot be replayed.
    """
    addresses = _addresses(context, module, reference)
    replayed = replay_module(
        context.guest, context.guest.vmlinux, reference, addresses, _resolver(context, addresses)
    )
    parts = tuple(_parts(module, replayed))
    functions = frozenset(
        addresses[section] + symbol.value
        for symbol in reference.symbols
        if symbol.type == STT_FUNC
        and symbol.section < len(reference.sections)
        and (section := reference.sections[symbol.section].name) in addresses
    )
    # The parts hold its bytes: they are not kept twice.
    return ModuleText(module, replace(replayed, sections=()), parts, functions)


def _addresses(context: CheckContext, module: LiveModule, reference: ModuleObject) -> dict[str, int]:
    found = dict(context.structures.module_sections(module.address))
    found.pop(PERCPU, None)
    if reference.section_index(PERCPU) is not None:
        found[PERCPU] = context.guest.u64(module.address + context.structures.offset("module", "percpu"))
    return found


def _resolver(context: CheckContext, own: Mapping[str, int]) -> Callable[[str], int | None]:
    """Running address of a symbol that a module imports: the kernel's, else another loaded module's."""
    exports: dict[str, int] = {}
    loaded = False

    def resolve(name: str) -> int | None:
        nonlocal loaded
        address = context.guest.vmlinux.symbols.get(name)
        if address is not None:
            return address if address < 1 << 32 else address + context.guest.slide
        if not loaded:
            exports.update(_exports(context))
            loaded = True
        return exports.get(name)

    return resolve


def _exports(context: CheckContext) -> dict[str, int]:
    found: dict[str, int] = {}
    for module in context.facts.modules:
        reference = context.reference.module(module.name)
        if reference is None or module.state != MODULE_LIVE:
            continue
        try:
            addresses = _addresses(context, module, reference)
        except GuestFault:
            continue  # its own examination says so
        for symbol in reference.symbols:
            if symbol.bind != STB_LOCAL and 0 < symbol.section < len(reference.sections):
                base = addresses.get(reference.sections[symbol.section].name)
                if base is not None:
                    found.setdefault(symbol.name, base + symbol.value)
    return found


def _parts(module: LiveModule, replayed: ReplayedModule) -> list[ModulePart]:
    """The replayed sections, laid out over the memory that the module claims.

    :raises GuestFault: code lies outside of what it claims for code, or the claim holds more than the code.
    """
    found: list[ModulePart] = []
    claimed = {kind: module.extent(kind) for kind in EXACT_KINDS}
    for section in replayed.sections:
        held = any(_inside(section.address, len(section.expected), one) for one in claimed.values() if one)
        if section.name and len(section.expected) and not held:
            raise GuestFault(section.address, "a section outside of what the module claims as read-only")
    for kind, extent in claimed.items():
        if extent is None:
            continue
        if extent.size > 1 << 26:
            raise GuestFault(extent.base, f"a module of {extent.size:#x} bytes")
        expected, exact = np.zeros(extent.size, np.uint8), np.zeros(extent.size, np.bool_)
        for section in replayed.sections:
            start, size = section.address - extent.base, len(section.expected)
            if not _inside(section.address, size, extent):
                if section.executable and kind == "text" and section.name:
                    raise GuestFault(section.address, "code outside of what the module claims for code")
                continue
            expected[start : start + size] = section.expected
            exact[start : start + size] = True
        if kind == "text" and not exact.all():
            raise GuestFault(extent.base, "the module claims more memory for code than its code needs")
        found.append(ModulePart(extent.base, kind == "text", expected, None if exact.all() else exact))
    return found


def _inside(address: int, size: int, extent: Extent) -> bool:
    return extent.base <= address and address + size <= extent.base + extent.size
