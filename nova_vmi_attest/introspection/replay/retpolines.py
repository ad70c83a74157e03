# SPDX-License-Identifier: Apache-2.0
"""Calls of __x86_indirect_thunk_REG become plain indirect branches where the CPU needs no retpolines.

``.retpoline_sites`` lists call, jmp and jcc instructions (six bytes long with a 0x2e prefix, or as jcc).
With retpolines in use nothing changes. Otherwise a site becomes ``call *%reg`` or ``jmp *%reg``, after an
lfence where the CPU wants one; a jcc becomes the inverse short jcc over such a jmp. int3 follows a jmp
where there is room, NOPs fill the rest, and a form that does not fit leaves the site alone. Some CPUs need
thunks of another kind there:
:mod:`.indirect_thunks`.

Source: arch/x86/kernel/alternative.c (apply_retpolines, patch_retpoline, emit_indirect).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import indirect_thunks
from .features import RETPOLINE, RETPOLINE_LFENCE
from .inputs import LiveKernel, signed
from .instructions import CALL, INT3, JMP32, optimize_nops, repeated
from .patching import Addresses, Bytes, Mechanism, Patching

REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
PREFIX, ESCAPE = 0x2E, 0x0F
LFENCE = b"\x0f\xae\xe8"


def apply(patching: Patching) -> None:
    """Patch every site that still leads to a thunk.

    :raises ReplayError: a site is outside the image.
    """
    table = patching.table(".retpoline_sites")
    lfence = patching.kernel.has(RETPOLINE_LFENCE)
    if table is None or (patching.kernel.has(RETPOLINE) and not lfence):
        return
    sites = table.self_relative()
    # The shortest site has five bytes; whether a sixth belongs to it is seen from the first.
    offsets = patching.locate(sites, 5, ".retpoline_sites")
    first = patching.image[offsets]
    second = patching.image[offsets + 1]
    lengths = np.where((first == PREFIX) | (first == ESCAPE), 6, 5)
    patching.locate(sites, lengths, ".retpoline_sites")
    opcode = np.where(first == PREFIX, second, first)
    condition = np.where(first == ESCAPE, second & 0x0F, 0)
    registers = _registers(
        patching.kernel, sites + lengths + _displacements(patching.image, offsets + lengths)
    )
    known = (registers >= 0) & (
        (opcode == CALL) | (opcode == JMP32) | ((opcode == ESCAPE) & (second & 0xF0 == 0x80))
    )
    forms = np.stack([opcode, condition, lengths, registers], axis=1)[known]
    sites, offsets = sites[known], offsets[known]
    guarded = _guarded(patching.kernel, sites, forms, lfence=lfence)
    _write_guarded(patching, sites[guarded], offsets[guarded], forms[guarded])
    forms, offsets = forms[~guarded], offsets[~guarded]
    unique, which = np.unique(forms, axis=0, return_inverse=True)
    for index, (code, cc, length, register) in enumerate(unique.tolist()):
        data = indirect_branch(code, cc, length, register, lfence=lfence)
        if data is not None:
            places = offsets[which.ravel() == index]
            patching.put_rows(places, repeated(data, len(places)), Mechanism.RETPOLINE)


def _guarded(
    kernel: LiveKernel, sites: Addresses, forms: NDArray[np.int64], *, lfence: bool
) -> NDArray[np.bool_]:
    """Which sites go through a thunk, because their branch would end in the lower half of a cache line."""
    number = indirect_thunks.feature(kernel.vmlinux)
    if number is None or not kernel.has(number):
        return np.zeros(len(sites), np.bool_)
    before = np.where(forms[:, 0] == ESCAPE, 2, 0) + (len(LFENCE) if lfence else 0)
    last = sites + before + 1 + forms[:, 3] // 8
    lower: NDArray[np.bool_] = (last & indirect_thunks.UPPER_HALF) == 0
    return lower


def _write_guarded(
    patching: Patching, sites: Addresses, offsets: NDArray[np.int64], forms: NDArray[np.int64]
) -> None:
    thunks = indirect_thunks.Thunks(patching)
    for site, offset, form in zip(sites.tolist(), offsets.tolist(), forms.tolist(), strict=True):
        data = thunks.branch(site, *form)
        if data is not None:
            patching.put(offset, data, Mechanism.RETPOLINE)
    thunks.finish()


def indirect_branch(opcode: int, condition: int, length: int, register: int, *, lfence: bool) -> bytes | None:
    """The bytes of a site of ``length`` bytes, or None where they do not fit."""
    code = bytearray()
    if opcode == ESCAPE:
        code += bytes([0x70 | (condition ^ 1), length - 2])
    if lfence:
        code += LFENCE
    if register >= 8:
        code.append(0x41)
    code += bytes([0xFF, (0xD0 if opcode == CALL else 0xE0) | (register & 7)])
    if opcode != CALL and len(code) < length:
        code.append(INT3)
    if len(code) > length:
        return None
    return optimize_nops(bytes(code).ljust(length, b"\x90"))


def _displacements(image: Bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The signed 32-bit values that end at each image offset."""
    rows = image[ends[:, None] + np.arange(-4, 0)]
    return np.ascontiguousarray(rows).view("<i4").ravel().astype(np.int64)


def _registers(kernel: LiveKernel, targets: Addresses) -> NDArray[np.int64]:
    """The register whose thunk each target is, or -1."""
    found = np.full(len(targets), -1, np.int64)
    for number, name in enumerate(REGISTERS):
        thunk = kernel.symbol(f"__x86_indirect_thunk_{name}")
        if thunk is not None:
            found[targets == signed(thunk)] = number
    return found
