# SPDX-License-Identifier: Apache-2.0
"""The few x86-64 instructions that the kernel writes into itself, and how long instructions are.

Sources: arch/x86/include/asm/nops.h (64-bit NOPs), asm/text-patching.h (text_gen_insn), and optimize_nops()
of arch/x86/kernel/alternative.c.
"""

from __future__ import annotations

import functools

import numpy as np
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

CALL = 0xE8
JMP32 = 0xE9
JMP8 = 0xEB
INT3 = 0xCC
RET = b"\xc3\xcc\xcc\xcc\xcc"  # the rest of a five-byte site is filled with int3
LONGEST = 15  # bytes of an instruction

# One NOP of each length; longer fillings are made of several, the longest first (ASM_NOP_MAX is 8).
NOPS = (
    b"",
    b"\x90",
    b"\x66\x90",
    b"\x0f\x1f\x00",
    b"\x0f\x1f\x40\x00",
    b"\x0f\x1f\x44\x00\x00",
    b"\x66\x0f\x1f\x44\x00\x00",
    b"\x0f\x1f\x80\x00\x00\x00\x00",
    b"\x0f\x1f\x84\x00\x00\x00\x00\x00",
)
NOP5 = NOPS[5]


@functools.cache
def nops(length: int) -> bytes:
    """``length`` bytes that do nothing, in the fewest instructions (add_nops)."""
    full, rest = divmod(max(length, 0), 8)
    return NOPS[8] * full + NOPS[rest]


@functools.cache
def _decoder() -> Cs:
    return Cs(CS_ARCH_X86, CS_MODE_64)


def instruction_length(code: bytes) -> int | None:
    """Length of the first instruction of ``code``, or None when there is none that decodes."""
    found = next(_decoder().disasm_lite(code[:LONGEST].ljust(LONGEST, b"\0"), 0, 1), None)
    return None if found is None else int(found[1])


def optimize_nops(code: bytes) -> bytes:
    """Replace each run of two or more one-byte NOPs by the fewest longer ones, as optimize_nops() does.

    The walk goes from instruction to instruction, for a 0x90 inside one is no NOP; it ends where the bytes
    stop being code.
    """
    if b"\x90\x90" not in code:
        return code
    result, at = bytearray(code), 0
    while at < len(code):
        if result[at] != 0x90:
            length = instruction_length(bytes(result[at : at + LONGEST]))
            if length is None:
                break
            at += length
            continue
        end = at
        while end < len(code) and result[end] == 0x90:
            end += 1
        result[at:end] = nops(end - at)
        at = end
    return bytes(result)


def branches(
    opcode: bytes, sites: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[Bytes, NDArray[np.bool_]]:
    """``opcode`` and a 32-bit displacement at each site, as rows of bytes, and which targets it can reach."""
    size = len(opcode) + 4
    with np.errstate(over="ignore"):  # addresses are exact modulo 2**64
        distance = targets - (sites + size)
    reachable = (distance >= -(1 << 31)) & (distance < 1 << 31)
    rows = np.empty((len(sites), size), np.uint8)
    rows[:, : len(opcode)] = np.frombuffer(opcode, np.uint8)
    rows[:, len(opcode) :] = distance.astype("<i4")[:, None].view(np.uint8)
    return rows, reachable


def repeated(code: bytes, count: int) -> Bytes:
    """``count`` rows of the same bytes."""
    return np.broadcast_to(np.frombuffer(code, np.uint8), (count, len(code)))
