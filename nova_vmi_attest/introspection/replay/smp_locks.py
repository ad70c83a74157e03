# SPDX-License-Identifier: Apache-2.0
"""Lock prefixes: on a single CPU they are replaced by a prefix without effect.

``.smp_locks`` lists them. Of the kernel those in its text are patched, of a module those in its ``.text``
section. The kernel undoes it for good when a second CPU starts.

Source: arch/x86/kernel/alternative.c (alternatives_smp_unlock, alternatives_smp_module_add).
"""

from __future__ import annotations

import numpy as np

from .patching import Mechanism, Patching

LOCK = 0xF0
DS = 0x3E  # a segment override that 64-bit code ignores


def apply(patching: Patching) -> None:
    """Patch the prefixes when the guest runs on one CPU.

    :raises ReplayError: a site is outside the image.
    """
    table = patching.table(".smp_locks")
    if table is None or not patching.kernel.smp.uniprocessor:
        return
    sites = table.self_relative()
    sites = sites[patching.in_regions(sites, lockable=True)]
    offsets = patching.locate(sites, 1, ".smp_locks")
    offsets = offsets[patching.image[offsets] == LOCK]
    patching.put_rows(offsets, np.full((len(offsets), 1), DS, np.uint8), Mechanism.SMP_LOCK)
