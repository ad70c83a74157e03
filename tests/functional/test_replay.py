# SPDX-License-Identifier: Apache-2.0
"""The replay on real guests: text and modules are explained to the last byte, and a flipped byte is seen.

Each configuration boots one guest, so the matrix is spread rather than full: every flavour, every CPU model,
one and two CPUs, and the boot options that change how the kernel patches itself.
"""

from __future__ import annotations

import functools
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lab import kernels
from lab.qemu import QemuGuest

from nova_vmi_attest.introspection.expectation import Expectation
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.locate import find_kernel
from nova_vmi_attest.introspection.memory.base import Bytes, GuestMemory
from nova_vmi_attest.introspection.memory.layout import guest_ranges
from nova_vmi_attest.introspection.replay.features import RETPOLINE, RETPOLINE_LFENCE
from nova_vmi_attest.introspection.replay.indirect_thunks import feature
from nova_vmi_attest.introspection.replay.module import ReplayedModule, replay_module
from nova_vmi_attest.introspection.replay.text import Replayed, replay_kernel
from nova_vmi_attest.kernel.module import ModuleObject, normalised
from nova_vmi_attest.kernel.vmlinux import Vmlinux

pytestmark = pytest.mark.functional

MEMORY_MIB = 256
LOCAL = 0  # STB_LOCAL
CONFIGURATIONS: tuple[tuple[kernels.Flavour, str, int, str], ...] = (
    ("cloud", "qemu64", 1, ""),
    ("cloud", "Haswell", 2, ""),
    ("cloud", "EPYC-Milan", 1, "nokaslr"),
    ("cloud", "max", 1, ""),
    ("cloud", "Skylake-Server", 1, "mitigations=off"),
    ("cloud", "Skylake-Server", 1, "retbleed=stuff"),
    ("cloud", "EPYC-Milan", 2, "spectre_v2=retpoline,lfence"),
    ("amd64", "Skylake-Server", 2, ""),
    ("amd64", "EPYC-Milan", 1, "spectre_v2=retpoline"),
    ("rt", "Haswell", 1, ""),
    ("rt", "max", 2, ""),
)


class RamFile(GuestMemory):
    """The RAM file of a guest of the lab."""

    name = "test"

    def __init__(self, path: Path) -> None:
        super().__init__(guest_ranges("pc", MEMORY_MIB << 20))
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)

    def read(self, address: int, length: int) -> bytes:
        return self.view(address, length).tobytes()

    def view(self, address: int, length: int) -> Bytes:
        start = self.locate(address, length)
        return self._bytes[start : start + length]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module of the guest: its file, and where the guest says that its sections are."""

    module: ModuleObject
    addresses: dict[str, int]


@dataclass(frozen=True, slots=True)
class Booted:
    """A paused guest, and its text as it must be."""

    guest: Guest
    replayed: Replayed
    modules: tuple[Loaded, ...]

    def live_text(self) -> Bytes:
        return self.guest.view(self.guest.symbol("_text"), len(self.replayed.image))

    def replay_modules(self) -> list[ReplayedModule]:
        exported: dict[str, int] = {}
        for one in self.modules:
            for symbol in one.module.symbols:
                home = one.module.sections[symbol.section].name if 0 < symbol.section < 0xFF00 else ""
                if symbol.bind != LOCAL and home in one.addresses:
                    exported.setdefault(symbol.name, one.addresses[home] + symbol.value)
        vmlinux = self.guest.vmlinux

        def resolve(name: str) -> int | None:
            return self.guest.symbol(name) if name in vmlinux.symbols else exported.get(name)

        return [
            replay_module(self.guest, vmlinux, one.module, one.addresses, resolve) for one in self.modules
        ]


class Debugger:
    """As much of the GDB remote protocol as it takes to stop at a function once and change memory."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(address))
        self._received = b""

    def command(self, text: str) -> str:
        data = text.encode()
        self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        while (found := re.search(rb"\$([^#]*)#..", self._received)) is None:
            self._received += self._socket.recv(4096)
        self._received = self._received[found.end() :]
        self._socket.sendall(b"+")
        return found[1].decode()

    def run_to(self, address: int) -> None:
        self.command(f"Z1,{address:x},1")
        assert self.command("c").startswith("T05")
        self.command(f"z1,{address:x},1")

    def change(self, address: int, set_bits: int, clear_bits: int) -> None:
        """Change bits of the 32-bit word at an address."""
        old = int.from_bytes(bytes.fromhex(self.command(f"m{address:x},4")), "little")
        new = (old | set_bits) & ~clear_bits
        assert self.command(f"M{address:x},4:{new.to_bytes(4, 'little').hex()}") == "OK"

    def leave(self) -> None:
        self.command("D")
        self._socket.close()


@functools.cache
def vmlinux_of(flavour: kernels.Flavour) -> Vmlinux:
    return Vmlinux.load(kernels.boot_image(flavour).read_bytes())


@functools.cache
def module_files(flavour: kernels.Flavour) -> dict[str, Path]:
    found = kernels.modules_dir(flavour).rglob("*.ko")
    return {normalised(path.stem): path for path in found}


def loaded_modules(guest: Guest, flavour: kernels.Flavour) -> Iterator[Loaded]:
    offset, size = guest.offset, guest.vmlinux.btf.size("module_sect_attr")
    for module in guest.list_entries(guest.symbol("modules"), offset("module", "list"), 200):
        name = guest.cstr(module + offset("module", "name"), 56).decode()
        attributes = guest.u64(module + offset("module", "sect_attrs"))
        first = attributes + offset("module_sect_attrs", "attrs")
        addresses = {}
        for index in range(guest.u32(attributes + offset("module_sect_attrs", "nsections"))):
            at = first + index * size
            text = guest.cstr(guest.u64(at + offset("module_sect_attr", "battr.attr.name")), 64)
            addresses[text.decode()] = guest.u64(at + offset("module_sect_attr", "address"))
        percpu = guest.u64(module + offset("module", "percpu"))
        if percpu:
            addresses[".data..percpu"] = percpu
        yield Loaded(ModuleObject.parse(module_files(flavour)[name].read_bytes()), addresses)


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=lambda one: "-".join(map(str, one)).rstrip("-"))
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    flavour, cpu, vcpus, append = request.param
    directory = tmp_path_factory.mktemp("replay")
    with QemuGuest(
        "replay", directory, memory_mib=MEMORY_MIB, cpu=cpu, vcpus=vcpus, append=append, flavour=flavour
    ) as qemu:
        qemu.wait_up().pause()
        assert qemu.ram_path is not None
        memory, vmlinux = RamFile(qemu.ram_path), vmlinux_of(flavour)
        guest = Guest(memory, vmlinux, find_kernel(memory, [vmlinux]))
        yield Booted(guest, replay_kernel(guest, vmlinux), tuple(loaded_modules(guest, flavour)))


def test_every_byte_of_text_is_explained(booted: Booted) -> None:
    reference = booted.guest.vmlinux.image[: len(booted.replayed.image)]
    live = booted.live_text()
    assert np.count_nonzero(live != reference) > 100_000  # patching is what was explained
    assert Expectation(reference, booted.replayed.image).mismatches(live).tolist() == []
    assert booted.replayed.inputs.invalid == ()
    assert len(booted.replayed.inputs.two_forms) < 60


def test_a_flipped_byte_is_seen_where_it_is(booted: Booted) -> None:
    size = len(booted.replayed.image)
    made = Expectation(booted.guest.vmlinux.image[:size], booted.replayed.image)
    live, dice = booted.live_text().copy(), random.Random(2018)
    # Some anywhere, some in bytes that the kernel patched.
    patched = np.flatnonzero(booted.replayed.owner)
    places = [0, size - 1, *(dice.randrange(size) for _ in range(20))]
    places += [int(patched[dice.randrange(len(patched))]) for _ in range(20)]
    for place in places:
        live[place] ^= 1 << dice.randrange(8)
        assert made.mismatches(live).tolist() == [place]
        live[place] = booted.replayed.image[place]


class AlteredText:
    """A guest whose text reads as something else altogether, and all else as it is."""

    def __init__(self, guest: Guest) -> None:
        self.slide = guest.slide
        self._guest = guest
        self._text = range(guest.symbol("_text"), guest.symbol("_etext"))

    def read(self, address: int, length: int, /) -> bytes:
        return b"\x41" * length if address in self._text else self._guest.read(address, length)


def test_a_replay_learns_nothing_from_altered_text(booted: Booted) -> None:
    altered = replay_kernel(AlteredText(booted.guest), booted.guest.vmlinux)
    assert altered.inputs.two_forms == ()
    different = np.flatnonzero(altered.image != booted.replayed.image)
    start = booted.guest.symbol("_text")
    sites = [range(one.address - start, one.address - start + 5) for one in booted.replayed.inputs.two_forms]
    assert all(any(place in site for site in sites) for place in different.tolist())


def test_every_byte_of_every_module_is_explained(booted: Booted) -> None:
    replayed = booted.replay_modules()
    assert len(replayed) >= 10
    different = [
        (module.name, section.name, np.flatnonzero(live != section.expected).tolist()[:4])
        for module in replayed
        for section in module.sections
        if not np.array_equal(
            live := booted.guest.view(section.address, len(section.expected)), section.expected
        )
    ]
    assert different == []
    assert [(m.name, m.unresolved, m.overflowed, m.inputs.invalid) for m in replayed] == [
        (m.name, (), (), ()) for m in replayed
    ]
    assert sum(len(s.expected) for m in replayed for s in m.sections if s.executable) > 300_000


@pytest.mark.parametrize("lfence", [False, True])
def test_indirect_branches_through_thunks_are_explained(tmp_path: Path, lfence: bool) -> None:
    """Emulation offers no CPU that needs them with retpolines off: the kernel is told so before patching."""
    debugger, vmlinux = tmp_path / "gdb", vmlinux_of("cloud")
    number = feature(vmlinux)
    assert number is not None
    word = vmlinux.symbols["boot_cpu_data"] + vmlinux.btf.offset("cpuinfo_x86", "x86_capability")
    extra = ("-S", "-gdb", f"unix:{debugger},server=on,wait=off")
    with QemuGuest(
        "thunks", tmp_path, memory_mib=MEMORY_MIB, cpu="Skylake-Server", append="nokaslr", extra=extra
    ) as qemu:
        gdb = Debugger(debugger)
        gdb.run_to(vmlinux.symbols["alternative_instructions"])
        gdb.change(word + number // 32 * 4, 1 << number % 32, 0)
        added = 1 << RETPOLINE_LFENCE % 32 if lfence else 0
        gdb.change(word + RETPOLINE // 32 * 4, added, 1 << RETPOLINE % 32)
        gdb.leave()
        if not qemu.qmp("query-status")["running"]:
            qemu.resume()
        qemu.wait_up().pause()
        assert qemu.ram_path is not None
        memory = RamFile(qemu.ram_path)
        guest = Guest(memory, vmlinux, find_kernel(memory, [vmlinux]))
        booted = Booted(guest, replay_kernel(guest, vmlinux), tuple(loaded_modules(guest, "cloud")))
        assert np.flatnonzero(booted.live_text() != booted.replayed.image).tolist() == []
        test_every_byte_of_every_module_is_explained(booted)
        pages = [*booted.replayed.inputs.thunk_pages]
        pages += [page for module in booted.replay_modules() for page in module.inputs.thunk_pages]
        assert len(pages) > 5
        assert [guest.read(page.address, 4096) == page.expected for page in pages] == [True] * len(pages)
