# SPDX-License-Identifier: Apache-2.0
"""The memory readers on real guests: the same bytes from each, and no page populated by reading."""

from __future__ import annotations

import contextlib
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor, LibvirtGuest
from lab.qemu import Backing, QemuGuest

from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    GuestMemory,
    MemoryFault,
    MemoryRange,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.domain import Backend, DomainMemory, Source, parse_domain
from nova_vmi_attest.introspection.memory.dump import DumpMemory
from nova_vmi_attest.introspection.memory.layout import ABOVE_4G, LEGACY_END, LEGACY_START, guest_ranges
from nova_vmi_attest.introspection.memory.select import choose, open_memory

pytestmark = pytest.mark.functional

MIB = 1 << 20
PAGE = 4096
READERS = ("ram_file", "process", "libvmi")
BANNER = b"Linux version 6."


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path_factory.mktemp("memory")) as hypervisor:
        yield hypervisor


@pytest.fixture(scope="module")
def guest(hypervisor: Hypervisor) -> Iterator[LibvirtGuest]:
    """A paused guest with file-backed RAM, for tests that only read."""
    guest = hypervisor.start("memory-file").wait_up()
    guest.pause()
    yield guest
    guest.destroy()


@pytest.mark.parametrize(
    ("machine", "size"),
    [
        ("pc", 0xC0000000),
        ("pc", 0xE0000000 - MIB),
        ("pc", 0xE0000000),
        ("pc", 0xE0000000 + MIB),
        ("pc", 5 << 30),
        ("q35", 0x80000000 + MIB),
        ("q35", 0xB0000000 - MIB),
        ("q35", 0xB0000000),
        ("q35", 0xB0000000 + MIB),
        ("q35", 5 << 30),
    ],
)
def test_the_layout_is_that_of_qemu(machine: str, size: int, tmp_path: Path) -> None:
    with QemuGuest(
        "memory-layout", tmp_path, memory_mib=size // MIB, backing="anonymous", machine=machine, extra=("-S",)
    ) as qemu:
        assert guest_ranges(machine, size) == flat_view(qemu)


def test_all_readers_give_the_same_bytes(guest: LibvirtGuest, tmp_path: Path) -> None:
    domain = parse_domain(guest.xml())
    dump = guest.dump(tmp_path / "dump.core")
    with opened(domain, "ram_file") as expected:
        populated = expected.populated()
        assert 32 * MIB < sum(part.end - part.start for part in populated) < domain.size
        assert any(BANNER in expected.read(part.start, part.end - part.start) for part in populated)
        others = [open_memory(domain, name) for name in READERS[1:]]
        others += [open_memory(replace(domain, dump=str(path))) for path in (dump, ram_file(guest))]
        others += [DumpMemory.of_file(dump)]
        for memory in others:
            with contextlib.closing(memory):
                for part in populated:
                    for start in range(part.start, part.end, 4 * MIB):
                        length = min(4 * MIB, part.end - start)
                        wanted = expected.read(start, length)
                        assert memory.read(start, length) == wanted
                        assert memory.view(start, length).tobytes() == wanted
            if memory is not others[-1]:
                assert addresses(memory) == addresses(expected)


def test_only_ram_is_read(guest: LibvirtGuest) -> None:
    domain = parse_domain(guest.xml())
    for name in READERS:
        with opened(domain, name) as memory:
            for address, length in [
                (LEGACY_START, 1), (LEGACY_END - 1, 2), (LEGACY_START - 1, 2), (domain.size, 1),
                (domain.size - 1, 2), (ABOVE_4G, 8), (1 << 63, 8), (-8, 8), (0, 1 << 62), (0x1000000, -1),
            ]:  # fmt: skip
                with pytest.raises(MemoryFault):
                    memory.read(address, length)
                with pytest.raises(MemoryFault):
                    memory.view(address, length)
            assert memory.bytes_read == 0
            assert len(memory.read(domain.size - 1, 1)) == memory.bytes_read == 1


@pytest.mark.parametrize(
    ("backing", "reader"), [("file", "ram_file"), ("memfd", "ram_file"), ("anonymous", "process")]
)
def test_the_reader_follows_from_the_live_xml(hypervisor: Hypervisor, backing: Backing, reader: str) -> None:
    guest = hypervisor.start(f"memory-{backing}-kill", backing=backing, machine="q35")
    try:
        guest.wait_up()
        domain = parse_domain(guest.xml())
        assert choose(domain).reader == reader
        with opened(domain) as memory:
            assert memory.name == reader
            assert reads_banner(memory)
            # libvirt deletes the file when the guest stops, but its inode lasts while a reader holds it.
            memory.begin_pass()
            guest.destroy()
            with pytest.raises(GuestGone):
                memory.end_pass()
            with pytest.raises(GuestGone):
                memory.begin_pass()
        with pytest.raises(GuestGone):
            open_memory(domain)
    finally:
        guest.destroy()


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_sparse_guest_above_4_gib_is_not_filled(machine: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex.encode()
    with QemuGuest("memory-sparse", tmp_path, memory_mib=5120, machine=machine) as qemu:
        qemu.wait_up()
        # Linux takes pages from the top first, so a file in the guest's own tmpfs lies above 4 GiB.
        qemu.shell(f"yes {mark.decode()} | head -c 4194304 > /mark; sync")
        qemu.pause()
        path = qemu.ram_path
        assert path is not None
        before = path.stat().st_blocks
        with opened(of_process(qemu, 5 << 30, machine)) as memory:
            memory.begin_pass()
            populated = memory.populated()
            assert sum(part.end - part.start for part in populated) < 1024 * MIB
            found = [part for part in populated if part.start >= ABOVE_4G and mark in read(memory, part)]
            assert found
            address = found[0].start + read(memory, found[0]).index(mark)
            assert seen_by_qemu(qemu, address, len(mark)) == mark
            scatter(memory, 20_000)
        for name in READERS[1:]:
            with opened(of_process(qemu, 5 << 30, machine), name) as memory:
                assert memory.read(address, len(mark)) == mark
        assert path.stat().st_blocks == before


def test_an_anonymous_guest_is_not_filled(tmp_path: Path) -> None:
    with QemuGuest("memory-anonymous", tmp_path, memory_mib=4096, backing="anonymous") as qemu:
        qemu.wait_up()
        qemu.pause()
        domain = replace(of_process(qemu, 4 << 30), backends=(Backend(4 << 30, Source.ANONYMOUS, False),))
        before = resident(qemu.pid)
        with opened(domain) as memory:
            assert memory.name == "process"
            populated = memory.populated()
            assert 32 * MIB < sum(part.end - part.start for part in populated) < 1024 * MIB
            assert any(BANNER in read(memory, part) for part in populated)
            scatter(memory, 20_000)
        assert resident(qemu.pid) - before < 4 * MIB


def test_numa_cells_follow_each_other(tmp_path: Path) -> None:
    sizes = (96 * MIB, 160 * MIB)
    files = [Path("/dev/shm") / f"nova-vmi-attest-lab-{uuid.uuid4().hex}-{index}" for index in range(2)]
    extra: list[str] = []
    for index, (path, size) in enumerate(zip(files, sizes, strict=True)):
        extra += [
            "-object",
            f"memory-backend-file,id=ram-node{index},size={size},share=on,mem-path={path}",
            "-numa", f"node,nodeid={index},memdev=ram-node{index}",
        ]  # fmt: skip
    try:
        with QemuGuest("memory-numa", tmp_path, backing="anonymous", extra=tuple(extra)) as qemu:
            qemu.wait_up()
            qemu.pause()
            backends = tuple(Backend(size, Source.FILE, True) for size in sizes)
            domain = replace(of_process(qemu, sum(sizes)), backends=backends)
            border = sizes[0]
            for name in READERS:
                with opened(domain, name) as memory:
                    wanted = seen_by_qemu(qemu, border - 2 * PAGE, 4 * PAGE)
                    assert memory.read(border - 2 * PAGE, 4 * PAGE) == wanted
                    assert memory.view(border - 2 * PAGE, 4 * PAGE).tobytes() == wanted
                    assert reads_banner(memory)
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def test_the_file_that_is_read_is_the_one_that_qemu_maps(tmp_path: Path) -> None:
    with QemuGuest("memory-decoy", tmp_path) as qemu:
        qemu.wait_up()
        qemu.pause()
        path = qemu.ram_path
        assert path is not None
        path.unlink()
        with open(path, "wb") as decoy:
            decoy.truncate(256 * MIB)
        with opened(of_process(qemu, 256 * MIB)) as memory:
            assert reads_banner(memory)


def test_private_file_ram_is_read_in_the_process_only(tmp_path: Path) -> None:
    path = Path("/dev/shm") / f"nova-vmi-attest-lab-{uuid.uuid4().hex}"
    extra = (
        "-object", f"memory-backend-file,id=ram,size=256M,share=off,mem-path={path}",
        "-machine", "memory-backend=ram",
    )  # fmt: skip
    try:
        with QemuGuest("memory-private", tmp_path, backing="anonymous", extra=extra) as qemu:
            qemu.wait_up()
            domain = of_process(qemu, 256 * MIB)
            with pytest.raises(ReaderError, match="private to QEMU"):
                open_memory(domain, "ram_file")
            private = replace(domain, backends=(Backend(256 * MIB, Source.FILE, False),))
            assert choose(private).reader == "process"
            with opened(private) as memory:
                assert reads_banner(memory)
    finally:
        path.unlink(missing_ok=True)


def test_ram_that_was_moved_is_refused(tmp_path: Path) -> None:
    moved = "pc,max-ram-below-4g=1G"
    with QemuGuest("memory-moved", tmp_path, memory_mib=2048, machine=moved, extra=("-S",)) as qemu:
        assert flat_view(qemu) != guest_ranges("pc", 2048 * MIB)
        for name in READERS:
            with pytest.raises(UnsupportedLayout, match="max-ram-below-4g"):
                open_memory(of_process(qemu, 2048 * MIB), name)
    with QemuGuest("memory-size", tmp_path, extra=("-S",)) as qemu, pytest.raises(ReaderError):
        open_memory(of_process(qemu, 512 * MIB))


def test_protected_and_stopped_guests_are_refused_before_reading(guest: LibvirtGuest) -> None:
    live = guest.xml()
    assert "<devices>" in live
    for kind in ("sev", "sev-snp", "tdx", "s390-pv"):
        protected = parse_domain(live.replace("<devices>", f"<launchSecurity type='{kind}'/><devices>", 1))
        for reader in (None, *READERS):
            with pytest.raises(EncryptedMemory, match=kind):
                open_memory(protected, reader)
    stopped = parse_domain(re.sub(r" id='\d+'", "", live, count=1))
    with pytest.raises(GuestGone):
        open_memory(stopped)


@pytest.mark.parametrize("name", READERS)
def test_a_guest_that_is_killed_while_it_is_read(name: str, tmp_path: Path) -> None:
    with (
        QemuGuest("memory-killed", tmp_path, memory_mib=128, extra=("-S",)) as qemu,
        opened(of_process(qemu, 128 * MIB), name) as memory,
    ):
        read_pass(memory)
        with pytest.raises(GuestGone):
            read_pass(memory, at_half=qemu.kill)
        with pytest.raises(GuestGone):
            read_pass(memory)


def of_process(qemu: QemuGuest, size: int, machine: str = "pc") -> DomainMemory:
    """What live XML would say of a guest that was started without libvirt."""
    return DomainMemory(
        uuid=uuid.uuid4(),
        name=qemu.name,
        machine=machine,
        size=size,
        backends=(Backend(size, Source.FILE, True),),
        pid=qemu.pid,
    )


def read_pass(memory: GuestMemory, at_half: Callable[[], None] | None = None) -> None:
    memory.begin_pass()
    for address in range(LEGACY_END, 16 * MIB, MIB):
        memory.read(address, PAGE)
        if at_half and address == 8 * MIB:
            at_half()
    memory.end_pass()


@contextlib.contextmanager
def opened(domain: DomainMemory, reader: str | None = None) -> Iterator[GuestMemory]:
    """A reader of ``domain`` with a pass begun."""
    with contextlib.closing(open_memory(domain, reader)) as memory:
        memory.begin_pass()
        yield memory


def addresses(memory: GuestMemory) -> list[tuple[int, int]]:
    return [(part.start, part.end) for part in memory.ranges]


def read(memory: GuestMemory, part: MemoryRange) -> bytes:
    return memory.read(part.start, part.end - part.start)


def reads_banner(memory: GuestMemory) -> bool:
    return any(BANNER in read(memory, part) for part in memory.populated())


def scatter(memory: GuestMemory, count: int) -> None:
    """Read as a walk of hostile page tables would: small pieces anywhere, and views of what may be holes."""
    chosen = random.Random(count)
    for _ in range(count):
        part = chosen.choice(memory.ranges)
        address = chosen.randrange(part.start, part.end, PAGE)
        assert len(memory.read(address, 8)) == 8
        assert memory.view(address, PAGE)[-1] >= 0


def ram_file(guest: LibvirtGuest) -> str:
    """The RAM file of a guest, by QEMU's command line."""
    arguments = Path(f"/proc/{guest.pid}/cmdline").read_text()
    found = re.search(r'"mem-path":"([^"]+)"', arguments)
    assert found
    return found[1]


def resident(pid: int) -> int:
    """Bytes of anonymous memory that a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def seen_by_qemu(qemu: QemuGuest, address: int, length: int) -> bytes:
    """Guest-physical memory as QEMU itself reads it."""
    path = Path("/dev/shm") / f"nova-vmi-attest-lab-{uuid.uuid4().hex}"
    try:
        qemu.qmp("pmemsave", val=address, size=length, filename=str(path))
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def flat_view(qemu: QemuGuest) -> tuple[MemoryRange, ...]:
    """The guest's RAM as QEMU lays it out (``info mtree -f``), without the VGA and ROM area."""
    text = qemu.qmp("human-monitor-command", **{"command-line": "info mtree -f"})
    system = next(view for view in text.split("FlatView") if 'AS "memory"' in view)
    parts: list[tuple[int, int, int]] = []
    pattern = r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, \w+\): pc\.ram(?: @([0-9a-f]+))?"
    for start, last, offset in re.findall(pattern, system, re.MULTILINE):
        parts.append((int(start, 16), int(last, 16) + 1, int(offset or "0", 16)))
    return joined(outside_legacy(parts))


def outside_legacy(parts: Sequence[tuple[int, int, int]]) -> list[MemoryRange]:
    cut = []
    for start, end, offset in parts:
        for low, high in ((0, LEGACY_START), (LEGACY_END, 1 << 52)):
            first, until = max(start, low), min(end, high)
            if first < until:
                cut.append(MemoryRange(first, until, offset + first - start))
    return cut


def joined(parts: Sequence[MemoryRange]) -> tuple[MemoryRange, ...]:
    whole: list[MemoryRange] = []
    for part in parts:
        last = whole[-1] if whole else None
        if last and last.end == part.start and last.offset + last.end - last.start == part.offset:
            whole[-1] = replace(last, end=part.end)
        else:
            whole.append(part)
    return tuple(whole)
