# SPDX-License-Identifier: Apache-2.0
"""Static branches: a NOP or a jump, as the count of a static key says.

An entry of ``__jump_table`` gives a site, its target and a key; bit 0 of the key's address says that the
branch is likely, bit 1 that the site is initialisation code. The site jumps when "enabled" and "likely"
differ. It has two bytes or five, as the compiler left it.

Source: kernel/jump_label.c (jump_label_type, static_key_count), arch/x86/kernel/jump_label.c.
"""

from __future__ import annotations

import numpy as np

from .instructions import JMP8, JMP32, NOP5, NOPS, branches, repeated
from .patching import Mechanism, Patching, ReplayError

ENTRY = np.dtype([("site", "<i4"), ("target", "<i4"), ("key", "<i8")])
LIKELY, FLAGS = 1, 3
SHORT = 2


def apply(patching: Patching) -> None:
    """Write every branch of code that stays. An unreadable key leaves its branches alone.

    :raises ReplayError: a site is outside the image, or too far from its target for a short jump.
    """
    table = patching.table("__jump_table")
    if table is None:
        return
    places, entries = table.records(ENTRY)
    sites = places + entries["site"]
    kept = patching.in_regions(sites, kept=True)
    places, entries, sites = places[kept], entries[kept], sites[kept]
    targets = places + 4 + entries["target"]
    with np.errstate(over="ignore"):
        keys = places + 8 + entries["key"]
    counts, readable = patching.kernel.static_keys(keys & ~FLAGS)
    jumping = (counts != 0) != ((keys & LIKELY) != 0)  # -1: the first enabling is under way
    offsets = patching.locate(sites, SHORT, "__jump_table")
    short = (patching.image[offsets] == 0x66) | (patching.image[offsets] == JMP8)
    patching.locate(sites[~short], len(NOP5), "__jump_table")

    for idle, nop in ((short, NOPS[SHORT]), (~short, NOP5)):
        chosen = offsets[readable & idle & ~jumping]
        patching.put_rows(chosen, repeated(nop, len(chosen)), Mechanism.JUMP_LABEL)
    far = readable & jumping & ~short
    rows, reachable = branches(bytes([JMP32]), sites[far], targets[far])
    near = readable & jumping & short
    distance = targets[near] - (sites[near] + SHORT)
    if not reachable.all() or ((distance < -128) | (distance > 127)).any():
        raise ReplayError("__jump_table has a target out of reach of its jump")
    patching.put_rows(offsets[far], rows, Mechanism.JUMP_LABEL)
    rows = np.stack([np.full(len(distance), JMP8), distance & 0xFF], axis=1).astype(np.uint8)
    patching.put_rows(offsets[near], rows, Mechanism.JUMP_LABEL)
