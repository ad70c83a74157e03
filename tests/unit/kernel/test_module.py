# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.kernel import module
from nova_vmi_attest.kernel.module import SHN_ABS, SHN_UNDEF, ModuleError, ModuleObject, normalised

from . import builders
from .builders import Part
from .mutation import mutated, refusal

KO = builders.module()


def test_identity() -> None:
    parsed = ModuleObject.parse(KO)
    assert parsed.name == "demo_mod"
    assert parsed.vermagic == f"{builders.RELEASE} SMP mod_unload"


def test_names_have_underscores() -> None:
    assert normalised("snd-hda-intel") == "snd_hda_intel"
    assert ModuleObject.parse(builders.module("demo-mod")).name == "demo_mod"


def test_sections() -> None:
    parsed = ModuleObject.parse(KO)
    assert [section.name for section in parsed.sections[:3]] == ["", ".text", ".rela.text"]
    text = parsed.sections[1]
    assert (text.size, text.align, text.flags, text.allocated) == (32, 16, 6, True)
    assert text.data.tobytes() == b"\xe8\0\0\0" * 8
    assert not text.data.flags.writeable
    index = parsed.section_index(".bss")
    assert index is not None
    assert (parsed.sections[index].size, len(parsed.sections[index].data)) == (64, 0)
    assert parsed.section_index(".absent") is None


def test_symbols() -> None:
    symbols = ModuleObject.parse(KO).symbols
    assert [symbol.name for symbol in symbols] == ["", "init_module", "printk", "limit"]
    assert (symbols[1].section, symbols[1].bind, symbols[1].type, symbols[1].size) == (1, 1, 2, 16)
    assert symbols[2].section == SHN_UNDEF
    assert (symbols[3].section, symbols[3].value, symbols[3].bind) == (SHN_ABS, 0x1234, 0)


def test_relocations() -> None:
    relocations = ModuleObject.parse(KO).relocations
    assert list(relocations) == [1]
    table = relocations[1]
    assert table.offset.tolist() == [4, 8]
    assert table.type.tolist() == [4, 1]
    assert table.symbol.tolist() == [2, 1]
    assert table.addend.tolist() == [-4, 16]
    assert table.offset.dtype == np.int64
    assert not table.offset.flags.writeable


def test_signature_behind_the_file() -> None:
    assert ModuleObject.parse(KO + b"~Module signature appended~\n").name == "demo_mod"


def test_relocations_of_sections_without_memory_are_left_out() -> None:
    debug = Part(".debug_info", bytes(16))
    rela = Part(".rela.debug_info", struct.pack("<QIIq", 0, 77, 0, 0), builders.RELA, link=3, info=7)
    assert list(ModuleObject.parse(builders.module(extra=(debug, rela))).relocations) == [1]


@pytest.mark.parametrize(
    "relocation",
    [
        (29, 4, 0, 0),  # its last byte lies behind the section
        (25, 1, 0, 0),
        ((1 << 64) - 4, 1, 0, 0),  # would wrap around
        (0, 9, 0, 0),  # R_X86_64_GOTPCREL
        (0, 4, 4, 0),  # no such symbol
        (0, 4, 0xFFFFFFFF, 0),
    ],
)
def test_relocation_that_lies(relocation: tuple[int, int, int, int]) -> None:
    with pytest.raises(ModuleError):
        ModuleObject.parse(builders.module(relocations=[relocation]))


def test_two_tables_for_one_section() -> None:
    second = Part(".rela.text2", b"", builders.RELA, link=3, info=1)
    with pytest.raises(ModuleError, match="malformed"):
        ModuleObject.parse(builders.module(extra=[second]))


def test_table_for_no_section() -> None:
    second = Part(".rela.x", b"", builders.RELA, link=3, info=99)
    with pytest.raises(ModuleError, match="does not exist"):
        ModuleObject.parse(builders.module(extra=[second]))


def test_table_for_a_section_without_contents() -> None:
    second = Part(".rela.bss", struct.pack("<QIIq", 0, 1, 0, 0), builders.RELA, link=3, info=6)
    with pytest.raises(ModuleError, match="without contents"):
        ModuleObject.parse(builders.module(extra=[second]))


@pytest.mark.parametrize("extra", [Part(".symtab2", b"", builders.SYMTAB, link=4)])
def test_two_symbol_tables(extra: Part) -> None:
    with pytest.raises(ModuleError, match="symbol tables"):
        ModuleObject.parse(builders.module(extra=[extra]))


@pytest.mark.parametrize(
    "modinfo",
    [
        b"",
        b"name=demo\0",
        b"vermagic=6.1 SMP\0",
        b"name=../demo\0vermagic=6.1 \0",
        b"name=" + b"x" * 100 + b"\0vermagic=6.1 \0",
        b"name=demo\0vermagic=" + b"x" * 300 + b"\0",
        b"name=demo\0vermagic=6.1\n\x1b[2J\0",
        b"name=d\xffmo\0vermagic=6.1 \0",
    ],
)
def test_modinfo_without_identity(modinfo: bytes) -> None:
    with pytest.raises(ModuleError):
        ModuleObject.parse(builders.module(modinfo=modinfo))


def test_not_a_module() -> None:
    with pytest.raises(ModuleError, match="relocatable"):
        ModuleObject.parse(builders.vmlinux())
    with pytest.raises(ModuleError):
        ModuleObject.parse(b"")


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILE", 100)
    with pytest.raises(ModuleError, match="larger"):
        ModuleObject.parse(KO)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=100), mutated(KO)))
def test_mutated(data: bytes) -> None:
    assert refusal(lambda: ModuleObject.parse(data)) != ""
