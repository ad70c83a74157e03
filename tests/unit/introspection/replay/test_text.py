# SPDX-License-Identifier: Apache-2.0
"""A whole small kernel: where its code and tables are found, and in which order they are applied."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from nova_vmi_attest.introspection.replay.features import RETHUNK
from nova_vmi_attest.introspection.replay.instructions import NOP5, RET
from nova_vmi_attest.introspection.replay.patching import MAX_TABLE_BYTES, Mechanism, ReplayError
from nova_vmi_attest.introspection.replay.text import Replayed, replay_kernel
from nova_vmi_attest.kernel.elf import Section
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .support import BASE, CAPABILITIES, Build, Memory, branch, capabilities, s32, self_relative, u64

SLIDE = 0x1200000
FEATURE = 77
TEXT_SIZE, NEW, RETURNS, ENTRIES, MCOUNT, KEYS = 0x100, 0x200, 0x300, 0x400, 0x500, 0x600
THUNK, FUNCTION, TRAMPOLINE = BASE + 0xC0, BASE + 0xA0, BASE + 0x80
EXEC = 6  # SHF_ALLOC | SHF_EXECINSTR


class Kernel(Build):
    """A kernel of 2 KiB: text, a replacement that holds a return site, tables, and one trampoline."""

    def __init__(self, **symbols: int) -> None:
        super().__init__(
            {
                "_etext": BASE + TEXT_SIZE,
                "__static_call_text_start": TRAMPOLINE,
                "__static_call_text_end": TRAMPOLINE + 8,
                "__SCT__name": TRAMPOLINE,
                "__SCK__name": BASE + KEYS,
                "x86_return_thunk": BASE + KEYS + 8,
                "__start_mcount_loc": BASE + MCOUNT,
                "__stop_mcount_loc": BASE + MCOUNT + 8,
                **symbols,
            },
            slots=1,
        )
        entry = ENTRIES
        self.sections = {
            name: Section(name, BASE + start, 0, size, 1, flags)
            for name, start, size, flags in (
                (".text", 0, TEXT_SIZE, EXEC),
                (".altinstr_replacement", NEW, 16, EXEC),
                (".return_sites", RETURNS, 8, 2),
                (".altinstructions", entry, 12, 2),
            )
        }
        image = np.zeros(0x800, np.uint8)
        for start, data in (
            (0, branch(0xE8, BASE, FUNCTION)),
            (0x10, branch(0xE9, BASE + 0x10, THUNK)),
            (0x20, NOP5),
            (NEW, branch(0xE9, BASE + NEW, THUNK)),
            (RETURNS, self_relative(BASE + 0x10, BASE + NEW, start=BASE + RETURNS)),
            (entry, s32(0x20 - entry) + s32(NEW - entry - 4) + bytes([FEATURE, 0, 5, 5])),
            (MCOUNT, u64(BASE + SLIDE)),
        ):
            image[start : start + len(data)] = np.frombuffer(data, np.uint8)
        self.image = image

    def offset_of(self, name: str) -> int:
        return cast(int, self.symbols.get(name)) - BASE

    def section_offset(self, name: str) -> tuple[int, int] | None:
        found = self.sections.get(name)
        return None if found is None else (found.address - BASE, found.size)

    def relocated(self, slide: int, start: int, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        assert slide == SLIDE
        return self.image[start:end].copy()


def replayed(*features: int, thunk: int = THUNK, kernel: Kernel | None = None) -> Replayed:
    keys = u64(FUNCTION + SLIDE) + u64(thunk + SLIDE)
    memory = {CAPABILITIES + SLIDE: capabilities(features), BASE + SLIDE + KEYS: keys}
    return replay_kernel(Memory(memory, SLIDE), cast(Vmlinux, kernel or Kernel()))


def test_only_text_is_given_and_nothing_of_it_can_be_written() -> None:
    made = replayed()
    assert len(made.image) == len(made.owner) == TEXT_SIZE
    assert not made.image.flags.writeable


def test_mechanisms_find_their_sites_under_a_slide() -> None:
    made = replayed()
    assert made.image[:5].tobytes() == NOP5
    assert made.owner[0] == Mechanism.MCOUNT
    assert made.image[0x10:0x15].tobytes() == RET
    assert made.image[0x80:0x85].tobytes() == branch(0xE9, TRAMPOLINE, FUNCTION)
    assert set(made.owner[0x80:0x85]) == {Mechanism.TRAMPOLINE}
    assert made.inputs.static_calls == {BASE + SLIDE + KEYS: FUNCTION + SLIDE}


def test_a_replacement_is_patched_before_it_is_copied() -> None:
    made = replayed(FEATURE)
    assert made.image[0x20:0x25].tobytes() == RET
    made = replayed(FEATURE, RETHUNK, thunk=FUNCTION)
    # Moved, and then short: the target lies less than 128 bytes ahead.
    assert made.image[0x20:0x25].tobytes() == bytes.fromhex("eb7e 0f1f00")


def test_a_table_outside_the_image_is_a_typed_error() -> None:
    for symbols in (
        {"__stop_mcount_loc": BASE + 0x801},
        {"__stop_mcount_loc": BASE + MCOUNT - 8},
        {"__start_mcount_loc": BASE - 8},
        {"__stop_mcount_loc": BASE + MCOUNT + MAX_TABLE_BYTES + 8},
    ):
        with pytest.raises(ReplayError):
            replayed(kernel=Kernel(**symbols))


def test_a_kernel_without_a_table_leaves_its_sites() -> None:
    kernel = Kernel()
    del kernel.sections[".return_sites"]
    assert replayed(kernel=kernel).image[0x10:0x15].tobytes() == branch(0xE9, BASE + 0x10, THUNK)


def test_a_guest_that_cannot_be_read_gives_a_replay_with_its_reasons() -> None:
    made = replay_kernel(Memory({}, SLIDE), cast(Vmlinux, Kernel()))
    kinds = {one.kind for one in made.inputs.invalid}
    assert kinds == {"cpu_capabilities", "return_thunk", "static_call"}
    assert made.image[:5].tobytes() == NOP5
