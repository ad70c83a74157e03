# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel.kallsyms import Kallsyms, SymbolError

from . import builders
from .mutation import mutated, refusal

BASE = builders.LINK_BASE
SYMBOLS = [
    ("Acpu_number", 0x40),
    ("T_text", BASE),
    ("Tstartup_64", BASE),
    ("Tdo_sys_open", BASE + 0x100),
    ("tinit", BASE + 0x200),
    ("t" + "x" * 200, BASE + 0x300),
    ("tinit", BASE + 0x400),
]
TABLE = builders.kallsyms(SYMBOLS)
PAGE = bytes(4096)


@pytest.fixture(scope="module")
def symbols() -> Kallsyms:
    return Kallsyms.parse(PAGE + TABLE + PAGE)


def test_addresses(symbols: Kallsyms) -> None:
    assert len(symbols) == len(SYMBOLS)
    assert symbols["do_sys_open"] == BASE + 0x100
    assert symbols["cpu_number"] == 0x40
    assert symbols["x" * 200] == BASE + 0x300  # its length takes two bytes


def test_first_of_duplicates(symbols: Kallsyms) -> None:
    assert symbols["init"] == BASE + 0x200
    assert dict(symbols.items()) == {name[1:]: address for name, address in reversed(SYMBOLS)}


def test_absent_names(symbols: Kallsyms) -> None:
    for name in ("", "zzz", "aaa", "ini", "initx", "Tinit", "\udcff", "ünit"):
        assert symbols.get(name) is None
        assert name not in symbols
    with pytest.raises(SymbolError, match="no symbol zzz"):
        symbols["zzz"]


def test_covering_symbol(symbols: Kallsyms) -> None:
    assert symbols.at(BASE + 0x1FF) == ("do_sys_open", 0xFF)
    assert symbols.at(BASE) == ("_text", 0)
    assert symbols.at(BASE + 0x10) == ("_text", 0x10)
    assert symbols.at((1 << 64) - 1)[0] == "init"
    for address in (0, -1, 1 << 64):
        with pytest.raises(SymbolError):
            symbols.at(address)


def test_names_of_an_address(symbols: Kallsyms) -> None:
    assert symbols.names_at(BASE) == ("_text", "startup_64")
    assert symbols.names_at(BASE + 1) == ()
    assert symbols.names_at(-1) == ()


def test_starts_are_sorted_and_read_only(symbols: Kallsyms) -> None:
    assert symbols.starts.tolist() == sorted(address for _, address in SYMBOLS)
    assert not symbols.starts.flags.writeable


def test_several_markers() -> None:
    many = [(f"tf{i}_{i * 7919 % 1000}", BASE + 16 * i) for i in range(1000)]
    symbols = Kallsyms.parse(builders.kallsyms(many))
    assert [symbols[name[1:]] for name, _ in many] == [address for _, address in many]


def test_array_is_read_like_bytes() -> None:
    assert Kallsyms.parse(np.frombuffer(TABLE, np.uint8))["_text"] == BASE


def test_plausible_but_wrong_places_before_the_table() -> None:
    decoys = struct.pack("<QQQQ", BASE, 5, BASE, 3) * 20
    assert Kallsyms.parse(decoys + TABLE)["_text"] == BASE


def test_no_table() -> None:
    with pytest.raises(SymbolError, match="no symbol table"):
        Kallsyms.parse(PAGE)
    with pytest.raises(SymbolError, match="no symbol table"):
        Kallsyms.parse(b"".join(bytes((c, 0)) for c in b"0123456789") * 500)


def test_tokens_without_names() -> None:
    tokens_at = TABLE.index(b'!\0"\0#\0')
    with pytest.raises(SymbolError, match="layout"):
        Kallsyms.parse(PAGE + TABLE[tokens_at - 256 :])


def test_wrong_markers_are_not_believed() -> None:
    names = [(f"tf{i}", BASE + i) for i in range(300)]
    table = bytearray(builders.kallsyms(names))
    second_marker = struct.pack("<I", sum(1 + len(name) for name, _ in names[:256]))
    at = bytes(table).index(second_marker)
    table[at] ^= 1
    with pytest.raises(SymbolError, match="layout"):
        Kallsyms.parse(bytes(table))


def test_huge_counts_end_soon() -> None:
    hostile = struct.pack("<QQ", BASE, 2_000_000) * 2000
    body = bytes((1, 0x41)) * 3_000_000
    tokens_at = TABLE.index(b'!\0"\0#\0') - 48
    with pytest.raises(SymbolError):
        Kallsyms.parse(bytes(8 << 20) + hostile + body + TABLE[tokens_at:])


def test_names_that_are_not_names() -> None:
    at = TABLE.index(struct.pack("<Q", len(SYMBOLS))) + 8
    table = bytearray(TABLE)
    table[at + 1 : at + 1 + table[at]] = b"\x80" * table[at]  # tokens without text
    with pytest.raises(SymbolError):
        Kallsyms.parse(bytes(table))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(SymbolError):
        Kallsyms.parse(data)


@settings(max_examples=100, deadline=None)
@given(mutated(TABLE))
def test_mutated_tables(data: bytes) -> None:
    assert refusal(lambda: list(Kallsyms.parse(data).items())) != ""
