# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from nova_vmi_attest.introspection.build import (
    AFTER_INIT,
    CALL_ENTRY,
    JUMP_ENTRY,
    SPLIT_LITERAL,
    Build,
    BuildError,
    absolute,
    canonical_order,
)
from nova_vmi_attest.kernel.relocations import LINK_BASE
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .fakes import FakeSymbols

OFFSETS = {
    "_text": 0,
    "first": 0x10,
    "_etext": 0x100,
    "__start_rodata": 0x1000,
    "__start_ro_after_init": 0x1800,
    "__end_ro_after_init": 0x1900,
    "__end_rodata": 0x2000,
    "__SCK__call": 0x2100,
}


def build(**changed: int) -> Build:
    image = np.zeros(0x3000, np.uint8)
    image[0x1200 : 0x1200 + len(SPLIT_LITERAL)] = np.frombuffer(SPLIT_LITERAL, np.uint8)
    image[0x2100:0x2108] = np.frombuffer((LINK_BASE + 0x10).to_bytes(8, "little"), np.uint8)
    sections = {".rodata": (0x1000, 0xF00)}
    return Build(
        cast(
            Vmlinux,
            SimpleNamespace(
                image=image,
                sections=sections,
                section_offset=sections.get,
                symbols=FakeSymbols({name: LINK_BASE + at for name, at in (OFFSETS | changed).items()}),
            ),
        )
    )


def test_what_boot_code_writes_is_left_out_and_nothing_else() -> None:
    commas = [0x200 + at for at, c in enumerate(SPLIT_LITERAL) if c == ord(",")]
    expected = [(at, at + 1) for at in commas] + [(0x800, 0x900), (0xF00, 0x1000)]
    assert list(build().ignored) == expected
    assert (build().commas - 0x1000).tolist() == commas


def test_functions_and_static_calls_of_a_build() -> None:
    functions = [address - LINK_BASE for address in build().functions.tolist()]
    assert functions == [0, 0x10]
    call = build().static_calls[0]
    assert (call.name, call.key - LINK_BASE, call.target - LINK_BASE) == ("call", 0x2100, 0x10)


def test_a_build_whose_symbols_make_no_sense_is_refused() -> None:
    with pytest.raises(BuildError):
        build(__end_rodata=0x9000).read_only  # noqa: B018 - the access is the test
    with pytest.raises(BuildError):
        build(__end_ro_after_init=0x1000).span(AFTER_INIT)
    with pytest.raises(BuildError):
        build().required(("nothing", "_etext"))


@pytest.mark.parametrize("entry", [JUMP_ENTRY, CALL_ENTRY])
def test_a_sorted_table_is_the_same_table(entry: np.dtype[np.void]) -> None:
    rows = [(0x40, 0x80, 0x1001), (0x20, 0x60, 0x2000), (0x30, 0x10, 0x1000)]

    def table(order: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        raw = np.zeros(3, entry)
        for place, index in enumerate(order):
            names = entry.names or ()
            values = rows[index] if len(names) == 3 else (rows[index][0], rows[index][2])
            for name, value in zip(names, values, strict=True):
                assert entry.fields is not None
                raw[name][place] = value - 0x500 - place * entry.itemsize - entry.fields[name][1]
        return raw.view(np.uint8)

    one = canonical_order(absolute(table([0, 1, 2]), 0x500, entry))
    other = canonical_order(absolute(table([2, 0, 1]), 0x500, entry))
    assert np.array_equal(one, other)
    assert one[0, 0] == 0x20
