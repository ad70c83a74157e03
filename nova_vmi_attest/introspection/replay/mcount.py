# SPDX-License-Identifier: Apache-2.0
"""Function entries: the compiler's ``call __fentry__`` becomes a NOP until somebody traces the function.

``__mcount_loc`` lists their addresses. A function that is being traced has a call here, which no rule
explains: an ftrace hook shows as unexplained bytes, whoever set it.

Source: kernel/trace/ftrace.c (ftrace_process_locs), arch/x86/kernel/ftrace.c (ftrace_make_nop).
"""

from __future__ import annotations

import numpy as np

from .instructions import CALL, NOP5, repeated
from .patching import Mechanism, Patching

SITE = np.dtype([("address", "<i8")])


def apply(patching: Patching) -> None:
    """Patch every entry that is a call.

    :raises ReplayError: an address is outside the image.
    """
    table = patching.table("__mcount_loc")
    if table is None:
        return
    _, entries = table.records(SITE)
    sites = entries["address"][entries["address"] != 0]  # entries of discarded weak functions
    offsets = patching.locate(sites, len(NOP5), "__mcount_loc")
    offsets = offsets[patching.image[offsets] == CALL]
    patching.put_rows(offsets, repeated(NOP5, len(offsets)), Mechanism.MCOUNT)
