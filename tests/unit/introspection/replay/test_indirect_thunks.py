# SPDX-License-Identifier: Apache-2.0
"""Thunks for indirect branches: their layout in pages, and whose word is taken for where those are."""

from __future__ import annotations

import itertools
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.replay import retpolines
from nova_vmi_attest.introspection.replay.features import ALWAYS
from nova_vmi_attest.introspection.replay.indirect_thunks import Thunks, feature
from nova_vmi_attest.introspection.replay.inputs import LiveKernel, signed
from nova_vmi_attest.introspection.replay.patching import Patching, Region, Table
from nova_vmi_attest.kernel.vmlinux import Vmlinux

from .support import (
    BASE,
    CAPABILITIES,
    DATA,
    Build,
    Memory,
    Symbols,
    as_bytes,
    branch,
    capabilities,
    patching,
    s32,
    self_relative,
)

CALL, JMP, JCC = 0xE8, 0xE9, 0x0F
PAGE = 0xFFFFFFFFC0002000
FIRST = 32  # where the first thunk of a page lies


def bench(live: bytes) -> Patching:
    return patching(bytes(64), {}, memory={BASE: live})


@pytest.mark.parametrize(
    ("opcode", "condition", "length", "register", "expected"),
    [
        (CALL, 0, 5, 0, branch(0xE8, BASE, PAGE + FIRST)),
        (JMP, 0, 5, 3, branch(0xE9, BASE, PAGE + FIRST)),
        (CALL, 0, 6, 11, b"\x2e" + branch(0xE8, BASE + 1, PAGE + FIRST)),
        (JCC, 4, 6, 0, b"\x0f" + branch(0x84, BASE + 1, PAGE + FIRST)),
    ],
)
def test_the_first_site_gives_the_page(
    opcode: int, condition: int, length: int, register: int, expected: bytes
) -> None:
    made = bench(expected)
    thunks = Thunks(made)
    assert thunks.branch(signed(BASE), opcode, condition, length, register) == expected
    thunks.finish()
    (page,) = made.kernel.inputs().thunk_pages
    code = (b"\x41" if register >= 8 else b"") + bytes([0xFF, 0xE0 | register & 7, 0xCC])
    assert page.address == PAGE
    assert page.expected == (b"\xcc" * FIRST + code).ljust(4096, b"\xcc")


@pytest.mark.parametrize(
    "live",
    [
        b"",
        b"\x90" * 5,
        branch(0xE8, BASE, PAGE + FIRST + 1),  # not page-aligned
        branch(0xE8, BASE, BASE + 0x1000 + FIRST),  # not in the module region
    ],
)
def test_a_site_that_leads_nowhere_legal_stays_unexplained(live: bytes) -> None:
    made = bench(live)
    thunks = Thunks(made)
    assert thunks.branch(signed(BASE), CALL, 0, 5, 0) is None
    thunks.finish()
    assert made.kernel.inputs().thunk_pages == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=300))
def test_thunks_end_in_the_upper_half_of_a_line(registers: list[int]) -> None:
    made = bench(branch(0xE8, BASE, PAGE + FIRST))
    thunks = Thunks(made)
    ends = []
    for register in registers:
        data = thunks.branch(signed(BASE), CALL, 0, 5, register)
        assert data is not None
        target = BASE + 5 + int.from_bytes(data[1:], "little", signed=True)
        ends.append(target + 2 + register // 8)
    assert all(end & 32 for end in ends)
    assert all(a < b for a, b in itertools.pairwise(ends))


class Image(Build):
    """A kernel that tests ``numbers`` in its_init_mod, and another feature elsewhere."""

    def __init__(self, *numbers: int, symbols: tuple[str, ...] = ("its_init_mod", "its_page")) -> None:
        super().__init__(dict.fromkeys(symbols, BASE), slots=1)
        rows = [(5, number) for number in numbers] + [(0x200, 99)]
        table = b""
        for i, (site, number) in enumerate(rows):
            place = BASE + 0x100 + 12 * i
            table += s32(BASE + site - place) + s32(0) + number.to_bytes(2, "little") + b"\x05\x05"
        self.image = as_bytes(bytes(0x100) + table)

    def section_offset(self, name: str) -> tuple[int, int] | None:
        assert name == ".altinstructions"
        return 0x100, len(self.image) - 0x100


@pytest.mark.parametrize("number", [677, 678, 682])
def test_the_number_of_the_feature_is_found_in_the_image(number: int) -> None:
    assert feature(cast(Vmlinux, Image(ALWAYS, number))) == number


@pytest.mark.parametrize(
    "image",
    [Image(), Image(ALWAYS), Image(1, 2), Image(677, symbols=("its_init_mod",)), Image(677, symbols=())],
)
def test_without_clear_evidence_there_is_no_such_feature(image: Image) -> None:
    assert feature(cast(Vmlinux, image)) is None


@pytest.mark.parametrize(("site", "guarded"), [(BASE, True), (BASE + 0x20, False)])
def test_sites_in_the_lower_half_of_a_line_are_led_to_a_thunk(site: int, guarded: bool) -> None:
    image = Image(ALWAYS, 677)
    names = {"__x86_indirect_thunk_rax": BASE + 0x1000, "boot_cpu_data": CAPABILITIES - 40}
    image.symbols = Symbols({"its_init_mod": BASE, "its_page": BASE, **names})
    code = branch(0xE8, site, BASE + 0x1000)
    live = branch(0xE8, site, PAGE + FIRST)
    memory = Memory({CAPABILITIES: capabilities((677,)), site: live})
    text = bytes(site - BASE) + code + bytes(8)
    table = Table(signed(DATA), as_bytes(self_relative(site, start=DATA)))
    regions = [Region("text", signed(BASE), len(text), 0)]
    kernel = LiveKernel(memory, cast(Vmlinux, image))
    made = Patching(as_bytes(text).copy(), regions, {".retpoline_sites": table}, kernel)
    retpolines.apply(made)
    patched = made.image[site - BASE :][:5].tobytes()
    assert patched == (live if guarded else bytes.fromhex("ffd0 0f1f00"))
    assert len(kernel.inputs().thunk_pages) == guarded
