# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel.btf import Btf, BtfError

from . import builders
from .builders import BtfBuilder
from .mutation import mutated, refusal

DATA = builders.btf()


@pytest.fixture(scope="module")
def types() -> Btf:
    return Btf.parse(DATA)


def test_offsets(types: Btf) -> None:
    assert types.offset("list_head", "prev") == 8
    assert types.offset("task_struct", "tasks") == 16
    assert types.offset("task_struct", "tasks.prev") == 24  # through const and a typedef
    assert types.offset("task_struct", "counter") == 8  # in an anonymous union
    assert types.offset("task_struct", "per.prev") == 40  # an array stands for its first element
    assert types.offset("list_t", "prev") == 8
    assert types.offset("flags", "high") == 1  # a bit-field


def test_asking_twice(types: Btf) -> None:
    assert [types.offset("list_head", "prev") for _ in range(2)] == [8, 8]


def test_sizes(types: Btf) -> None:
    assert types.size("task_struct") == 96
    assert types.size("list_t") == 16
    assert types.size("task_struct", "per") == 48
    assert types.size("list_head", "next") == 8
    assert types.size("module_state") == 4
    assert types.length("task_struct", "per") == 3
    with pytest.raises(BtfError, match="not an array"):
        types.length("task_struct", "tasks")


def test_has(types: Btf) -> None:
    assert types.has("task_struct")
    assert types.has("task_struct", "tasks.next")
    for name, path in (("task_struct", "gone"), ("gone", ""), ("task_struct", "state.x"), ("", "")):
        assert not types.has(name, path)


def test_enumerators(types: Btf) -> None:
    assert types.enumerator("COMING") == 1
    assert types.enumerator("LOST", "module_state") == -1
    assert types.enumerator("WIDE") == 7 << 32 | 5
    for name, enum in (("GONE", None), ("COMING", "wide"), ("list_head", None)):
        with pytest.raises(BtfError):
            types.enumerator(name, enum)


def test_what_is_absent(types: Btf) -> None:
    for name, path in (("task_struct", "gone"), ("gone", "x"), ("list_head", ""), ("list_head", "next.x")):
        with pytest.raises(BtfError):
            types.offset(name, path)
    with pytest.raises(BtfError):
        types.size("unsigned long")  # a name of another kind of type
    with pytest.raises(BtfError):
        types.size("\udcff")


def test_typedef_of_itself() -> None:
    b = BtfBuilder()
    b.add(builders.TYPEDEF, "loop", 2)
    b.add(builders.TYPEDEF, "back", 1)
    types = Btf.parse(b.build())
    with pytest.raises(BtfError, match="by itself"):
        types.offset("loop", "x")
    with pytest.raises(BtfError, match="by itself"):
        types.size("loop")


def test_array_of_itself() -> None:
    b = BtfBuilder()
    b.array(1, 2)
    b.structure("holder", 8, [("a", 1, 0)])
    types = Btf.parse(b.build())
    for ask in (lambda: types.offset("holder", "a.b"), lambda: types.size("holder", "a")):
        with pytest.raises(BtfError, match="of itself"):
            ask()


def test_anonymous_structures_that_contain_each_other() -> None:
    b = BtfBuilder()
    b.structure("outer", 8, [("", 2, 0), ("", 3, 0)])
    b.structure("", 8, [("", 3, 0), ("", 2, 0), ("", 1, 0)])
    b.structure("", 8, [("", 2, 0), ("deep", 1, 8)])
    types = Btf.parse(b.build())
    assert types.offset("outer", "deep") == 1
    assert not types.has("outer", "missing")


def test_nesting_deeper_than_any_kernel() -> None:
    b = BtfBuilder()
    for depth in range(5000):
        b.structure("top" if depth == 0 else "", 8, [("", depth + 2, 0)])
    b.structure("", 8, [("deep", 1, 0)])
    with pytest.raises(BtfError):
        Btf.parse(b.build()).offset("top", "deep")


def test_a_path_of_many_parts() -> None:
    b = BtfBuilder()
    b.structure("self", 8, [("me", 1, 8)])
    assert Btf.parse(b.build()).offset("self", ".".join(["me"] * 50)) == 50


def test_type_that_does_not_exist() -> None:
    b = BtfBuilder()
    b.structure("holder", 8, [("a", 99, 0), ("b", 0, 0)])
    types = Btf.parse(b.build())
    assert types.offset("holder", "a") == 0
    for path in ("a.x", "b.x"):
        with pytest.raises(BtfError, match="does not exist"):
            types.offset("holder", path)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\0\0"),  # magic
        (2, b"\2"),  # version
        (4, b"\xff\xff\xff\xff"),  # header length
        (12, b"\xff\xff\xff\xff"),  # length of the types
        (12, b"\x09\0\0\0"),  # not a multiple of four
        (12, b"\x04\0\0\0"),  # cut in the first type
        (20, b"\xff\xff\xff\xff"),  # length of the strings
        (24 + 7, b"\x1e"),  # an unknown kind
    ],
)
def test_header_that_lies(offset: int, value: bytes) -> None:
    data = bytearray(DATA)
    data[offset : offset + len(value)] = value
    with pytest.raises(BtfError):
        Btf.parse(bytes(data))


def test_members_beyond_the_types() -> None:
    data = bytearray(DATA)
    struct.pack_into("<H", data, 24 + 16 + 12 + 4, 0xFFFF)
    with pytest.raises(BtfError, match="cut off"):
        Btf.parse(bytes(data))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(BtfError):
        Btf.parse(data)


@settings(max_examples=100, deadline=None)
@given(mutated(DATA))
def test_mutated_types(data: bytes) -> None:
    for name, path in (("task_struct", "tasks.prev"), ("task_struct", "per.next"), ("list_t", "x")):
        assert refusal(lambda name=name, path=path: Btf.parse(data).offset(name, path)) != ""
        assert refusal(lambda name=name, path=path: Btf.parse(data).size(name, path)) != ""
    assert refusal(lambda: Btf.parse(data).enumerator("COMING")) != ""
