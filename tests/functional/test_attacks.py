# SPDX-License-Identifier: Apache-2.0
"""What an attacker who knows the checks would try, on a real guest: caught, or stated as a limit.

The guest is altered by writing its RAM file from the host while it is paused, and put right again.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.qemu import QemuGuest

from nova_vmi_attest.evidence.measurement import Outcome, Status, Unmeasured
from nova_vmi_attest.introspection.measure import Measurer, passed
from nova_vmi_attest.introspection.paging import FRAME, AddressSpace
from nova_vmi_attest.kernel.reference import Reference

from .altered_guest import UUID, Altered, Provider, described, load, measured, paused, reading

ENTRY_AREA = 0xFFFFFE0000000000  # the read-only alias of the interrupt table; CPU 0's segments follow
SCRATCH = 0x5000000  # guest-physical memory that the measured kernel does not need
TABLE = 0x63  # present, writable, accessed, dirty
LONGEST = 20.0  # seconds for any pass, on a busy machine; without bounds these take minutes


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load("cloud")


@pytest.fixture(scope="module")
def altered(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Altered]:
    with paused("attacked", tmp_path_factory.mktemp("attacked"), reference, vcpus=2) as guest:
        yield guest


def remap(guest: Altered, space: AddressSpace, va: int) -> None:
    """Lead one 4 KiB page of an address space to other memory."""
    table = space.root
    for level in range(space.levels - 1, -1, -1):
        at = table + (va >> (12 + 9 * level) & 511) * 8
        (entry,) = struct.unpack("<Q", guest.memory.read(at, 8))
        table = entry & FRAME
    guest.write_physical(at, struct.pack("<Q", entry & ~FRAME | SCRATCH))


def user_space(guest: Altered) -> AddressSpace:
    space = guest.kernel.space
    return AddressSpace(guest.memory, space.root + 0x1000, space.levels)


def first_area(guest: Altered) -> int:
    return next(guest.structures.online_cpus())[1]


def sleeper(guest: Altered) -> int:
    return next(one for one in guest.structures.tasks() if guest.structures.task(one).name == "sleep")


def take_off_lists(guest: Altered, task: int) -> None:
    """Off the task list and without a process number."""
    kernel = guest.kernel
    guest.unlink(task + kernel.offset("task_struct", "tasks"))
    number = kernel.u64(task + kernel.offset("task_struct", "thread_pid"))
    guest.write_word(number + kernel.offset("pid", "tasks") + 8, 0)


def interrupt_table_seen_elsewhere(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("idt_descr") + 2, guest.kernel.symbol("idt_table"))
    remap(guest, guest.kernel.space, ENTRY_AREA)
    return "idt_table"


def interrupt_descriptor_moved(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("idt_descr") + 2, guest.kernel.symbol("boot_cpu_data"))
    return "idt_descr"


def interrupt_stack(guest: Altered) -> str:
    guest.write(guest.kernel.symbol("idt_table") + 14 * 16 + 4, b"\x03")
    return "idt_table"


def interrupt_gate_for_processes(guest: Altered) -> str:
    guest.write(guest.kernel.symbol("idt_table") + 14 * 16 + 5, b"\xee")
    return "idt_table"


def segments_seen_elsewhere(guest: Altered) -> str:
    remap(guest, user_space(guest), ENTRY_AREA + 0x1000)
    return "gdt_page"


def call_gate(guest: Altered) -> str:
    table = (first_area(guest) + guest.kernel.symbol("gdt_page")) & (1 << 64) - 1
    guest.write_word(table + 8 * 12, 0x0000EC0000100000)
    return "gdt_page"


def security_list_emptied(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("security_hook_heads"), 0)
    return ""


def security_hook_exchanged(guest: Altered) -> str:
    entry = guest.kernel.u64(guest.kernel.symbol("security_hook_heads"))
    at = entry + guest.kernel.offset("security_hook_list", "hook")
    guest.write_word(at, guest.kernel.symbol("tcp4_seq_show"))
    return ""


def security_hook_of_ones_own(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("security_hook_heads"), guest.kernel.symbol("boot_cpu_data"))
    return "security_hook_heads"


def pointer_into_a_function(guest: Altered) -> str:
    at = guest.kernel.symbol("tcp_prot") + guest.kernel.offset("proto", "close")
    guest.write_word(at, guest.kernel.symbol("tcp4_seq_show") + 3)
    return "tcp_prot"


def unreadable_probe(guest: Altered) -> str:
    guest.write_word(guest.kernel.symbol("kprobe_table") + 8, 0x1000)
    return "kprobe_table"


def off_both_lists(guest: Altered) -> str:
    task = sleeper(guest)
    take_off_lists(guest, task)
    return f"process {guest.structures.task(task).pid}"


def running_off_all_lists(guest: Altered) -> str:
    task = sleeper(guest)
    take_off_lists(guest, task)
    guest.unlink(task + guest.kernel.offset("task_struct", "sibling"))
    queue = (first_area(guest) + guest.kernel.symbol("runqueues")) & (1 << 64) - 1
    guest.write_word(queue + guest.kernel.offset("rq", "curr"), task)
    return f"process {guest.structures.task(task).pid}"


def constants_not_claimed(guest: Altered) -> str:
    module = guest.structures.module(guest.structures.module_list()[0])
    layout = module.address + guest.kernel.offset("module", "core_layout")
    code = guest.kernel.read(layout + guest.kernel.offset("module_layout", "text_size"), 4)
    guest.write(layout + guest.kernel.offset("module_layout", "ro_size"), code)
    guest.write(guest.structures.module_sections(module.address)[".rodata"], b"\xff" * 8)
    return module.name


def code_for_kernel_threads_only(guest: Altered) -> str:
    guest.write_physical(guest.kernel.space.root + 8 * 5, struct.pack("<Q", SCRATCH | TABLE))
    return "init_top_pgt"


@pytest.mark.parametrize(
    ("check", "alter"),
    [
        ("idt", interrupt_table_seen_elsewhere),
        ("idt", interrupt_descriptor_moved),
        ("idt", interrupt_stack),
        ("idt", interrupt_gate_for_processes),
        ("idt", segments_seen_elsewhere),
        ("idt", call_gate),
        ("hooks", security_list_emptied),
        ("hooks", security_hook_exchanged),
        ("hooks", security_hook_of_ones_own),
        ("hooks", pointer_into_a_function),
        ("hooks", unreadable_probe),
        ("processes", off_both_lists),
        ("processes", running_off_all_lists),
        ("modules", constants_not_claimed),
        ("page_tables", code_for_kernel_threads_only),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_attack_is_caught(altered: Altered, check: str, alter: Callable[[Altered], str]) -> None:
    before = measured(altered.measurer, altered.memory)
    assert passed(before), described(before)
    try:
        symbol = alter(altered)
        altered.kernel.refresh()
        warm = measured(altered.measurer, altered.memory)
        altered.measurer.forget(UUID)
        cold = measured(altered.measurer, altered.memory)
    finally:
        altered.restore()
    for measurement in (warm, cold):
        result = next(one for one in measurement.integrity.checks if one.check == check)
        assert result.outcome is Outcome.FAILED, described(measurement)
        assert any(finding.symbol.startswith(symbol) for finding in result.findings), described(measurement)


def made_up_tasks(guest: Altered) -> None:
    kernel = guest.kernel
    head = kernel.symbol("init_task") + kernel.offset("task_struct", "tasks")
    base = kernel.u64(kernel.symbol("page_offset_base")) + SCRATCH
    following = [base + 16 * number for number in range(1, 65000)] + [head]
    guest.write_physical(SCRATCH, b"".join(struct.pack("<QQ", after, base) for after in following))
    guest.write_word(head, base)


def tables_entered_over_and_over(guest: Altered) -> None:
    top, middle, low = SCRATCH, SCRATCH + 0x1000, SCRATCH + 0x2000
    guest.write_physical(guest.kernel.space.root + 8 * 300, struct.pack("<Q", top | TABLE))
    guest.write_physical(top, struct.pack("<Q", middle | TABLE) * 60)
    guest.write_physical(middle, struct.pack("<Q", low | TABLE) * 512)
    guest.write_physical(low, struct.pack("<Q", 0x7000 | TABLE) * 512)


def made_up_modules(guest: Altered) -> None:
    kernel = guest.kernel
    address, head = guest.structures.module_list()[0], kernel.symbol("modules")
    size, at = kernel.vmlinux.btf.size("module"), kernel.offset("module", "list")
    template, base = kernel.read(address, size), kernel.u64(kernel.symbol("page_offset_base")) + SCRATCH
    following = [base + size * number + at for number in range(1, 1000)] + [head]
    modules = (template[:at] + struct.pack("<Q", after) + template[at + 8 :] for after in following)
    guest.write_physical(SCRATCH, b"".join(modules))
    guest.write_word(head, base + at)


def process_numbers_without_end(guest: Altered) -> None:
    kernel, offset = guest.kernel, guest.kernel.offset
    head = kernel.symbol("init_pid_ns") + offset("pid_namespace", "idr") + offset("idr", "idr_rt")
    base = kernel.u64(kernel.symbol("page_offset_base")) + SCRATCH
    for level in range(4):
        node = SCRATCH + 0x1000 * level
        guest.write_physical(node + offset("xa_node", "shift"), bytes([6 * (3 - level)]))
        below = struct.pack("<Q", base + 0x1000 * (level + 1) | 2) * 64
        guest.write_physical(node + offset("xa_node", "slots"), below)
    guest.write_word(head + offset("xarray", "xa_head"), base | 2)


@pytest.mark.parametrize(
    "alter",
    [made_up_tasks, tables_entered_over_and_over, made_up_modules, process_numbers_without_end],
    ids=lambda value: value.__name__,
)
def test_a_guest_cannot_hold_the_measurer_up(altered: Altered, alter: Callable[[Altered], None]) -> None:
    try:
        alter(altered)
        altered.kernel.refresh()
        started = time.monotonic()
        measurement = measured(altered.measurer, altered.memory)
        elapsed = time.monotonic() - started
    finally:
        altered.restore()
    assert not passed(measurement)
    assert elapsed < LONGEST


def test_copies_of_anchors_do_not_hide_the_kernel_that_runs(altered: Altered) -> None:
    vmlinux, base = altered.reference.vmlinux, altered.kernel.physical_base
    anchor = vmlinux.offset_of("linux_banner")
    end = base + len(vmlinux.image)
    last = (256 << 20) - anchor - 4096
    places = [at for at in range(0, last, 2 << 20) if not base <= at + anchor < end]
    try:
        for place in places:
            altered.write_physical(place + anchor, vmlinux.banner + b"\0")
        altered.measurer.forget(UUID)
        measurement = measured(altered.measurer, altered.memory)
    finally:
        altered.restore()
    assert measurement.integrity.status is Status.UNMEASURED
    assert measurement.integrity.reason is Unmeasured.UNSUPPORTED


def bpf_program_of_ones_own(guest: Altered) -> None:
    kernel = guest.kernel
    pack = kernel.u64(kernel.symbol("pack_list")) - kernel.offset("bpf_prog_pack", "list")
    base = kernel.u64(pack + kernel.offset("bpf_prog_pack", "ptr"))
    guest.write(pack + kernel.offset("bpf_prog_pack", "bitmap") + 4000, b"\xff")
    guest.write(base + 4000 * 8 * 64, b"\x90\xc3")


def whole_function_exchanged(guest: Altered) -> None:
    at = guest.kernel.symbol("tcp_prot") + guest.kernel.offset("proto", "close")
    guest.write_word(at, guest.kernel.symbol("tcp4_seq_show"))


def sleeper_off_all_lists(guest: Altered) -> None:
    task = sleeper(guest)
    take_off_lists(guest, task)
    guest.unlink(task + guest.kernel.offset("task_struct", "sibling"))


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (bpf_program_of_ones_own, "bytes of BPF programs, whose code is not verified"),
        (whole_function_exchanged, "tcp_prot"),
        (sleeper_off_all_lists, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_limit_that_the_manual_states(
    altered: Altered, alter: Callable[[Altered], None], told: str
) -> None:
    """These pass. When one no longer does, doc/source/reference/trust.rst is to be changed with it."""
    try:
        alter(altered)
        altered.kernel.refresh()
        measurement = measured(altered.measurer, altered.memory)
    finally:
        altered.restore()
    assert passed(measurement), described(measurement)
    assert any(told in check.detail for check in measurement.integrity.checks)


FORKS = "(while :; do /bin/true; (sleep 0.01 | cat) & done) >/dev/null 2>&1 &"
LOADS = "(while :; do insmod /lib/modules/dm-mod.ko; rmmod dm_mod; done) >/dev/null 2>&1 &"


@pytest.mark.parametrize(
    ("before", "storm"), [("true", FORKS), ("rmmod dm_mod", LOADS)], ids=["fork", "load"]
)
def test_a_storm_is_no_tampering(before: str, storm: str, reference: Reference, tmp_path: Path) -> None:
    measurer = Measurer(Provider(reference))
    with QemuGuest("storm", tmp_path, cpu="Skylake-Server", vcpus=2) as guest:
        guest.wait_up()
        guest.shell(before)
        guest.shell(storm)
        with reading(guest) as memory:
            passes = [measured(measurer, memory) for _ in range(50)]
    for measurement in passes:
        assert measurement.integrity.status is Status.MEASURED, described(measurement)
        failed = [one for one in measurement.integrity.checks if one.outcome is Outcome.FAILED]
        assert not failed, described(measurement)
