# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.paging import PAGE
from nova_vmi_attest.introspection.structures import PATH_BYTES, Structures, printable

from . import fakes
from .fakes import KERNEL, FakeMemory

DATA = KERNEL + 0x10000
PHYSICAL = 0x80000
TYPES = {
    ("task_struct", "tasks"): 0,
    ("task_struct", "mm"): 16,
    ("task_struct", "cred"): 24,
    ("task_struct", "comm"): 32,
    ("task_struct", "pid"): 48,
    ("task_struct", "pid_links"): 64,
    ("cred", "uid"): 4,
    ("mm_struct", "exe_file"): 0,
    ("mm_struct", "pgd"): 8,
    ("file", "f_path.dentry"): 0,
    ("dentry", "d_parent"): 0,
    ("dentry", "d_name"): 8,
    ("qstr", "name"): 8,
    ("pid_namespace", "idr"): 0,
    ("idr", "idr_rt"): 0,
    ("xarray", "xa_head"): 0,
    ("xa_node", "shift"): 0,
    ("xa_node", "slots"): 40,
    ("pid", "tasks"): 0,
    ("module", "list"): 8,
    ("module", "name"): 24,
    ("module", "state"): 0,
    ("module", "core_layout"): 128,
    ("module", "init_layout"): 192,
    ("module", "sect_attrs"): 256,
    ("module_layout", "base"): 0,
    ("module_layout", "size"): 8,
    ("module_layout", "text_size"): 12,
    ("module_layout", "ro_size"): 16,
    ("module_layout", "ro_after_init_size"): 20,
    ("module_sect_attrs", "nsections"): 0,
}
NEWER = TYPES | {
    ("module", "mem"): 128,
    ("module_memory", "sizeof"): 16,
    ("module_memory", "base"): 0,
    ("module_memory", "size"): 8,
}


def structures(memory: FakeMemory, types: dict[tuple[str, str], int] | None = None) -> Structures:
    for page in range(8):
        fakes.map_page(memory, DATA + page * PAGE, PHYSICAL + page * PAGE)
    vmlinux = fakes.kernel(
        {"init_task": DATA, "modules": DATA + 0x800, "init_pid_ns": DATA + 0x900}, types or TYPES
    )
    return Structures(fakes.guest(memory, vmlinux))


def put(memory: FakeMemory, va: int, value: int) -> None:
    memory.word(PHYSICAL + va - DATA, value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"sshd", "sshd"),
        (b"a\x1b[2J", "a\\x1b[2J"),
        (b"back\\slash", "back\\x5cslash"),
        (b"\xff" * 300, "\\xff" * 32),
    ],
)
def test_names_are_printable_and_bounded(data: bytes, text: str) -> None:
    assert printable(data) == text


def test_a_task_says_who_it_is() -> None:
    memory = FakeMemory(1 << 20)
    found = structures(memory)
    mm, cred, file, leaf, root, name = (DATA + at for at in (0x100, 0x180, 0x200, 0x280, 0x300, 0x380))
    for at, value in (
        (DATA, DATA + 0x1000),
        (DATA + 0x1000, DATA),
        (DATA + 0x1010, mm),
        (DATA + 0x1018, cred),
        (mm, file),
        (mm + 8, 0x5000),
        (file, leaf),
        (leaf, root),
        (leaf + 16, name),
        (root, root),
    ):
        put(memory, at, value)
    put(memory, cred, 1000 << 32)
    put(memory, DATA + 0x1000 + 48, 4711)
    memory.put(PHYSICAL + 0x1000 + 32, b"evil\x1b")
    memory.put(PHYSICAL + 0x380, b"busybox")
    assert found.tasks() == [DATA, DATA + 0x1000]
    task = found.task(DATA + 0x1000)
    assert (task.pid, task.name, task.uid, task.executable) == (4711, "evil\\x1b", 1000, "/busybox")
    assert found.top_table(DATA + 0x1000) == 0x5000
    assert found.top_table(DATA) is None


def test_a_path_that_loops_is_cut() -> None:
    memory = FakeMemory(1 << 20)
    found = structures(memory)
    one, two, name = DATA + 0x100, DATA + 0x140, DATA + 0x380
    for at, value in ((DATA, one), (one, two), (two, one), (one + 16, name), (two + 16, name)):
        put(memory, at, value)
    memory.put(PHYSICAL + 0x380, b"x" * PAGE)
    path = found.path(DATA)
    assert path.startswith(".../x")
    assert len(path) <= PATH_BYTES


def test_module_memory_by_either_layout() -> None:
    memory = FakeMemory(1 << 20)
    older = structures(memory)
    memory.put(PHYSICAL + 24, b"loop\0")
    put(memory, DATA + 128, 0xFFFFFFFFC0000000)
    memory.put(PHYSICAL + 136, b"".join(n.to_bytes(4, "little") for n in (0x5000, 0x1000, 0x3000, 0x3000)))
    module = older.module(DATA)
    assert module.name == "loop"
    assert [(extent.kind, extent.base & 0xFFFF, extent.size) for extent in module.extents] == [
        ("text", 0, 0x1000),
        ("rodata", 0x1000, 0x2000),
        ("data", 0x3000, 0x2000),
    ]
    newer = structures(FakeMemory(1 << 20), NEWER)
    assert [extent.kind for extent in newer.module(DATA).extents][:3] == ["text", "data", "rodata"]
    assert newer.module(DATA).extent("text") is None


def test_a_module_of_endless_sections_is_a_fault() -> None:
    memory = FakeMemory(1 << 20)
    found = structures(memory)
    put(memory, DATA + 256, DATA + 0x400)
    put(memory, DATA + 0x400, 1 << 31)
    with pytest.raises(GuestFault, match="sections"):
        found.module_sections(DATA)


def test_lists_that_lead_nowhere_are_faults() -> None:
    memory = FakeMemory(1 << 20)
    found = structures(memory)
    for walk in (found.tasks, found.module_list):
        with pytest.raises(GuestFault):
            walk()


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=64, max_size=1024))
def test_random_structures_give_bounded_facts_or_faults(content: bytes) -> None:
    memory = FakeMemory(1 << 20)
    found = structures(memory)
    memory.put(PHYSICAL, (content * 600)[: 8 * PAGE])
    for walk in (found.tasks, found.leaders, found.module_list, lambda: [found.task(DATA)]):
        with suppress(GuestFault):
            assert len(list(walk())) <= 1 << 17
    module = found.module(DATA)
    assert module.name.isascii()
    assert module.name.isprintable()
    assert len(module.extents) <= 8


FAMILY = {
    ("task_struct", "children"): 0,
    ("task_struct", "sibling"): 16,
    ("task_struct", "signal"): 32,
    ("task_struct", "thread_node"): 40,
    ("task_struct", "group_leader"): 56,
    ("signal_struct", "thread_head"): 0,
}


def family(memory: FakeMemory, parents: dict[int, int]) -> Structures:
    """Tasks by number, number 0 the first, each of one thread; ``parents`` names the parent of each other."""
    made = structures(memory, FAMILY)
    children: dict[int, list[int]] = {0: [], **{number: [] for number in parents}}
    for number, parent in parents.items():
        children[parent].append(DATA + 256 * number)
    for number, theirs in children.items():
        task = DATA + 256 * number
        signal = task + 128
        for at, value in ((32, signal), (40, signal), (48, signal), (56, task), (128, task + 40)):
            put(memory, task + at, value)
        ring = [task, *(child + 16 for child in theirs)]
        for here, after in zip(ring, [*ring[1:], task], strict=True):
            put(memory, here, after)
    return made


def test_relatives_are_found_at_any_depth() -> None:
    memory = FakeMemory(1 << 20)
    made = family(memory, {1: 0, 2: 0, 3: 2, 4: 3})
    assert made.relatives() == {DATA + 256 * number for number in range(5)}


def test_a_family_that_is_its_own_ancestor_ends() -> None:
    memory = FakeMemory(1 << 20)
    made = family(memory, {1: 0, 2: 1})
    put(memory, DATA + 512 + 56, DATA + 256)
    assert made.relatives() == {DATA, DATA + 256}


@pytest.mark.parametrize("ring", [0, 40, 128], ids=["children", "thread", "threads"])
def test_a_family_without_end_is_a_fault(ring: int) -> None:
    memory = FakeMemory(1 << 20)
    made = family(memory, {1: 0})
    start = DATA + 256 + ring
    put(memory, start, DATA + 0x4000)
    put(memory, DATA + 0x4000, DATA + 0x4000)
    with pytest.raises(GuestFault):
        made.relatives()
