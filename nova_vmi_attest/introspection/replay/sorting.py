# SPDX-License-Identifier: Apache-2.0
"""Read-only tables of a module that the kernel sorts when it loads it, as they lie afterwards.

Only orders that are unique are computed: a table with entries that compare equal may come out in several
ways, for the kernel's sort is not stable.

Source: lib/extable.c (sort_extable), kernel/trace/ftrace.c (ftrace_process_locs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .patching import Bytes, ReplayError

# struct exception_table_entry: two self-relative addresses, and a word that says how to fix up.
_EXCEPTION = np.dtype([("place", "<i4"), ("target", "<i4"), ("data", "<u4")])


def sort_exceptions(data: Bytes) -> Bytes:
    """The exception table by address of the faulting instruction.

    :raises ReplayError: the table has a piece of an entry.
    """
    if len(data) % _EXCEPTION.itemsize:
        raise ReplayError(f"an exception table of {len(data)} bytes has a piece of an entry")
    entries = np.frombuffer(data.tobytes(), _EXCEPTION).copy()
    positions = np.arange(len(entries), dtype=np.int64) * _EXCEPTION.itemsize
    order = np.argsort(positions + entries["place"], kind="stable")
    moved = entries[order]
    shift = (positions[order] - positions).astype(np.int32)
    moved["place"] += shift
    moved["target"] += shift
    return np.frombuffer(moved.tobytes(), np.uint8).copy()


def sort_addresses(data: Bytes) -> Bytes:
    """Absolute 64-bit addresses, ascending.

    :raises ReplayError: the table has a piece of an address.
    """
    if len(data) % 8:
        raise ReplayError(f"a table of addresses has {len(data)} bytes")
    return np.sort(np.frombuffer(data.tobytes(), "<u8")).view(np.uint8)


SORTED: Mapping[str, Callable[[Bytes], Bytes]] = {
    "__ex_table": sort_exceptions,
    "__mcount_loc": sort_addresses,
}
