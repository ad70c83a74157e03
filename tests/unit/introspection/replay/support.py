# SPDX-License-Identifier: Apache-2.0
"""Small synthetic kernels for the tests: an image, patch tables, symbols and live memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np

from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.replay.inputs import MASK64, LiveKernel, signed
from nova_vmi_attest.introspection.replay.patching import Patching, Region, Table
from nova_vmi_attest.kernel.vmlinux import Vmlinux

BASE = 0xFFFFFFFF81000000
DATA = 0xFFFFFFFF82000000  # where the tests keep variables
TABLES = 0xFFFFFFFF83000000  # where the patch tables lie
CAPABILITIES = DATA + 0x1000
WORDS = 24


class Memory:
    """A ReplaySource over a few pieces of memory."""

    def __init__(self, pieces: Mapping[int, bytes], slide: int = 0) -> None:
        self.pieces = dict(pieces)
        self.slide = slide

    def read(self, address: int, length: int, /) -> bytes:
        for start, data in self.pieces.items():
            if start <= address and address + length <= start + len(data):
                return data[address - start : address - start + length]
        raise GuestFault(address)


class Symbols:
    """As much of Kallsyms as the replay uses."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = dict(names)
        self.starts = np.array(sorted(self._names.values()), np.uint64)

    def get(self, name: str) -> int | None:
        return self._names.get(name)

    def names_at(self, address: int) -> tuple[str, ...]:
        return tuple(name for name, value in self._names.items() if value == address)


class Types:
    """As much of Btf as the replay uses."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    def offset(self, struct_name: str, path: str) -> int:
        assert (struct_name, path) == ("cpuinfo_x86", "x86_capability")
        return 40

    def length(self, struct_name: str, path: str) -> int:
        assert (struct_name, path) == ("cpuinfo_x86", "x86_capability")
        return WORDS

    def size(self, name: str) -> int:
        assert name == "paravirt_patch_template"
        return 8 * self._slots


class Build:
    """As much of Vmlinux as the mechanisms use."""

    def __init__(self, symbols: Mapping[str, int], slots: int) -> None:
        self.symbols = Symbols({"boot_cpu_data": CAPABILITIES - 40, **symbols})
        self.btf = Types(slots)

    def section_offset(self, name: str) -> tuple[int, int] | None:
        del name
        return None


def capabilities(features: Iterable[int]) -> bytes:
    """The bytes of boot_cpu_data.x86_capability with these bits set."""
    return sum(1 << feature for feature in set(features)).to_bytes(4 * WORDS, "little")


def patching(
    image: bytes,
    tables: Mapping[str, bytes],
    *,
    symbols: Mapping[str, int] | None = None,
    memory: Mapping[int, bytes] | None = None,
    features: Iterable[int] = (),
    slots: int = 4,
    regions: list[Region] | None = None,
    trampolines: Iterable[tuple[int, int]] = (),
) -> Patching:
    """An image that runs at BASE, with every table at TABLES + 0x10000 times its position."""
    live = Memory({CAPABILITIES: capabilities(features), **(memory or {})})
    kernel = LiveKernel(live, cast(Vmlinux, Build(symbols or {}, slots)))
    placed = {
        name: Table(signed(table_address(i)), as_bytes(t)) for i, (name, t) in enumerate(tables.items())
    }
    whole = [Region("text", signed(BASE), len(image), 0)]
    pairs = [(signed(trampoline), signed(key)) for trampoline, key in trampolines]
    return Patching(as_bytes(image).copy(), regions or whole, placed, kernel, pairs)


def table_address(position: int) -> int:
    """Where the table at this position of the mapping lies."""
    return TABLES + 0x10000 * position


def as_bytes(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


def self_relative(*targets: int, start: int = TABLES) -> bytes:
    """A table of s32, each relative to its own place."""
    return b"".join(s32(target - (start + 4 * i)) for i, target in enumerate(targets))


def s32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & MASK64)


def branch(opcode: int, site: int, target: int, size: int = 5) -> bytes:
    """A call or jump with a 32-bit displacement."""
    return bytes([opcode]) + s32(target - site - size)


def result(bench: Patching, apply: Callable[[Patching], None]) -> bytes:
    """The image after a mechanism."""
    apply(bench)
    return bench.image.tobytes()
