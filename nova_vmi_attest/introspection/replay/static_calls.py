# SPDX-License-Identifier: Apache-2.0
"""Static calls: direct calls whose target is the function that a key holds.

An entry of ``.static_call_sites`` gives a site and a key; bit 0 of the key's address marks a tail call, bit
1 initialisation code. A site calls (tail: jumps to) the function; without a function it is a NOP (tail: a
return); a call of __static_call_return0 clears %eax instead; a conditional tail call keeps its condition.
Each trampoline __SCT__name is a tail call of its own.

An empty tail call is a plain return or a jump to the return thunk, depending on whether it was written
before or after the thunk was chosen: there the live bytes decide between exactly these two, and each case
is recorded.

Source: kernel/static_call_inline.c, arch/x86/kernel/static_call.c (arch_static_call_transform).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .features import RETHUNK
from .inputs import MASK64, LiveKernel, signed
from .instructions import CALL, JMP32, NOP5, RET, branches, repeated
from .patching import Addresses, Mechanism, Patching
from .returns import uses_thunk

ENTRY = np.dtype([("site", "<i4"), ("key", "<i4")])
TAIL, FLAGS = 1, 3
RETURN_ZERO = b"\x2e\x2e\x2e\x31\xc0"  # xor %eax, %eax with three prefixes
JCC_SIZE = 6


def apply(patching: Patching) -> None:
    """Write every site of code that stays, then the trampolines. A key without a legal value leaves them
    alone.

    :raises ReplayError: a site is outside the image.
    """
    table = patching.table(".static_call_sites")
    if table is not None:
        places, entries = table.records(ENTRY)
        sites = places + entries["site"]
        kept = patching.in_regions(sites, kept=True)
        keys = (places + 4 + entries["key"])[kept]
        names = _key_addresses(patching, keys & ~FLAGS)
        _write(patching, sites[kept], names, (keys & TAIL) != 0, Mechanism.STATIC_CALL)
    if patching.trampolines:
        pairs = np.array(patching.trampolines, np.int64)
        every = np.ones(len(pairs), np.bool_)
        _write(patching, pairs[:, 0], pairs[:, 1], every, Mechanism.TRAMPOLINE)


def _key_addresses(patching: Patching, keys: Addresses) -> Addresses:
    """The keys, where modules name the trampoline __SCT__x for a key __SCK__x that is not exported."""
    kernel = patching.kernel
    start, end = kernel.symbol("__static_call_text_start"), kernel.symbol("__static_call_text_end")
    if start is None or end is None:
        return keys
    found = keys.copy()
    for trampoline in np.unique(keys[(keys >= signed(start)) & (keys < signed(end))]).tolist():
        for name in kernel.names_at(trampoline & MASK64):
            key = kernel.symbol("__SCK__" + name.removeprefix("__SCT__"))
            if name.startswith("__SCT__") and key is not None:
                found[keys == trampoline] = signed(key)
    return found


def _write(
    patching: Patching, sites: Addresses, keys: Addresses, tail: NDArray[np.bool_], owner: Mechanism
) -> None:
    kernel = patching.kernel
    offsets = patching.locate(sites, len(RET), ".static_call_sites")
    functions, readable = kernel.static_calls(keys)
    following = patching.image[offsets + 1]
    conditional = tail & (patching.image[offsets] == 0x0F) & (following & 0xF0 == 0x80)
    empty = functions == 0
    zero = functions == signed(kernel.symbol("__static_call_return0") or 1)

    def branch(chosen: NDArray[np.bool_], opcode: int) -> None:
        rows, reachable = branches(bytes([opcode]), sites[chosen], functions[chosen])
        _record_unreachable(kernel, keys[chosen][~reachable], functions[chosen][~reachable])
        patching.put_rows(offsets[chosen][reachable], rows[reachable], owner)

    def constant(chosen: NDArray[np.bool_], code: bytes) -> None:
        patching.put_rows(offsets[chosen], repeated(code, int(chosen.sum())), owner)

    constant(readable & ~tail & empty, NOP5)
    constant(readable & ~tail & zero, RETURN_ZERO)
    branch(readable & ~tail & ~empty & ~zero, CALL)
    branch(readable & tail & ~empty & ~conditional, JMP32)
    _write_returns(patching, sites, offsets, readable & tail & empty & ~conditional, owner)
    for index in np.flatnonzero(readable & conditional).tolist():
        _write_conditional(patching, int(sites[index]), int(keys[index]), int(functions[index]), owner)


def _write_returns(
    patching: Patching, sites: Addresses, offsets: Addresses, chosen: NDArray[np.bool_], owner: Mechanism
) -> None:
    """Empty tail calls: a plain return, or one of two forms where a thunk may have come later."""
    kernel = patching.kernel
    thunk = kernel.return_thunk
    for index in np.flatnonzero(chosen).tolist():
        site, code = sites[index : index + 1], RET
        if thunk is not None and bool(uses_thunk(kernel, site)[0]):
            rows, reachable = branches(bytes([JMP32]), site, np.array([signed(thunk)], np.int64))
            if reachable[0]:
                code = kernel.two_forms(int(site[0]), (RET, rows[0].tobytes()))
        patching.put(int(offsets[index]), code, owner)


def _write_conditional(patching: Patching, site: int, key: int, function: int, owner: Mechanism) -> None:
    """A conditional tail call keeps its condition; without a function it returns through a thunk."""
    kernel = patching.kernel
    target = function
    if not target:
        thunk = kernel.return_thunk if kernel.has(RETHUNK) else kernel.symbol("__static_call_return")
        target = signed(thunk or 0)
    places = np.array([site], np.int64)
    offset = int(patching.locate(places, JCC_SIZE, ".static_call_sites")[0])
    opcode = patching.image[offset : offset + 2].tobytes()
    rows, reachable = branches(opcode, places, np.array([target], np.int64))
    if reachable[0]:
        patching.put(offset, rows[0].tobytes(), owner)
    else:
        _record_unreachable(kernel, np.array([key], np.int64), np.array([function], np.int64))


def _record_unreachable(kernel: LiveKernel, keys: Addresses, functions: Addresses) -> None:
    unique, first = np.unique(keys, return_index=True)
    for key, function in zip(unique.tolist(), functions[first].tolist(), strict=True):
        kernel.invalid("static_call", key, function & MASK64, "a function out of reach of a call")
