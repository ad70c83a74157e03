# SPDX-License-Identifier: Apache-2.0
"""A real guest that is measured and altered: its RAM file is written from the host while it is paused."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import kernels
from lab.qemu import QemuGuest

from nova_vmi_attest.evidence.measurement import Measurement, Outcome
from nova_vmi_attest.introspection.guest import Guest
from nova_vmi_attest.introspection.locate import find_kernel
from nova_vmi_attest.introspection.measure import Measurer
from nova_vmi_attest.introspection.memory.layout import guest_ranges
from nova_vmi_attest.introspection.memory.ram_file import RamFile, RamFileMemory
from nova_vmi_attest.introspection.structures import Structures
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.kernel.vmlinux import Vmlinux

MIB = 1 << 20
UUID = uuid.UUID("5b1d0a52-3a0d-4a0e-9b53-0d1f0c9c7f11")


class Provider:
    """References at hand, and what was asked for."""

    def __init__(self, *references: Reference) -> None:
        self.references = references
        self.asked: list[bytes] = []

    def candidates(self) -> Sequence[Reference]:
        return self.references

    def missing(self, banner: bytes) -> None:
        self.asked.append(banner)


def load(flavour: kernels.Flavour) -> Reference:
    files = {path.stem.replace("-", "_"): path for path in kernels.modules_dir(flavour).rglob("*.ko")}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    paths = {digest: files[name] for name, digest in digests.items()}
    vmlinux = Vmlinux.load(kernels.boot_image(flavour).read_bytes())
    return Reference("0" * 64, vmlinux, digests, lambda digest: paths[digest].read_bytes())


@contextmanager
def reading(guest: QemuGuest) -> Iterator[RamFileMemory]:
    assert guest.ram_path is not None
    size = guest.memory_mib * MIB
    memory = RamFileMemory(guest_ranges("pc", size), [RamFile(os.open(guest.ram_path, os.O_RDONLY), size)])
    yield memory
    memory.close()


def measured(measurer: Measurer, memory: RamFileMemory) -> Measurement:
    return measurer.measure(UUID, memory, memory.name)


def described(measurement: Measurement) -> str:
    integrity = measurement.integrity
    odd = [check for check in integrity.checks if check.outcome is not Outcome.PASSED]
    return f"{integrity.status} {integrity.reason} {integrity.detail} {odd}"


class Altered:
    """A paused guest whose RAM the test writes to."""

    def __init__(self, guest: QemuGuest, reference: Reference, memory: RamFileMemory) -> None:
        self.reference = reference
        self.memory = memory
        self.measurer = Measurer(Provider(reference))
        located = find_kernel(memory, [reference.vmlinux])
        self.kernel = Guest(memory, reference.vmlinux, located)
        self.structures = Structures(self.kernel)
        assert guest.ram_path is not None
        with open(guest.ram_path, "r+b") as file:
            self._ram = mmap.mmap(file.fileno(), 0)
        self._undo: list[tuple[int, bytes]] = []

    def write_physical(self, address: int, data: bytes) -> None:
        offset = self.memory.locate(address, len(data))
        self._undo.append((offset, self._ram[offset : offset + len(data)]))
        self._ram[offset : offset + len(data)] = data

    def write(self, va: int, data: bytes) -> None:
        physical = self.kernel.space.translate(va)
        assert physical is not None
        self.write_physical(physical, data)

    def write_word(self, va: int, value: int) -> None:
        self.write(va, struct.pack("<Q", value & ((1 << 64) - 1)))

    def unlink(self, entry: int) -> None:
        after, before = self.kernel.u64(entry), self.kernel.u64(entry + 8)
        self.write_word(before, after)
        self.write_word(after + 8, before)

    def restore(self) -> None:
        for offset, data in reversed(self._undo):
            self._ram[offset : offset + len(data)] = data
        self._undo.clear()
        self.kernel.refresh()


@contextmanager
def paused(name: str, directory: Path, reference: Reference, vcpus: int = 1) -> Iterator[Altered]:
    """A guest that has started and stands still."""
    with QemuGuest(name, directory, cpu="Skylake-Server", vcpus=vcpus) as guest:
        guest.wait_up()
        guest.pause()
        with reading(guest) as memory:
            yield Altered(guest, reference, memory)
