# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.guest import READ_LIMIT, VIEW_LIMIT, Guest, GuestFault
from nova_vmi_attest.introspection.paging import PAGE
from nova_vmi_attest.kernel.kallsyms import SymbolError

from . import fakes
from .fakes import KERNEL, FakeMemory

DATA = KERNEL + 0x10000
PHYSICAL = 0x80000
OFFSETS = {
    ("rb_node", "rb_right"): 8,
    ("rb_node", "rb_left"): 16,
    ("xa_node", "shift"): 0,
    ("xa_node", "slots"): 40,
}


@pytest.fixture
def memory() -> FakeMemory:
    memory = FakeMemory(1 << 20)
    for page in range(8):
        # Backwards, so that nothing is contiguous by chance.
        fakes.map_page(memory, DATA + page * PAGE, PHYSICAL - page * PAGE)
    return memory


@pytest.fixture
def guest(memory: FakeMemory) -> Guest:
    return fakes.guest(memory, fakes.kernel({"here": DATA, "percpu": 0x40}, OFFSETS))


def put(memory: FakeMemory, va: int, value: int) -> None:
    page, inside = divmod(va - DATA, PAGE)
    memory.word(PHYSICAL - page * PAGE + inside, value)


def test_reads_cross_pages_that_lie_apart(memory: FakeMemory, guest: Guest) -> None:
    memory.put(PHYSICAL + PAGE - 4, b"left")
    memory.put(PHYSICAL - PAGE, b"right")
    assert guest.read(DATA + PAGE - 4, 9) == b"leftright"
    assert guest.view(DATA + PAGE - 4, 9).tobytes() == b"leftright"
    assert guest.cstr(DATA + PAGE - 4, 100) == b"leftright"
    assert guest.u32(DATA + PAGE - 4) == int.from_bytes(b"left", "little")
    assert guest.symbol("here") == DATA
    assert guest.symbol("percpu") == 0x40


def test_a_string_without_end_is_cut(memory: FakeMemory, guest: Guest) -> None:
    memory.put(PHYSICAL, b"a" * PAGE)
    assert guest.cstr(DATA, 64) == b"a" * 64


@pytest.mark.parametrize("address", [0, DATA + 8 * PAGE, (1 << 64) - 4, -8, 1 << 70])
def test_what_is_not_mapped_is_a_fault_with_its_address(guest: Guest, address: int) -> None:
    with pytest.raises(GuestFault) as caught:
        guest.u64(address)
    assert 0 <= caught.value.address < 1 << 64


@pytest.mark.parametrize("length", [-1, READ_LIMIT + 1, 1 << 63])
def test_lengths_are_bounded(guest: Guest, length: int) -> None:
    with pytest.raises(GuestFault):
        guest.read(DATA, length)
    with pytest.raises(GuestFault):
        guest.view(DATA, max(length, -1) if length < 0 else VIEW_LIMIT + length)


def test_what_was_read_is_kept_until_refresh(memory: FakeMemory, guest: Guest) -> None:
    assert guest.u64(DATA) == 0
    put(memory, DATA, 7)
    assert guest.u64(DATA) == 0
    guest.refresh()
    assert guest.u64(DATA) == 7


def test_pages_are_let_go_when_the_pass_ends(memory: FakeMemory, guest: Guest) -> None:
    assert guest.u64(DATA) == 0
    put(memory, DATA, 7)
    memory.end_pass()
    assert guest.u64(DATA) == 7
    put(memory, DATA, 8)
    memory.begin_pass()
    assert guest.u64(DATA) == 8


def test_pages_kept_are_bounded(memory: FakeMemory, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.introspection.memory.base.KEPT_PAGES", 2)
    for page in range(8):
        put(memory, DATA + page * PAGE, page)
    assert [guest.u64(DATA + page * PAGE) for page in range(8)] == list(range(8))
    assert len(memory.kept) <= 2


def test_pieces_are_what_lies_together(memory: FakeMemory, guest: Guest) -> None:
    put(memory, DATA + PAGE, 5)
    pieces = guest.pieces(DATA + 8, 2 * PAGE - 8)
    assert [len(piece) for piece in pieces] == [PAGE - 8, PAGE]
    assert int(pieces[1].view("<u8")[0]) == 5
    assert guest.pieces(DATA, 0) == []
    assert guest.view(DATA, 0).size == 0


def test_lists_end_at_their_head_or_fault(memory: FakeMemory, guest: Guest) -> None:
    head, one, two = DATA, DATA + 0x40, DATA + PAGE
    for at, value in ((head, one), (one, two), (two, head)):
        put(memory, at, value)
    assert list(guest.list_entries(head, 0x10, 10)) == [one - 0x10, two - 0x10]
    put(memory, two, one)
    guest.refresh()
    with pytest.raises(GuestFault, match="does not end within 10"):
        list(guest.list_entries(head, 0, 10))


def test_trees_that_loop_fault(memory: FakeMemory, guest: Guest) -> None:
    put(memory, DATA + 8, DATA + 0x100)
    assert sorted(guest.rbtree(DATA, 10)) == [DATA, DATA + 0x100]
    put(memory, DATA + 0x100 + 16, DATA)
    guest.refresh()
    with pytest.raises(GuestFault, match="loops"):
        list(guest.rbtree(DATA, 10))


def test_an_xarray_gives_its_entries_and_faults_when_it_loops(memory: FakeMemory, guest: Guest) -> None:
    node, below = DATA, DATA + 0x400
    memory.put(PHYSICAL, b"\x06")
    put(memory, node + 40 + 8 * 2, below + 2)
    put(memory, below + 40 + 8 * 5, 0xFFFF888000001000)
    assert guest.xarray(node + 2, 100) == {2 * 64 + 5: 0xFFFF888000001000}
    assert guest.xarray(0, 100) == {}
    put(memory, below + 40, node + 2)
    guest.refresh()
    with pytest.raises(GuestFault, match="does not fit"):
        guest.xarray(node + 2, 100)


def test_unknown_names_are_typed_errors(guest: Guest) -> None:
    with pytest.raises(SymbolError):
        guest.symbol("nothing")
    with pytest.raises(AttestError):
        guest.offset("task_struct", "tasks")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=256, max_size=2048), st.integers(0, 8 * PAGE - 1))
def test_walkers_over_random_bytes_end(content: bytes, at: int) -> None:
    memory = FakeMemory(1 << 20)
    for page in range(8):
        fakes.map_page(memory, DATA + page * PAGE, PHYSICAL + page * PAGE)
    memory.put(PHYSICAL, (content * 200)[: 8 * PAGE])
    guest = fakes.guest(memory, fakes.kernel({}, OFFSETS))
    va = DATA + at
    for walk in (
        lambda: list(guest.list_entries(va, 8, 100)),
        lambda: list(guest.rbtree(va, 100)),
        lambda: list(guest.xarray(va | 2, 100)),
        lambda: [*guest.cstr(va, 100)],
    ):
        with suppress(GuestFault):
            assert len(walk()) <= 164
