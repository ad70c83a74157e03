# SPDX-License-Identifier: Apache-2.0
"""Indirect calls through pv_ops become direct ones.

``.parainstructions`` names each site with its slot of pv_ops and its length. A slot that holds _paravirt_nop
becomes NOPs, an empty one a call of paravirt_BUG, any other a call of its function; NOPs fill the site.

Source: arch/x86/kernel/alternative.c (apply_paravirt), arch/x86/kernel/paravirt.c (paravirt_patch).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .inputs import LiveKernel, signed
from .instructions import CALL, branches, nops, repeated
from .patching import Addresses, Mechanism, Patching, ReplayError

SITE = np.dtype([("address", "<i8"), ("slot", "u1"), ("length", "u1"), ("pad", "V6")])
CALL_SIZE = 5


def apply(patching: Patching) -> None:
    """Patch every site.

    :raises ReplayError: a site names a slot that pv_ops has not, or has no room for a call.
    """
    table = patching.table(".parainstructions")
    if table is None:
        return
    _, sites = table.records(SITE)
    functions = np.array(patching.kernel.pv_ops, np.uint64).astype(np.int64)
    if not len(sites) or not len(functions):
        return
    slots, lengths = sites["slot"].astype(np.int64), sites["length"].astype(np.int64)
    if int(slots.max()) >= len(functions):
        raise ReplayError(f".parainstructions names slot {int(slots.max())} of {len(functions)}")
    offsets = patching.locate(sites["address"], lengths, ".parainstructions")
    targets = functions[slots]
    nothing = targets == signed(patching.kernel.symbol("_paravirt_nop") or 0)
    bug = patching.kernel.symbol("paravirt_BUG")
    targets = np.where(targets == 0, signed(bug or 0), targets)
    calls, reachable = branches(bytes([CALL]), sites["address"], targets)
    _record_unreachable(patching.kernel, slots[~nothing & ~reachable], functions)
    for length in np.unique(lengths).tolist():
        empty = nothing & (lengths == length)
        patching.put_rows(offsets[empty], repeated(nops(length), int(empty.sum())), Mechanism.PARAVIRT)
        called = ~nothing & reachable & (lengths == length)
        if not called.any():
            continue
        if length < CALL_SIZE:
            raise ReplayError(f"a paravirt site has {length} bytes, too few for a call")
        filling = repeated(nops(length - CALL_SIZE), int(called.sum()))
        patching.put_rows(offsets[called], np.hstack([calls[called], filling]), Mechanism.PARAVIRT)


def _record_unreachable(kernel: LiveKernel, slots: NDArray[np.int64], functions: Addresses) -> None:
    start = kernel.symbol("pv_ops") or 0
    for slot in np.unique(slots).tolist():
        kernel.invalid("pv_ops", start + 8 * slot, int(functions[slot]), "a function out of reach of a call")
