# SPDX-License-Identifier: Apache-2.0
"""Where the address space of a QEMU process holds the guest's RAM: exactly, or not at all.

From /proc/PID/maps (proc(5)). The kernel may split one mapping in several lines, and join neighbours in one;
what was joined cannot be told apart again, and is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nova_vmi_attest.introspection.memory.base import ReaderError
from nova_vmi_attest.introspection.memory.command_line import RamBackend

_MAPS_LINE = re.compile(
    r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) ([0-9a-f]{1,16}) "
    r"([0-9a-f]{1,8}):([0-9a-f]{1,8}) ([0-9]{1,20}) *(.*)"
)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps; neighbours that continue each other are joined. ``device`` is an
    ``st_dev``.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class RamMapping:
    """A backend at ``address`` of the QEMU process. ``device`` and ``inode`` are 0 unless a shared file holds
    it.
    """

    address: int
    size: int
    device: int
    inode: int
    path: str
    preallocated: bool


def parse_maps(text: str) -> tuple[Mapping, ...]:
    """Parse /proc/PID/maps, joining neighbours that are one mapping which the kernel split."""
    joined: list[Mapping] = []
    for line in text.splitlines():
        found = _MAPS_LINE.fullmatch(line)
        if not found:
            raise ReaderError("a line of the process's mappings is malformed")
        start, end, offset, major, minor = (int(found[group], 16) for group in (1, 2, 4, 5, 6))
        part = Mapping(start, end, found[3], offset, os.makedev(major, minor), int(found[7]), found[8])
        if joined and _continues(joined[-1], part):
            last = joined.pop()
            part = Mapping(last.start, end, last.permissions, last.offset, last.device, last.inode, last.path)
        joined.append(part)
    return tuple(joined)


def _continues(last: Mapping, part: Mapping) -> bool:
    """Whether two mappings are pieces of one. Of anonymous memory this cannot be told."""
    return (
        last.end == part.start
        and last.inode != 0
        and (last.permissions, last.device, last.inode, last.path)
        == (part.permissions, part.device, part.inode, part.path)
        and last.offset + last.end - last.start == part.offset
    )


def find_ram(
    backends: Sequence[RamBackend],
    mappings: Sequence[Mapping],
    identify: Callable[[str], tuple[int, int] | None] = lambda path: None,
) -> tuple[RamMapping, ...]:
    """The mapping of each backend: of exactly its size, and the only one that it can be.

    :param identify: (``st_dev``, ``st_ino``) of a path of QEMU's, None when nothing is there any more. What
        /proc shows as a mapping's path depends on who looks (containers), its device and inode do not.
    :raises ReaderError: none or several fit, e.g. anonymous cells of the same size, or a mapping that the
        kernel merged with a neighbour.
    """
    found = []
    for backend in backends:
        identity = identify(backend.path) if backend.kind == "file" else None
        fitting = [mapping for mapping in mappings if _fits(backend, mapping, identity)]
        if backend.kind == "ram":
            fitting += _anonymous(backend.size, mappings)
        if len(fitting) != 1:
            raise ReaderError(
                f"{len(fitting)} mappings of QEMU could be its {backend.kind} RAM of {backend.size} bytes",
                "use file-backed memory (memoryBacking source type file, access mode shared)",
            )
        shared = fitting[0].permissions[3] == "s"
        found.append(
            RamMapping(
                address=fitting[0].start,
                size=backend.size,
                device=fitting[0].device if shared else 0,
                inode=fitting[0].inode if shared else 0,
                path=fitting[0].path,
                preallocated=backend.preallocated,
            )
        )
    if len({mapping.address for mapping in found}) != len(found):
        raise ReaderError("two RAM backends of the QEMU process cannot be told apart")
    return tuple(found)


def _fits(backend: RamBackend, mapping: Mapping, identity: tuple[int, int] | None) -> bool:
    if mapping.end - mapping.start != backend.size or not mapping.permissions.startswith("rw-"):
        return False
    path = mapping.path.removesuffix(" (deleted)")
    if not mapping.inode or mapping.offset:
        return False
    if identity == (mapping.device, mapping.inode):
        return True
    if backend.kind == "file":  # a directory stands for a file that QEMU makes in it and deletes at once
        return path == backend.path or path.startswith(f"{backend.path.rstrip('/')}/qemu_back_mem.")
    if backend.kind == "memfd":
        return path.startswith("/memfd:")
    return path == "/dev/zero" or path.startswith("/memfd:")


def _anonymous(size: int, mappings: Sequence[Mapping]) -> list[Mapping]:
    """Anonymous memory that ends as QEMU's RAM does, with an inaccessible page to guard it.

    The guard (``qemu_ram_mmap()`` in util/mmap-alloc.c) says where the RAM ends, and ``size`` where it
    begins; there must be an edge there, and nothing but anonymous memory in one or more pieces in between.
    """
    found = []
    for index in range(1, len(mappings)):
        guard, start = mappings[index], mappings[index].start - size
        if guard.permissions != "---p" or guard.inode:
            continue
        position, first = guard.start, index
        while position > start and first > 0 and _is_private(mappings[first - 1], position):
            first -= 1
            position = mappings[first].start
        if position == start:
            found.append(Mapping(start, guard.start, "rw-p", 0, 0, 0, ""))
    return found


def _is_private(mapping: Mapping, end: int) -> bool:
    return (mapping.end, mapping.permissions, mapping.inode, mapping.path) == (end, "rw-p", 0, "")
