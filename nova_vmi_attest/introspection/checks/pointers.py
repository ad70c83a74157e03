# SPDX-License-Identifier: Apache-2.0
"""Pointers to code in the kernel's own data: operations tables, callbacks, security hooks.

The build stores thousands of them in data that the kernel may write, and a healthy kernel exchanges a few for
other functions of its own. One that leads into the middle of a function, or to executable memory that is no
function of the kernel or of a loaded module, is a hook. Those that were exchanged for another function are
counted and named, not judged. NOT looked at: pointers in allocated memory and in the data of modules; where
they lead must be code that the other checks account for.

The hooks of security modules are held to more: each list holds entries of the build only, unaltered, and a
security module is attached with all of its hooks or with none. NOT seen: one that was detached as a whole, as
the kernel does at boot when it is not chosen, but for the capabilities that every kernel has.

Sources: include/linux/lsm_hooks.h, security/security.c (security_add_hooks).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.build import AFTER_INIT, Build, Span
from nova_vmi_attest.introspection.checks.base import CheckContext, Findings
from nova_vmi_attest.introspection.guest import WORD
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

DATA = ("_sdata", "_edata")
HEADS = "security_hook_heads"
ALWAYS_ATTACHED = "capability_hooks"
HOOKS_PER_LIST = 64
NAMED = 8


@dataclass(frozen=True, slots=True)
class CodePointers:
    """Offsets in a span of the image where the build has a pointer into text, and those pointers."""

    span: Span
    places: NDArray[np.int64]
    values: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SecurityHook:
    """An entry of the build's tables: the table, and link-time addresses of its list and its function."""

    table: str
    head: int
    function: int


_pointers: WeakKeyDictionary[Build, CodePointers | None] = WeakKeyDictionary()
_hooks: WeakKeyDictionary[Build, dict[int, SecurityHook]] = WeakKeyDictionary()


def examine_pointers(context: CheckContext, findings: Findings) -> None:
    """Every pointer to code that the build has in writable data.

    :raises AttestError: that data cannot be read.
    """
    guest, state = context.guest, context.state
    if state.build not in _pointers:
        _pointers[state.build] = code_pointers(state.build)
    known = _pointers[state.build]
    if known is None:
        return
    start = guest.symbol("_text") + known.span.start
    live = np.ascontiguousarray(guest.view(start, known.span.size)).view("<u8")[known.places // 8]
    findings.bytes_verified += live.nbytes
    changed = np.flatnonzero(live != known.values + np.uint64(guest.slide))
    exchanged = []
    for index in changed[state.is_function(live[changed])].tolist():
        name = context.name(start + int(known.places[index]))
        if not name.startswith("__SCK__"):
            exchanged.append(name)
    for index in changed[~state.is_function(live[changed])].tolist():
        target, address = int(live[index]), start + int(known.places[index])
        if not _leads_to_code(context, target):
            continue
        symbol, _, offset = context.name(address).partition("+")
        findings.add(
            symbol,
            f"leads to {context.name(target)}, which is no function",
            offset=int(offset or "0", 16),
            length=8,
            address=address,
            expected=(int(known.values[index]) + guest.slide & WORD).to_bytes(8, "little"),
            actual=target.to_bytes(8, "little"),
        )
    if exchanged:
        names = ", ".join(exchanged[:NAMED])
        findings.remark(f"{len(exchanged)} function pointers lead to other kernel functions: {names}")


def _leads_to_code(context: CheckContext, target: int) -> bool:
    """Whether a value that is no function of the kernel can be executed, and is no module's function."""
    if any(target in module.functions for module in context.state.modules.values()):
        return False
    pages = context.guest.space.leaves().executable()
    at = int(np.searchsorted(pages.va, np.uint64(target), side="right")) - 1
    return at >= 0 and target - int(pages.va[at]) < int(pages.size[at])


def code_pointers(build: Build) -> CodePointers | None:
    """The pointers to text in initialised writable data, from the build's relocations."""
    span, vmlinux = build.span(DATA), build.vmlinux
    if span is None:
        return None
    places, values = _relocated(vmlinux, span)
    chosen = (places % 8 == 0) & (values >= np.uint64(LINK_BASE))
    chosen &= values < np.uint64(LINK_BASE + build.text.end)
    whole = Span(span.start, span.start + span.size // 8 * 8)
    chosen &= places < whole.size
    return CodePointers(whole, places[chosen], values[chosen])


def _relocated(vmlinux: Vmlinux, span: Span) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Offsets from the start of a span that hold addresses, and the addresses as linked."""
    places = np.asarray(vmlinux.relocations.add64, np.int64)
    places = np.sort(places[(places >= span.start) & (places <= span.end - 8)])
    rows = np.ascontiguousarray(vmlinux.image[places[:, None] + np.arange(8)])
    return places - span.start, rows.view("<u8").ravel()


def examine_security_hooks(context: CheckContext, findings: Findings) -> None:
    """The lists of security hooks, unless they are as they were when they were found whole.

    :raises AttestError: they cannot be read.
    """
    guest, state = context.guest, context.state
    if not guest.has_symbol(HEADS):
        return
    span = state.build.required(AFTER_INIT)
    live = guest.view(guest.symbol("_text") + span.start, span.size).tobytes()
    findings.bytes_verified += span.size
    if state.accepted.get(HEADS) == live:
        return
    if state.build not in _hooks:
        _hooks[state.build] = security_hooks(state.build)
    hooks = _hooks[state.build]
    attached = _attached(context, findings, hooks)
    lacking: dict[str, int] = defaultdict(int)
    for entry, hook in hooks.items():
        lacking[hook.table] += entry not in attached
    for table in {hooks[entry].table for entry in attached} | {ALWAYS_ATTACHED} & lacking.keys():
        if lacking[table]:
            findings.add(table, f"{lacking[table]} of its security hooks are not attached")
    if not findings:
        state.accepted[HEADS] = live


def _attached(context: CheckContext, findings: Findings, hooks: dict[int, SecurityHook]) -> set[int]:
    """Link-time addresses of the build's entries that are on their lists; what else is there is reported."""
    guest = context.guest
    start, size = guest.symbol(HEADS), guest.vmlinux.btf.size(HEADS)
    function_at = guest.offset("security_hook_list", "hook")
    node_at = guest.offset("security_hook_list", "list")
    found: set[int] = set()
    for head in range(start, start + size, 8):
        node = guest.u64(head)
        for _ in range(HOOKS_PER_LIST):
            if not node:
                break
            entry = guest.link(node - node_at)
            hook = hooks.get(entry)
            if hook is None or hook.head != guest.link(head):
                findings.add(HEADS, f"a security hook at {node:#x} that the build does not have",
                             offset=head - start, length=8, address=head)  # fmt: skip
                break
            function = guest.u64(node - node_at + function_at)
            if guest.link(function) != hook.function:
                findings.add(hook.table, f"a security hook leads to {context.name(function)}", length=8,
                             address=node - node_at + function_at)  # fmt: skip
            found.add(entry)
            node = guest.u64(node)
        else:
            findings.add(HEADS, f"more than {HOOKS_PER_LIST} security hooks on one list", address=head)
    return found


def security_hooks(build: Build) -> dict[int, SecurityHook]:
    """Link-time address of each entry of the build's tables of security hooks -> what it says.

    :raises AttestError: the build has none where they belong.
    """
    vmlinux, span = build.vmlinux, build.required(AFTER_INIT)
    places, values = _relocated(vmlinux, span)
    base = LINK_BASE + span.start
    linked = {base + place: value for place, value in zip(places.tolist(), values.tolist(), strict=True)}
    first = vmlinux.symbols[HEADS]
    end = first + vmlinux.btf.size(HEADS)
    head_at = vmlinux.btf.offset("security_hook_list", "head")
    function_at = vmlinux.btf.offset("security_hook_list", "hook")
    found = {}
    for place, value in linked.items():
        entry = place - head_at
        function = linked.get(entry + function_at)
        if first <= value < end and function is not None:
            found[entry] = SecurityHook(vmlinux.symbols.at(entry)[0], value, function)
    return found
