# SPDX-License-Identifier: Apache-2.0
"""The kernel's own lists: tasks, process ids, modules in three views, paths.

The only place that knows how these structures are laid out. Offsets come from the reference kernel's BTF;
where generations differ the alternative is chosen by what its BTF has, never by a version number. Every
walk is bounded, and whatever does not make sense is a :class:`~.guest.GuestFault`.

Sources: include/linux/{sched,pid,module,kobject}.h, kernel/module/tree_lookup.c, fs/d_path.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nova_vmi_attest.introspection.guest import WORD, Guest, GuestFault

TASK_LIMIT = 1 << 16
MODULE_LIMIT = 1024
CPU_LIMIT = 4096
THREAD_LIMIT = 1 << 17
KOBJECT_LIMIT = 8192
SECTION_LIMIT = 1024
MODULE_NAME = 56
PATH_DEPTH = 32
PATH_BYTES = 256
NAME_BYTES = 64
MODULE_LIVE = 0  # enum module_state
# enum mod_mem_type of kernels that have module.mem[]
MEMORY_KINDS = ("text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata")


def printable(data: bytes, limit: int = 128) -> str:
    """Bytes of a guest as bounded ASCII: whatever is not printable becomes an escape."""
    text = "".join(chr(c) if 32 <= c < 127 and c != 0x5C else f"\\x{c:02x}" for c in data[:limit])
    return text[:limit]


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a module's memory: its kind as in :data:`MEMORY_KINDS`, running address and size in bytes."""

    kind: str
    base: int
    size: int

    def holds(self, address: int) -> bool:
        """Whether an address lies in it."""
        return self.base <= address < self.base + self.size


@dataclass(frozen=True, slots=True)
class LiveModule:
    """A ``struct module`` of the guest: everything in it is the guest's claim."""

    name: str
    address: int
    state: int
    extents: tuple[Extent, ...]

    def extent(self, kind: str) -> Extent | None:
        """The extent of a kind, None when it has none."""
        return next((one for one in self.extents if one.kind == kind and one.size), None)


@dataclass(frozen=True, slots=True)
class Task:
    """What a ``task_struct`` says of itself."""

    pid: int
    name: str
    uid: int
    executable: str


class Structures:
    """Reads of one guest's structures."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def offset(self, structure: str, path: str) -> int:
        """Byte offset of a member; BtfError when the reference kernel has none."""
        return self.guest.offset(structure, path)

    # -- tasks

    def tasks(self) -> list[int]:
        """Addresses of the thread group leaders on the task list, the idle task first."""
        first = self.guest.symbol("init_task")
        member = self.offset("task_struct", "tasks")
        return [first, *self.guest.list_entries(first + member, member, TASK_LIMIT)]

    def leaders(self) -> set[int]:
        """Addresses of the thread group leaders that the initial pid namespace names."""
        guest, offset = self.guest, self.offset
        head = guest.symbol("init_pid_ns") + offset("pid_namespace", "idr") + offset("idr", "idr_rt")
        entries = guest.xarray(guest.u64(head + offset("xarray", "xa_head")), 2 * TASK_LIMIT)
        links, heads = offset("task_struct", "pid_links"), offset("pid", "tasks")
        found = set()
        for entry in entries.values():
            if entry & 3:
                continue  # a reserved number, or a process that is being made
            # hlist heads by enum pid_type: PIDTYPE_PID is 0, PIDTYPE_TGID is 1.
            first, leader = struct.unpack("<QQ", guest.read(entry + heads, 16))
            if first and leader:
                found.add((first - links) & WORD)
        return found

    def online_cpus(self) -> Iterator[tuple[int, int]]:
        """(number, address of the per-CPU area) of each online CPU."""
        guest = self.guest
        possible = guest.u32(guest.symbol("nr_cpu_ids"))
        if not 0 < possible <= CPU_LIMIT:
            raise GuestFault(guest.symbol("nr_cpu_ids"), f"{possible} possible CPUs")
        mask = int.from_bytes(guest.read(guest.symbol("__cpu_online_mask"), -(-possible // 64) * 8), "little")
        for cpu in range(possible):
            if mask >> cpu & 1:
                yield cpu, guest.u64(guest.symbol("__per_cpu_offset") + 8 * cpu)

    def relatives(self) -> set[int]:
        """Addresses of the thread group leaders that the tree of parents and children names.

        A child hangs below the thread that made it, so the threads of every process are asked.
        """
        guest, offset = self.guest, self.offset
        children, sibling = offset("task_struct", "children"), offset("task_struct", "sibling")
        signal, node = offset("task_struct", "signal"), offset("task_struct", "thread_node")
        head, group = offset("signal_struct", "thread_head"), offset("task_struct", "group_leader")
        waiting, found, left = [guest.symbol("init_task")], set[int](), THREAD_LIMIT
        while waiting:
            leader = waiting.pop()
            if leader in found:
                continue
            found.add(leader)
            for thread in guest.list_entries((guest.u64(leader + signal) + head) & WORD, node, left):
                left -= 1
                for child in guest.list_entries((thread + children) & WORD, sibling, left):
                    left -= 1
                    waiting.append(guest.u64(child + group))
                if left <= 0:
                    raise GuestFault(thread, f"more than {THREAD_LIMIT} threads and children")
        return found

    def runnable(self) -> set[int]:
        """Addresses of the thread group leaders whose threads run, or wait for a CPU in the fair class.

        The tasks that idle on a CPU are left out: those of all but the first are on no list.
        """
        guest, offset = self.guest, self.offset
        queue, group = guest.symbol("runqueues"), offset("task_struct", "group_leader")
        node = offset("task_struct", "se.group_node")
        found, left = set[int](), THREAD_LIMIT
        for _, area in self.online_cpus():
            start = (area + queue) & WORD
            threads = {guest.u64(start + offset("rq", "curr"))}
            threads.update(guest.list_entries((start + offset("rq", "cfs_tasks")) & WORD, node, left))
            left -= len(threads)
            threads.discard(guest.u64(start + offset("rq", "idle")))
            found.update(guest.u64(thread + group) for thread in threads)
        return found

    def born(self, task: int) -> int:
        """When a task was made, in nanoseconds since boot: tells it from a later one in the same place."""
        return self.guest.u64(task + self.offset("task_struct", "start_time"))

    def task(self, address: int) -> Task:
        """What a task says of itself, bounded and printable."""
        guest, offset = self.guest, self.offset
        memory = guest.u64(address + offset("task_struct", "mm"))
        credentials = guest.u64(address + offset("task_struct", "cred"))
        executable = ""
        if memory:
            file = guest.u64(memory + offset("mm_struct", "exe_file"))
            executable = self.path(file) if file else ""
        name = guest.read(address + offset("task_struct", "comm"), 16).split(b"\0")[0]
        pid = guest.s32(address + offset("task_struct", "pid"))
        uid = guest.u32(credentials + offset("cred", "uid"))
        return Task(pid, printable(name, NAME_BYTES), uid, executable)

    def top_table(self, address: int) -> int | None:
        """Guest-virtual address of a task's top-level page table; None for a kernel thread."""
        memory = self.guest.u64(address + self.offset("task_struct", "mm"))
        return self.guest.u64(memory + self.offset("mm_struct", "pgd")) if memory else None

    def path(self, file: int) -> str:
        """Path of a ``struct file`` within its mount: up to 32 components and 256 characters."""
        guest, offset = self.guest, self.offset
        parent_at, name_at = offset("dentry", "d_parent"), offset("dentry", "d_name") + offset("qstr", "name")
        dentry = guest.u64(file + offset("file", "f_path.dentry"))
        parts: list[bytes] = []
        for _ in range(PATH_DEPTH):
            parent = guest.u64(dentry + parent_at)
            if parent == dentry:
                return printable(b"/" + b"/".join(reversed(parts)), PATH_BYTES)
            parts.append(guest.cstr(guest.u64(dentry + name_at), NAME_BYTES))
            dentry = parent
        return printable(b".../" + b"/".join(reversed(parts)), PATH_BYTES)

    # -- modules

    def module_list(self) -> list[int]:
        """First view: addresses of ``struct module`` on the ``modules`` list."""
        member = self.offset("module", "list")
        return list(self.guest.list_entries(self.guest.symbol("modules"), member, MODULE_LIMIT))

    def module_tree(self) -> set[int] | None:
        """Second view: the trees by which the kernel finds the module of an address, both latch copies.

        None when the build has no such tree.
        """
        guest, offset = self.guest, self.offset
        if not guest.has_symbol("mod_tree"):
            return None
        roots = guest.symbol("mod_tree") + offset("mod_tree_root", "root") + offset("latch_tree_root", "tree")
        node_at, module_at = offset("mod_tree_node", "node"), offset("mod_tree_node", "mod")
        rb_node = guest.vmlinux.btf.size("rb_node")
        found = set()
        for latch in (0, 1):
            root = guest.u64(roots + 8 * latch)
            for node in guest.rbtree(root, 4 * MODULE_LIMIT):
                found.add(guest.u64((node - latch * rb_node - node_at + module_at) & WORD))
        return found

    def module_objects(self) -> set[int]:
        """Third view: the modules behind /sys/module; what is built in has no ``struct module``."""
        guest, offset = self.guest, self.offset
        head = (guest.u64(guest.symbol("module_kset")) + offset("kset", "list")) & WORD
        member = offset("module_kobject", "kobj") + offset("kobject", "entry")
        module_at = offset("module_kobject", "mod")
        entries = guest.list_entries(head, member, KOBJECT_LIMIT)
        return {module for entry in entries if (module := guest.u64(entry + module_at))}

    def module(self, address: int) -> LiveModule:
        """One module as its ``struct module`` describes it."""
        guest = self.guest
        name = guest.cstr(address + self.offset("module", "name"), MODULE_NAME)
        state = guest.u32(address + self.offset("module", "state"))
        return LiveModule(printable(name, MODULE_NAME), address, state, tuple(self._extents(address)))

    def _extents(self, module: int) -> Iterator[Extent]:
        guest, offset = self.guest, self.offset
        if guest.vmlinux.btf.has("module", "mem"):
            step = guest.vmlinux.btf.size("module_memory")
            for index, kind in enumerate(MEMORY_KINDS):
                at = module + offset("module", "mem") + index * step
                base = guest.u64(at + offset("module_memory", "base"))
                yield Extent(kind, base, guest.u32(at + offset("module_memory", "size")))
            return
        for prefix, layout in (("", "core_layout"), ("init_", "init_layout")):
            at = module + offset("module", layout)
            base = guest.u64(at + offset("module_layout", "base"))
            # Each size counts from the base: text, then read-only, then read-only after init, then data.
            start = 0
            for kind, size in (
                ("text", "text_size"),
                ("rodata", "ro_size"),
                ("ro_after_init", "ro_after_init_size"),
                ("data", "size"),
            ):
                end = guest.u32(at + offset("module_layout", size))
                if end > start:
                    yield Extent(prefix + kind, (base + start) & WORD, end - start)
                    start = end

    def module_sections(self, module: int) -> Mapping[str, int]:
        """Section name to running address, as the module's sysfs attributes keep them."""
        guest, offset = self.guest, self.offset
        table = guest.u64(module + offset("module", "sect_attrs"))
        count = guest.u32(table + offset("module_sect_attrs", "nsections"))
        if count > SECTION_LIMIT:
            raise GuestFault(table, f"a module of {count} sections")
        step = guest.vmlinux.btf.size("module_sect_attr")
        at = table + offset("module_sect_attrs", "attrs")
        name_at = offset("module_sect_attr", "battr.attr.name")
        address_at = offset("module_sect_attr", "address")
        found: dict[str, int] = {}
        for entry in range(at, at + count * step, step):
            name = guest.cstr(guest.u64(entry + name_at), NAME_BYTES)
            found[printable(name, NAME_BYTES)] = guest.u64(entry + address_at)
        return found
