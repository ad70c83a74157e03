# SPDX-License-Identifier: Apache-2.0
"""Alternatives: code that depends on CPU features or bugs.

Each entry of ``.altinstructions`` gives a site, a replacement, a feature and two lengths. In table order,
so that later entries win, an entry whose feature is set (or not set, when inverted) has its replacement
copied to the site: a five-byte call keeps its target, a five-byte jump too and is shortened where the
kernel finds it can be; the rest is filled with one-byte NOPs. Applied or not, runs of one-byte NOPs in the
site are then merged.

Source: arch/x86/kernel/alternative.c (apply_alternatives, recompute_jump, optimize_nops).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .instructions import CALL, JMP8, JMP32, NOPS, optimize_nops
from .patching import Addresses, Mechanism, Patching, ReplayError, Table

INVERTED = 0x8000
BRANCH_SIZE = 5


@dataclass(frozen=True, slots=True)
class Entries:
    """A decoded table: running addresses of sites and replacements, their lengths, and the conditions."""

    sites: Addresses
    replacements: Addresses
    features: NDArray[np.int64]
    inverted: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    replacement_lengths: NDArray[np.int64]


# struct alt_instr without a flags member: bit 15 of the feature inverts it.
TWELVE = np.dtype(
    [("site", "<i4"), ("new", "<i4"), ("feature", "<u2"), ("length", "u1"), ("new_length", "u1")]
)


def _decode_twelve(table: Table) -> Entries:
    places, raw = table.records(TWELVE)
    return Entries(
        sites=places + raw["site"],
        replacements=places + 4 + raw["new"],
        features=(raw["feature"] & 0x7FFF).astype(np.int64),
        inverted=(raw["feature"] & INVERTED) != 0,
        lengths=raw["length"].astype(np.int64),
        replacement_lengths=raw["new_length"].astype(np.int64),
    )


def decode(patching: Patching, table: Table) -> Entries:
    """Read the table in the layout under which every entry makes sense.

    :raises ReplayError: there is no such layout.
    """
    entries = _decode_twelve(table)
    fits = entries.replacement_lengths <= entries.lengths
    if len(table.data) % TWELVE.itemsize or not fits.all():
        raise ReplayError(".altinstructions has a layout that is not known")
    patching.locate(entries.sites, entries.lengths, ".altinstructions")
    # An empty replacement may be said to lie at the very end of its section.
    filled = entries.replacement_lengths > 0
    patching.locate(entries.replacements[filled], entries.replacement_lengths[filled], ".altinstructions")
    return entries


def apply(patching: Patching) -> None:
    """Apply the table.

    :raises ReplayError: its layout is not known, or it points outside the image.
    """
    table = patching.table(".altinstructions")
    if table is None:
        return
    entries = decode(patching, table)
    numbers, which = np.unique(entries.features, return_inverse=True)
    present = np.array([patching.kernel.has(number) for number in numbers.tolist()], np.bool_)
    applied = (present[which] if len(numbers) else entries.inverted) != entries.inverted
    offsets = patching.locate(entries.sites, entries.lengths, ".altinstructions")
    filled = entries.replacement_lengths > 0
    sources = np.zeros(len(offsets), np.int64)
    sources[filled] = patching.locate(entries.replacements[filled], 1, ".altinstructions")
    image = patching.image.data
    for site, replacement, offset, length, source, size, used in zip(
        entries.sites.tolist(),
        entries.replacements.tolist(),
        offsets.tolist(),
        entries.lengths.tolist(),
        sources.tolist(),
        entries.replacement_lengths.tolist(),
        applied.tolist(),
        strict=True,
    ):
        old = bytes(image[offset : offset + length])
        new = old
        if used:
            moved = move(bytes(image[source : source + size]), replacement, site)
            new = moved.ljust(length, b"\x90")
        new = optimize_nops(new)
        if new != old:
            patching.put(offset, new, Mechanism.ALTERNATIVE)


def move(code: bytes, source: int, site: int) -> bytes:
    """A replacement that was assembled at ``source``, as it is written at ``site``."""
    if len(code) != BRANCH_SIZE or code[0] not in (CALL, JMP32, JMP8):
        return code
    (displacement,) = struct.unpack_from("<i", code, 1)
    distance = source + BRANCH_SIZE + displacement - site  # from the first byte of the site to the target
    if code[0] == CALL:
        return code[:1] + _wrapped(distance - BRANCH_SIZE)
    # The kernel's test for a short backward jump compares a negative number with its low byte: never true.
    if 0 <= distance <= 127 + 2:
        return bytes([JMP8, (distance - 2) & 0xFF]) + NOPS[3]
    return bytes([JMP32]) + _wrapped(distance - BRANCH_SIZE)


def _wrapped(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)
