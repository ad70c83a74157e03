# SPDX-License-Identifier: Apache-2.0
"""Tiny kernels, modules and their parts, made by the rules that the readers expect, for tests."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lz4.block
import zstandard

LINK_BASE = 0xFFFFFFFF81000000
PHYSICAL_BASE = 0x1000000
RELEASE = "6.1.0-test"
BANNER = f"Linux version {RELEASE} (builder@example) #1 SMP\n".encode()
BUILD_ID = bytes(range(20))

PROGBITS, SYMTAB, STRTAB, RELA, NOTE, NOBITS = 1, 2, 3, 4, 7, 8
ALLOC, EXECUTE = 2, 4


@dataclass(frozen=True)
class Part:
    """A section to put into an ELF file."""

    name: str
    data: bytes = b""
    kind: int = PROGBITS
    flags: int = 0
    address: int = 0
    link: int = 0
    info: int = 0
    align: int = 8
    size: int | None = None  # of a section without contents


def elf(
    parts: Sequence[Part], *, kind: int = 2, segments: Sequence[tuple[int, int, int, int, int]] = ()
) -> bytes:
    """An ELF file; a segment is (index of its part, virtual, physical, file size, memory size)."""
    names, data, at = b"\0", b"", 64 + 56 * len(segments)
    name_offsets, offsets = [0], [0]
    all_parts = [*parts, Part(".shstrtab", kind=STRTAB)]
    for part in all_parts:
        name_offsets.append(len(names))
        names += part.name.encode() + b"\0"
    all_parts[-1] = Part(".shstrtab", names, STRTAB)
    for part in all_parts:
        padding = -(at + len(data)) % 8
        data += b"\0" * padding
        offsets.append(at + len(data))
        data += part.data
    data += b"\0" * (-(at + len(data)) % 8)
    headers = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    for part, name, offset in zip(all_parts, name_offsets[1:], offsets[1:], strict=True):
        size = len(part.data) if part.size is None else part.size
        headers += struct.pack(
            "<IIQQQQIIQQ",
            name,
            part.kind,
            part.flags,
            part.address,
            offset,
            size,
            part.link,
            part.info,
            part.align,
            0,
        )
    program = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, offsets[part + 1], virtual, physical, size, memory, 0x1000)
        for part, virtual, physical, size, memory in segments
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        kind,
        62,
        1,
        0,
        64 if segments else 0,
        at + len(data),
        0,
        64,
        56,
        len(segments),
        64,
        len(all_parts) + 1,
        len(all_parts),
    )
    return header + program + data + headers


def tokens() -> list[bytes]:
    """A token for each printable character by itself, and some longer ones where no character is."""
    table = [bytes((i,)) if 0x21 <= i < 0x7F else b"" for i in range(256)]
    table[1], table[2], table[200] = b"sys_", b"init", b"Tdo_"
    return table


def kallsyms(symbols: Sequence[tuple[str, int]], *, base: int = LINK_BASE) -> bytes:
    """The symbol table of Linux 6.1 for (type and name, address), in the order given."""
    table = tokens()
    encoded = [_compressed(name.encode(), table) for name, _ in symbols]
    names, markers = b"", []
    for index, tokens_of_name in enumerate(encoded):
        if index % 256 == 0:
            markers.append(len(names))
        length = len(tokens_of_name)
        names += bytes((length,)) if length < 0x80 else bytes((0x80 | length & 0x7F, length >> 7))
        names += tokens_of_name
    offsets = [address if address < 1 << 31 else base - 1 - address for _, address in symbols]
    starts, at = [], 0
    for token in table:
        starts.append(at)
        at += len(token) + 1
    return (
        _aligned(struct.pack(f"<{len(offsets)}i", *offsets))
        + struct.pack("<QQ", base, len(symbols))
        + _aligned(names)
        + _aligned(struct.pack(f"<{len(markers)}I", *markers))
        + _aligned(bytes(3 * len(symbols)))  # the sequence by name, which is not read
        + _aligned(b"".join(token + b"\0" for token in table))
        + struct.pack("<256H", *starts)
    )


def _compressed(name: bytes, table: Sequence[bytes]) -> bytes:
    out = b""
    while name:
        best = max((t for t in table if t and name.startswith(t)), key=len)
        out += bytes((table.index(best),))
        name = name[len(best) :]
    return out


def _aligned(data: bytes, to: int = 8) -> bytes:
    return data + b"\0" * (-len(data) % to)


INT, POINTER, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, ENUM64 = 1, 2, 3, 4, 5, 6, 8, 10, 19


class BtfBuilder:
    """Type information, type by type; every method returns the number of the type that it added."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.strings.find(b"\0" + text.encode() + b"\0")
        if at >= 0:
            return at + 1
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(
        self, kind: int, name: str, value: int, extra: bytes = b"", members: int = 0, flag: bool = False
    ) -> int:
        info = kind << 24 | members | flag << 31
        self.types += struct.pack("<III", self.name(name), info, value) + extra
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, struct.pack("<I", size * 8))

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, "", 0, struct.pack("<III", element, 1, count))

    def structure(
        self,
        name: str,
        size: int,
        members: Sequence[tuple[str, int, int]],
        kind: int = STRUCT,
        flag: bool = False,
    ) -> int:
        """Members are (name, type, bit offset)."""
        extra = b"".join(struct.pack("<III", self.name(n), t, o) for n, t, o in members)
        return self.add(kind, name, size, extra, len(members), flag)

    def enumeration(self, name: str, values: Mapping[str, int]) -> int:
        extra = b"".join(struct.pack("<Ii", self.name(n), v) for n, v in values.items())
        return self.add(ENUM, name, 4, extra, len(values), flag=True)

    def build(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def btf() -> bytes:
    """A few types: list_head, task_struct with an anonymous union, an array, a typedef and a bit-field."""
    b = BtfBuilder()
    u64 = b.integer("unsigned long", 8)
    pointer = b.add(POINTER, "", 0)
    list_head = b.structure("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    alias = b.add(TYPEDEF, "list_t", list_head)
    const = b.add(CONST, "", alias)
    inner = b.structure("", 8, [("counter", u64, 0), ("raw", u64, 0)], kind=UNION)
    lists = b.array(list_head, 3)
    b.structure(
        "task_struct", 96, [("state", u64, 0), ("", inner, 64), ("tasks", const, 128), ("per", lists, 256)]
    )
    b.structure("flags", 8, [("low", u64, 3 << 24), ("high", u64, 5 << 24 | 12)], flag=True)
    b.enumeration("module_state", {"LIVE": 0, "COMING": 1, "LOST": -1})
    wide = struct.pack("<III", b.name("WIDE"), 5, 7)
    b.add(ENUM64, "wide", 8, wide, 1)
    return b.build()


def relocation_tail(add64: Sequence[int] = (), sub32: Sequence[int] = (), add32: Sequence[int] = ()) -> bytes:
    """The table behind the ELF file, for offsets from ``_text``."""
    words: list[int] = []
    for places in (add64, sub32, add32):
        words += [0, *((LINK_BASE + place) & 0xFFFFFFFF for place in places)]
    return struct.pack(f"<{len(words)}I", *words)


TEXT_SIZE, RODATA_AT, BSS_SIZE = 0x1000, 0x1000, 0x3000


def vmlinux(release: str = RELEASE, build_id: bytes = BUILD_ID) -> bytes:
    """An unpacked kernel: .text, .rodata (banner, symbols), .BTF, .notes, .bss, and relocations."""
    banner = BANNER.replace(RELEASE.encode(), release.encode())
    symbols = [
        ("Afixed_percpu_data", 0),
        ("Acpu_number", 0x40),
        ("T_text", LINK_BASE),
        ("Tstartup_64", LINK_BASE),
        ("tdo_work", LINK_BASE + 0x10),
        ("tdo_work.cold", LINK_BASE + 0x800),
        ("T_etext", LINK_BASE + TEXT_SIZE),
        ("Rlinux_banner", LINK_BASE + RODATA_AT),
        ("Bsome_bss", LINK_BASE + 0x6000),
        ("tdo_work", LINK_BASE + 0x900),
    ]
    text = bytes(i & 0xFF for i in range(TEXT_SIZE))
    rodata = _aligned(banner + b"\0", 256) + kallsyms(symbols)
    contents = text + rodata
    notes = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    parts = [
        Part(".text", text, flags=ALLOC | EXECUTE, address=LINK_BASE),
        Part(".rodata", rodata, flags=ALLOC, address=LINK_BASE + RODATA_AT),
        Part(".BTF", btf()),
        Part(".notes", notes, NOTE),
        Part(".bss", kind=NOBITS, flags=ALLOC, address=LINK_BASE + 0x6000, size=BSS_SIZE),
    ]
    # .text is a page, so .rodata follows it in the file as it does in memory.
    segments = [(0, LINK_BASE, PHYSICAL_BASE, len(contents), 0x6000 + BSS_SIZE)]
    return elf(parts, segments=segments) + relocation_tail(
        add64=[0x20, RODATA_AT + 0x80], sub32=[0x40], add32=[0x10, 0x31]
    )


def compressed(data: bytes, how: str) -> bytes:
    """A payload as the kernel's build makes it: compressed, with the unpacked size in the last four bytes."""
    size = struct.pack("<I", len(data) & 0xFFFFFFFF)
    if how == "gzip":
        return gzip.compress(data, 1)  # ends in the size by itself
    if how == "xz":
        return lzma.compress(data, preset=0) + size
    if how == "zstd":
        return zstandard.ZstdCompressor(write_content_size=False).compress(data) + size
    packed = struct.pack("<I", 0x184C2102)
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed + size


def bzimage(payload: bytes, setup_sectors: int = 2) -> bytes:
    """A boot image around a payload."""
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + b"\x90" * 64 + payload + b"\0" * 32


def boot_image(release: str = RELEASE) -> bytes:
    return bzimage(compressed(vmlinux(release), "zstd"))


def module(
    name: str = "demo_mod",
    release: str = RELEASE,
    *,
    modinfo: bytes | None = None,
    relocations: Sequence[tuple[int, int, int, int]] = ((4, 4, 2, -4), (8, 1, 1, 0x10)),
    extra: Sequence[Part] = (),
) -> bytes:
    """A module file; a relocation of .text is (offset, type, symbol, addend)."""
    if modinfo is None:
        modinfo = f"license=GPL\0name={name}\0vermagic={release} SMP mod_unload \0".encode()
    strings = b"\0init_module\0printk\0limit\0"
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    symbols += struct.pack("<IBBHQQ", 1, 1 << 4 | 2, 0, 1, 0, 16)  # init_module: global function in .text
    symbols += struct.pack("<IBBHQQ", 13, 1 << 4, 0, 0, 0, 0)  # printk: undefined
    symbols += struct.pack("<IBBHQQ", 20, 0, 0, 0xFFF1, 0x1234, 0)  # limit: absolute
    rela = b"".join(struct.pack("<QIIq", at, kind, sym, add) for at, kind, sym, add in relocations)
    parts = [
        Part(".text", b"\xe8\0\0\0" * 8, flags=ALLOC | EXECUTE, align=16),
        Part(".rela.text", rela, RELA, link=3, info=1),
        Part(".symtab", symbols, SYMTAB, link=4, info=1),
        Part(".strtab", strings, STRTAB),
        Part(".modinfo", modinfo, flags=ALLOC, align=1),
        Part(".bss", kind=NOBITS, flags=ALLOC | 1, size=64),
        *extra,
    ]
    return elf(parts, kind=1)
