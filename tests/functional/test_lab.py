# SPDX-License-Identifier: Apache-2.0
"""The lab's own parts do what the other functional tests rely on, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import kernels
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.processes import alive
from lab.qemu import Backing, QemuGuest
from lab.rabbitmq import RabbitMq
from lab.tpm import SoftwareTpm

# TPM2_ReadClock; its answer carries resetCount and restartCount (TPM 2.0 Part 3, 29.1).
READ_CLOCK = bytes.fromhex("80010000000a00000181")

TEXT_TO_ALTER = "tcp4_seq_show"


def ram_files() -> set[Path]:
    """What this process's guests keep in shared memory; other runs on the machine have files of their own."""
    return set(Path("/dev/shm").glob(f"nova-vmi-attest-lab-{os.getpid()}-*"))


def physical(guest: QemuGuest, symbol: str) -> int:
    """Guest-physical address of a symbol of the guest's kernel text, from what the guest itself says."""
    address = int(guest.shell(f"grep -w {symbol} /proc/kallsyms").split()[0], 16)
    text = int(guest.shell("grep -w _text /proc/kallsyms").split()[0], 16)
    start = guest.shell("grep 'Kernel code' /proc/iomem").split("-")[0].strip()
    return int(start, 16) + address - text


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[QemuGuest]:
    with QemuGuest("lab", tmp_path) as guest:
        yield guest.wait_up()


@pytest.mark.parametrize("backing", ["file", "memfd", "anonymous"])
def test_a_guest_comes_up_on_each_backing_and_leaves_nothing(backing: Backing, tmp_path: Path) -> None:
    before = ram_files()
    with QemuGuest("lab", tmp_path, backing=backing) as guest:
        guest.wait_up()
        pid, ram = guest.pid, guest.ram_path
        assert guest.shell("uname -r") == kernels.release("cloud")
        assert "GUEST-MISSES" not in guest.console.text()
        assert guest.shell("ls /sys/class/net") == "lo"
        assert (ram is None) == (backing == "anonymous")
        assert ram is None or ram.stat().st_size == guest.memory_mib << 20
    assert not alive(pid)
    assert ram_files() == before


def test_the_tamper_module_changes_exactly_the_bytes_asked_for(guest: QemuGuest) -> None:
    address = physical(guest, TEXT_TO_ALTER)
    page, offset = address & ~0xFFF, address & 0xFFF
    assert guest.ram_path is not None

    def text() -> bytes:
        with open(guest.ram_path, "rb") as ram:  # type: ignore[arg-type]
            ram.seek(page)
            return ram.read(2 * 4096)

    before = text()
    live = guest.shell(f"grep -w {TEXT_TO_ALTER} /proc/kallsyms").split()[0]
    said = guest.shell(f"insmod /lib/modules/tamper.ko address=0x{live} offset=0x21 bytes=cc90cc 2>&1")
    after = text()

    assert "Resource temporarily unavailable" in said
    assert guest.shell("grep tamper /proc/modules") == ""
    at = offset + 0x21
    assert after == before[:at] + bytes.fromhex("cc90cc") + before[at + 3 :]
    assert after != before


@pytest.mark.parametrize(
    "arguments", ["", "address=0x1000", "address=0x1000 bytes=9", "address=0x1000 bytes=zz"]
)
def test_the_tamper_module_refuses_what_it_does_not_understand(arguments: str, guest: QemuGuest) -> None:
    assert "Invalid argument" in guest.shell(f"insmod /lib/modules/tamper.ko {arguments} 2>&1")
    assert guest.shell("echo alive") == "alive"


def test_a_paused_guest_does_not_answer_until_it_is_resumed(guest: QemuGuest) -> None:
    guest.pause()
    with pytest.raises(LabError, match="did not finish"):
        guest.shell("echo paused", timeout=0.5)
    assert guest.qmp("query-status")["running"] is False
    guest.resume()
    assert guest.shell("echo resumed") == "resumed"


def test_a_guest_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    before = ram_files()
    with (
        pytest.raises(LabError, match="no-such-processor"),
        QemuGuest("lab", tmp_path, cpu="no-such-processor"),
    ):
        pass
    assert ram_files() == before


def test_libvirt_guests_run_apart_from_the_machine_and_leave_nothing(tmp_path: Path) -> None:
    before = ram_files()
    machine = {
        path: path.exists() for path in map(Path, ("/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt"))
    }
    with Hypervisor(tmp_path) as hypervisor:
        first = hypervisor.start("first", memory_mib=5120)
        second = hypervisor.start("second", backing="anonymous", cpu="max", vcpus=2, machine="q35")
        assert str(first.uuid) in first.xml()
        assert first.wait_up().shell("uname -r") == kernels.release("cloud")
        assert second.wait_up().shell("grep -c ^processor /proc/cpuinfo") == "2"
        (ram,) = (file for tree in ram_files() - before for file in tree.rglob("pc.ram"))
        assert ram.stat().st_size == 5120 << 20
        assert ram.stat().st_blocks * 512 < 1024 << 20
        core = second.dump(tmp_path / "core")
        assert core.read_bytes().startswith(b"\x7fELF")
        core.unlink()
        second.destroy()
        assert not alive(second.pid)
    assert not alive(first.pid)
    assert ram_files() == before
    assert {path: path.exists() for path in machine} == machine


def test_guests_end_with_the_hypervisor_even_if_its_daemon_died(tmp_path: Path) -> None:
    before = ram_files()
    with Hypervisor(tmp_path) as hypervisor:
        guest = hypervisor.start("orphan").wait_up()
        hypervisor.kill_daemon()
        assert alive(guest.pid)
    assert not alive(guest.pid)
    assert ram_files() == before


def epoch(tpm: SoftwareTpm) -> tuple[int, int]:
    """(resetCount, restartCount), asked for without any TPM library."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(tpm.tcti.removeprefix("swtpm:path="))
        channel.sendall(READ_CLOCK)
        answer = channel.recv(256)
    clock = answer[10 + 8 :]
    return int.from_bytes(clock[8:12], "big"), int.from_bytes(clock[12:16], "big")


def test_the_software_tpm_tells_a_reset_from_a_resume(tmp_path: Path) -> None:
    with SoftwareTpm(tmp_path) as tpm:
        pid, address = tpm.pid, tpm.tcti
        reset, restart = epoch(tpm)
        tpm.restart()
        assert epoch(tpm) == (reset + 1, 0)
        tpm.resume()
        assert epoch(tpm) == (reset + 1, restart + 1)
        tpm.power_cut()
        tpm.start()
        assert epoch(tpm) == (reset + 2, 0)
        assert tpm.tcti == address
        assert b"BEGIN CERTIFICATE" in tpm.roots.read_bytes()
        assert b"BEGIN CERTIFICATE" in tpm.intermediates.read_bytes()
        assert not alive(pid)
        pid = tpm.pid
    assert not alive(pid)


def test_the_message_bus_greets_and_goes(tmp_path: Path) -> None:
    with RabbitMq(tmp_path) as bus:
        with socket.create_connection(("127.0.0.1", bus.port), timeout=10) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            # A method frame on channel 0: connection.start.
            assert client.recv(7)[:3] == b"\x01\x00\x00"
        pids = bus.pids
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", bus.port), timeout=10)


def test_a_guest_stops_when_its_block_is_interrupted(tmp_path: Path) -> None:
    before = ram_files()
    guest = QemuGuest("lab", tmp_path)
    pids = []

    def interrupted() -> None:
        with guest:
            pids.append(guest.pid)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 1
    assert not alive(pids[0])
    assert ram_files() == before
