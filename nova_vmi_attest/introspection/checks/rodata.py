# SPDX-License-Identifier: Apache-2.0
"""Read-only data is that of the build: system call table, operations tables, strings, constants.

What boot code itself writes is left out of the comparison and looked at apart:

* the tables of static branches and static calls, which the kernel sorts: the same sites, targets and keys;
* one literal that boot code splits in place: each comma is still a comma, or the NUL that replaced it;
* the code that the kernel gives to processes (vDSO), which it patches for the CPU: as its own patching
  makes it;
* what is read-only only after initialisation: every value that points into kernel text must be the start of a
  function, and none may point to executable memory elsewhere. Other values there are NOT checked;
* the padding behind the last section, which no symbol covers: NOT checked.

A function pointer in ``__ro_after_init`` data may thus be exchanged for that of another whole function of the
kernel without a finding here; the tables for which that is checked have checks of their own (idt, control).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.build import (
    AFTER_INIT,
    CALL_ENTRY,
    CALL_SITES,
    INIT_FLAG,
    JUMP_ENTRY,
    JUMP_TABLE,
    absolute,
    canonical_order,
)
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import WORD
from nova_vmi_attest.introspection.memory.base import Bytes
from nova_vmi_attest.introspection.paging import Leaves

POINTER_LIMIT = 64
FAR = np.uint64(1 << 30)  # mappings further apart than this are told apart first, into so many regions
REGION_LIMIT = 8


class ReadOnlyData(Check):
    """See the module."""

    name = "rodata"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The plain comparison first, then what it leaves out."""
        guest, state = context.guest, context.state
        span = state.build.read_only
        base = guest.symbol("_text")
        live = guest.view(base + span.start, span.size)
        different = state.read_only().mismatches(live)
        findings.bytes_verified = state.read_only().compared
        if len(different):
            findings.differences(
                different,
                lambda at, size: state.read_only().expected(at, min(at + size, span.size)).tobytes(),
                live,
                base + span.start,
                lambda at: guest.vmlinux.symbols.at(guest.link(at)),
                "read-only data is not that of the build",
            )
        for offset in state.build.commas.tolist():
            actual = int(live[offset - span.start])
            if actual not in b",\0":
                findings.add(
                    context.name(base + offset), "altered literal", length=1, address=base + offset,
                    expected=b",", actual=bytes([actual]),
                )  # fmt: skip
        for names, entry, wanted in (
            (JUMP_TABLE, JUMP_ENTRY, state.build.jump_table),
            (CALL_SITES, CALL_ENTRY, state.build.call_sites),
        ):
            self._table(context, findings, live, names, entry, wanted)
        self._shared_objects(context, findings, live)
        self._pointers(context, findings, live)

    def _table(
        self,
        context: CheckContext,
        findings: Findings,
        data: Bytes,
        names: tuple[str, str],
        entry: np.dtype[np.void],
        wanted: NDArray[np.int64],
    ) -> None:
        state = context.state
        span, outer = state.build.span(names), state.build.read_only
        if span is None:
            return
        inside = outer.start <= span.start and span.end <= outer.end
        base = context.guest.symbol("_text")
        live = data[span.start - outer.start : span.end - outer.start] if inside else (
            context.guest.view(base + span.start, span.size)
        )  # fmt: skip
        raw = live.tobytes()
        if state.accepted.get(names[0]) == raw:
            return
        rows = canonical_order(absolute(live, span.start, entry))
        if np.array_equal(rows, wanted):
            state.accepted[names[0]] = raw
            return
        missing = {tuple(row) for row in wanted.tolist()}
        for row in rows.tolist():
            if tuple(row) in missing:
                continue
            key = base + (row[-1] & ~(INIT_FLAG | 1))
            code = context.name((base + row[0]) & WORD)
            detail = f"a site that the build does not have: code {code}, key {context.name(key & WORD)}"
            findings.add(names[0], detail, length=entry.itemsize, address=(base + row[0]) & WORD)
        if not findings:
            findings.add(names[0], "the table repeats sites and lacks others", length=span.size)

    def _shared_objects(self, context: CheckContext, findings: Findings, data: Bytes) -> None:
        """The code of the vDSO."""
        guest, outer = context.guest, context.state.build.read_only
        for one in context.state.vdso():
            start = one.offset - outer.start
            live = data[start : start + len(one.expected)]
            if not outer.start <= one.offset <= outer.end - len(one.expected):
                live = guest.view(guest.symbol("_text") + one.offset, len(one.expected))
            findings.bytes_verified += len(live)
            different = np.flatnonzero(live != one.expected)
            if len(different):
                at, name, expected = guest.symbol("_text") + one.offset, one.name, one.expected
                findings.differences(
                    different,
                    lambda start, size, expected=expected: expected[start : start + size].tobytes(),  # type: ignore[misc]
                    live,
                    at,
                    lambda address, at=at, name=name: (name, address - at),  # type: ignore[misc]
                    "the code given to processes differs",
                )

    def _pointers(self, context: CheckContext, findings: Findings, data: Bytes) -> None:
        """Values of read-only-after-init data that point to code."""
        guest, state = context.guest, context.state
        span, outer = state.build.required(AFTER_INIT), state.build.read_only
        if not outer.start <= span.start <= span.end <= outer.end:
            findings.incomplete("data that is read-only after initialisation lies elsewhere")
            return
        first = -(-span.start // 8) * 8
        live = data[first - outer.start : first - outer.start + (span.end - first) // 8 * 8]
        values = np.ascontiguousarray(live).view("<u8")
        start, end = np.uint64(guest.symbol("_text")), np.uint64(guest.symbol("_etext"))
        code = np.zeros(len(values), np.bool_)
        for one in state.vdso():
            code[
                max((one.offset - first) // 8, 0) : max((one.offset + len(one.expected) - first) // 8, 0)
            ] = True
        inside = (values >= start) & (values < end) & ~code
        suspect = np.flatnonzero(inside)
        suspect = suspect[~state.is_function(values[suspect])]
        suspect = np.concatenate([suspect, _within(values, guest.space.executable(), ~inside & ~code)])
        for index in suspect[:POINTER_LIMIT].tolist():
            address = guest.symbol("_text") + first + 8 * index
            symbol, offset = guest.vmlinux.symbols.at(guest.link(address))
            value = int(values[index])
            findings.add(
                symbol,
                f"points to {context.name(value)}, which is not the start of a kernel function",
                offset=offset,
                length=8,
                address=address,
                actual=value.to_bytes(8, "little"),
            )


def _within(values: NDArray[np.uint64], pages: Leaves, among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which of the chosen values are addresses in one of the mappings, ascending."""
    if not len(pages.va):
        return np.zeros(0, np.int64)
    last = pages.va + (pages.size - np.uint64(1))
    # Few values lie near any mapping: only those are looked up.
    cuts = np.flatnonzero(pages.va[1:] - last[:-1] > FAR)[:REGION_LIMIT]
    near = np.zeros(len(values), np.bool_)
    for first, end in zip([0, *(cuts + 1).tolist()], [*cuts.tolist(), len(last) - 1], strict=True):
        near |= values - pages.va[first] <= last[end] - pages.va[first]
    some = np.flatnonzero(near & among)
    which = np.searchsorted(pages.va, values[some], side="right") - 1
    return some[values[some] <= last[which]]
