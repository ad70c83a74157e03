# SPDX-License-Identifier: Apache-2.0
"""Whole passes over real guests: healthy ones have nothing to explain, each alteration is named.

Guests are altered by writing their RAM file from the host while they are paused, and put right again.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import kernels
from lab.qemu import QemuGuest

from nova_vmi_attest.evidence.measurement import Measurement, Outcome, Status, Unmeasured
from nova_vmi_attest.introspection.measure import Measurer, passed
from nova_vmi_attest.introspection.memory.ram_file import RamFileMemory
from nova_vmi_attest.introspection.paging import FRAME
from nova_vmi_attest.kernel.reference import Reference

from .altered_guest import MIB, UUID, Altered, Provider, described, load, measured, paused, reading


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load("cloud")


@pytest.mark.parametrize(
    ("cpu", "vcpus", "flavour"),
    [
        ("qemu64", 1, "cloud"),
        ("Haswell", 2, "cloud"),
        ("Skylake-Server", 1, "cloud"),
        ("EPYC-Milan", 2, "amd64"),
        ("max", 1, "rt"),
    ],
)
def test_a_healthy_guest_has_nothing_to_explain(
    cpu: str, vcpus: int, flavour: kernels.Flavour, tmp_path: Path
) -> None:
    measurer = Measurer(Provider(load(flavour)))
    with QemuGuest("healthy", tmp_path, cpu=cpu, vcpus=vcpus, flavour=flavour) as guest:
        guest.wait_up()
        with reading(guest) as memory:
            first, warm = measured(measurer, memory), measured(measurer, memory)
    for measurement in (first, warm):
        assert passed(measurement), described(measurement)
        assert len(measurement.integrity.checks) == 9
        assert measurement.integrity.unexplained_bytes == 0
        assert measurement.integrity.code_bytes > 10 * MIB
        assert len(measurement.integrity.modules) >= 5
        assert all(len(module.reference) == 64 for module in measurement.integrity.modules)
        assert "sleep" in [process.name for process in measurement.inventory.processes]
        assert "/bin/busybox" in [process.executable for process in measurement.inventory.processes]
    assert first.integrity == warm.integrity


@pytest.fixture(scope="module")
def altered(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Altered]:
    with paused("altered", tmp_path_factory.mktemp("altered"), reference) as guest:
        yield guest


def text_byte(guest: Altered) -> str:
    guest.write(guest.kernel.symbol("tcp4_seq_show") + 0x20, b"\x90\x90\x90")
    return "tcp4_seq_show"


def jump_at_function_entry(guest: Altered) -> str:
    guest.write(guest.kernel.symbol("vfs_read"), b"\xe9\0\0\0\0")
    return "vfs_read"


def code_behind_text(guest: Altered) -> str:
    guest.write(guest.kernel.symbol("_etext") + 16, b"\xcc")
    return "_etext"


def system_call(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("sys_call_table") + 8 * 39, guest.kernel.symbol("__x64_sys_kill"))
    return "sys_call_table"


def file_operations(guest: Altered) -> str:
    at = guest.kernel.symbol("tcp4_seq_ops") + guest.kernel.offset("seq_operations", "show")
    guest.write_word(at, guest.kernel.symbol("udp4_seq_show"))
    return "tcp4_seq_ops"


def pointer_after_init(guest: Altered) -> str:
    target = guest.kernel.symbol("security_hook_heads")
    guest.write_word(target, guest.kernel.symbol("tcp4_seq_show") + 7)
    return "security_hook_heads"


def shared_object(guest: Altered) -> str:
    data = guest.kernel.u64(guest.kernel.symbol("vdso_image_64"))
    guest.write(data + 0x700, b"\xcc" * 4)
    return "vdso_image_64"


def interrupt_gate(guest: Altered) -> str:
    target = guest.kernel.symbol("asm_exc_page_fault")
    guest.write(guest.kernel.symbol("idt_table") + 13 * 16, struct.pack("<H", target & 0xFFFF))
    guest.write(
        guest.kernel.symbol("idt_table") + 13 * 16 + 6,
        struct.pack("<HI", target >> 16 & 0xFFFF, target >> 32),
    )
    return "idt_table"


def static_call(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("__SCK__cond_resched"), guest.kernel.symbol("tcp4_seq_show"))
    return "__SCK__cond_resched"


def static_call_into_a_function(guest: Altered) -> str:
    key = "__SCK__tp_func_sched_switch"
    guest.write_word(guest.kernel.symbol(key), guest.kernel.symbol("tcp4_seq_show") + 4)
    return key


def static_call_and_its_text(guest: Altered) -> str:
    """The replay explains this text: the value that explains it must not pass."""
    key, target = "__SCK__pv_sched_clock", guest.kernel.symbol("tcp4_seq_show")
    guest.write_word(guest.kernel.symbol(key), target)
    trampoline = guest.kernel.symbol("__SCT__pv_sched_clock")
    guest.write(trampoline, b"\xe9" + struct.pack("<i", target - trampoline - 5))
    return key


def paravirtual_operation(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("pv_ops") + 8, guest.kernel.symbol("tcp4_seq_show"))
    return "pv_ops"


def return_thunk(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("x86_return_thunk"), guest.kernel.symbol("tcp4_seq_show"))
    return "x86_return_thunk"


def capability_of_one_copy(guest: Altered) -> str:
    at = guest.kernel.symbol("boot_cpu_data") + guest.kernel.offset("cpuinfo_x86", "x86_capability") + 4 * 8
    guest.write(at, struct.pack("<I", guest.kernel.u32(at) | 1 << 31))
    return "boot_cpu_data"


def hidden_process(guest: Altered) -> str:
    structures = guest.structures
    task = next(one for one in structures.tasks() if structures.task(one).name == "sleep")
    guest.unlink(task + guest.kernel.offset("task_struct", "tasks"))
    return f"process {structures.task(task).pid}"


def hidden_module(guest: Altered) -> str:
    address = guest.structures.module_list()[1]
    guest.unlink(address + guest.kernel.offset("module", "list"))
    return guest.structures.module(address).name


def module_text(guest: Altered) -> str:
    module = guest.structures.module(guest.structures.module_list()[0])
    guest.write(module.extents[0].base + 0x11, b"\xcc")
    return module.name


def module_constant(guest: Altered) -> str:
    module = guest.structures.module(guest.structures.module_list()[0])
    sections = guest.structures.module_sections(module.address)
    guest.write(sections[".rodata"], b"\xff")
    return module.name


def renamed_module(guest: Altered) -> str:
    address = guest.structures.module_list()[0]
    guest.write(address + guest.kernel.offset("module", "name"), b"rootkit\0")
    return "rootkit"


def remapped_text(guest: Altered) -> str:
    space = guest.kernel.space
    va = guest.kernel.symbol("_text") + 0x400000
    table = space.root
    for level in range(space.levels - 1, 0, -1):
        at = table + (va >> (12 + 9 * level) & 511) * 8
        entry = struct.unpack("<Q", guest.memory.read(at, 8))[0]
        table = entry & FRAME
    guest.write_physical(at, struct.pack("<Q", entry + 0x200000))
    return "" if entry & 0x80 else "page table"


def writable_text(guest: Altered) -> str:
    space = guest.kernel.space
    va = guest.kernel.symbol("_text") + 0x400000
    table = space.root
    for level in range(space.levels - 1, 0, -1):
        at = table + (va >> (12 + 9 * level) & 511) * 8
        entry = struct.unpack("<Q", guest.memory.read(at, 8))[0]
        table = entry & FRAME
    guest.write_physical(at, struct.pack("<Q", entry | 2))
    return ""


def executable_data(guest: Altered) -> str:
    va = guest.kernel.symbol("_sdata")
    table = guest.kernel.space.root
    for level in range(guest.kernel.space.levels - 1, 0, -1):
        at = table + (va >> (12 + 9 * level) & 511) * 8
        entry = struct.unpack("<Q", guest.memory.read(at, 8))[0]
        if level == 1:
            guest.write_physical(at, struct.pack("<Q", entry & ~(1 << 63)))
        table = entry & FRAME
    return ""


def own_kernel_half(guest: Altered) -> str:
    structures = guest.structures
    task = next(one for one in structures.tasks() if structures.task(one).name == "sleep")
    table = structures.top_table(task)
    assert table is not None
    guest.write_word(table + 8 * 300, 0x1067)
    return f"process {structures.task(task).pid}"


def traced_functions(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("ftrace_ops_list"), guest.kernel.symbol("init_task"))
    return "ftrace_ops_list"


@pytest.mark.parametrize(
    ("check", "alter"),
    [
        ("text", text_byte),
        ("text", jump_at_function_entry),
        ("text", code_behind_text),
        ("rodata", system_call),
        ("rodata", file_operations),
        ("rodata", pointer_after_init),
        ("rodata", shared_object),
        ("idt", interrupt_gate),
        ("control", static_call),
        ("control", static_call_into_a_function),
        ("control", static_call_and_its_text),
        ("control", paravirtual_operation),
        ("control", return_thunk),
        ("control", capability_of_one_copy),
        ("processes", hidden_process),
        ("modules", hidden_module),
        ("modules", module_text),
        ("modules", module_constant),
        ("modules", renamed_module),
        ("page_tables", remapped_text),
        ("page_tables", writable_text),
        ("executable_pages", executable_data),
        ("page_tables", own_kernel_half),
        ("hooks", traced_functions),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_alteration_is_named(altered: Altered, check: str, alter: Callable[[Altered], str]) -> None:
    before = measured(altered.measurer, altered.memory)
    assert passed(before), described(before)
    try:
        symbol = alter(altered)
        warm = measured(altered.measurer, altered.memory)
        altered.measurer.forget(UUID)
        cold = measured(altered.measurer, altered.memory)
    finally:
        altered.restore()
    for measurement in (warm, cold):
        result = next(one for one in measurement.integrity.checks if one.check == check)
        assert result.outcome is Outcome.FAILED, described(measurement)
        assert any(finding.symbol.startswith(symbol) for finding in result.findings), described(measurement)
        assert len(result.findings) <= 64
    after = measured(altered.measurer, altered.memory)
    assert passed(after), described(after)


def test_what_the_kernel_switches_itself_is_no_finding(reference: Reference, tmp_path: Path) -> None:
    measurer = Measurer(Provider(reference))
    with QemuGuest("switched", tmp_path, cpu="Skylake-Server") as guest, reading(guest.wait_up()) as memory:
        before = measured(measurer, memory)
        guest.shell("echo 1 > /proc/sys/kernel/sched_schedstats")
        after = measured(measurer, memory)
        guest.console.close()  # whoever is connected and does not listen holds the guest's console up
        guest.qmp("set-action", reboot="reset")
        guest.qmp("system_reset")
        reasons = wait_measured(measurer, memory, lambda one: guest.console.text().count("GUEST-UP") == 2)
        rebooted = measured(measurer, memory)
    assert passed(before), described(before)
    assert passed(after), described(after)
    assert reasons <= {Unmeasured.BOOTING, Unmeasured.NO_KERNEL, Unmeasured.UNSUPPORTED}
    assert passed(rebooted), described(rebooted)


def wait_measured(
    measurer: Measurer, memory: RamFileMemory, until: Callable[[Measurement], bool]
) -> set[Unmeasured]:
    """Measure until it is so; the reasons why it was not before."""
    reasons = set()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        measurement = measured(measurer, memory)
        if measurement.integrity.status is Status.MEASURED and until(measurement):
            return reasons
        if measurement.integrity.reason is not None:
            reasons.add(measurement.integrity.reason)
        time.sleep(0.2)
    raise AssertionError(f"never measured: {reasons}")


def test_a_guest_is_unknown_until_it_has_started(reference: Reference, tmp_path: Path) -> None:
    provider = Provider(reference)
    measurer = Measurer(provider)
    with QemuGuest("starting", tmp_path) as guest, reading(guest) as memory:
        first = measured(measurer, memory)
        reasons = wait_measured(measurer, memory, lambda one: True)
        guest.wait_up()
        last = measured(measurer, memory)
    assert first.integrity.reason is Unmeasured.NO_KERNEL
    assert reasons <= {Unmeasured.BOOTING, Unmeasured.NO_KERNEL}
    assert passed(last), described(last)
    assert not provider.asked


def test_a_kernel_without_reference_is_asked_for(altered: Altered) -> None:
    other = Provider()
    measurement = measured(Measurer(other), altered.memory)
    assert measurement.integrity.reason is Unmeasured.UNKNOWN_KERNEL
    assert measurement.integrity.detail.startswith("Linux version 6.1.")
    assert altered.reference.vmlinux.banner in other.asked


def test_another_kernel_is_not_measured_by_the_wrong_reference(altered: Altered) -> None:
    measurement = measured(Measurer(Provider(load("rt"))), altered.memory)
    assert measurement.integrity.reason is Unmeasured.UNKNOWN_KERNEL
    assert not measurement.integrity.checks
