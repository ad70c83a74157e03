# SPDX-License-Identifier: Apache-2.0
"""Returns: the compiler's ``jmp __x86_return_thunk`` becomes what the mitigations chose.

``.return_sites`` lists them. Without return thunks a site is ``ret`` and int3; with another thunk than the
default one it jumps there. Where the thunk guards against indirect target selection, a site in the upper
half of a cache line needs none and is a plain return.

Source: arch/x86/kernel/alternative.c (apply_returns, patch_return, cpu_wants_rethunk_at).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .features import RETHUNK
from .inputs import LiveKernel, signed
from .instructions import JMP32, RET, branches, repeated
from .patching import Addresses, Mechanism, Patching

UPPER_HALF = 0x20  # bit of an address that tells the halves of a cache line


def apply(patching: Patching) -> None:
    """Patch every site that is still a jump.

    :raises ReplayError: a site is outside the image.
    """
    table = patching.table(".return_sites")
    if table is None:
        return
    sites = table.self_relative()
    offsets = patching.locate(sites, len(RET), ".return_sites")
    jumps = patching.image[offsets] == JMP32
    sites, offsets = sites[jumps], offsets[jumps]
    thunked = uses_thunk(patching.kernel, sites)
    plain = offsets[~thunked]
    patching.put_rows(plain, repeated(RET, len(plain)), Mechanism.RETURN)
    thunk = patching.kernel.return_thunk
    if thunk is None or not thunked.any():
        return
    rows, reachable = branches(bytes([JMP32]), sites[thunked], np.array([signed(thunk)], np.int64))
    if not reachable.all():
        where = patching.kernel.symbol("x86_return_thunk") or 0
        patching.kernel.invalid("return_thunk", where, thunk, "out of reach of a jump")
    patching.put_rows(offsets[thunked][reachable], rows[reachable], Mechanism.RETURN)


def uses_thunk(kernel: LiveKernel, sites: Addresses) -> NDArray[np.bool_]:
    """Which sites return through the thunk, rather than by a plain return."""
    if not kernel.has(RETHUNK):
        return np.zeros(len(sites), np.bool_)
    guarded = kernel.symbol("its_return_thunk")
    if guarded is not None and kernel.return_thunk == guarded:
        lower: NDArray[np.bool_] = (sites & UPPER_HALF) == 0
        return lower
    return np.ones(len(sites), np.bool_)
