# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a domain, and where its address space holds the guest's RAM.

Everything comes from /proc (proc(5)) and is what the kernel of this host says, except the command line, which
the process could rewrite: QEMU itself is trusted as far as the host is. Other processes are not, so a process
counts only if its executable is QEMU, and two that claim the same domain are refused.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nova_vmi_attest.introspection.memory.base import GuestGone, ReaderError, UnsupportedLayout
from nova_vmi_attest.introspection.memory.domain import DomainMemory, layout_override

MAX_COMMAND_LINE = 4 << 20
MAX_MAPS = 64 << 20

_EXECUTABLE = re.compile(r"(qemu-system-[a-z0-9_]+|qemu-kvm)( \(deleted\))?")
_MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_SIZE = re.compile(r"(\d{1,20})([bkmgt]?)b?", re.IGNORECASE)
_SCALE = {"b": 1, "": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class QemuProcess:
    """A running QEMU, held by a pidfd: whatever becomes of its number, it is never mistaken for another
    process.
    """

    def __init__(self, pid: int) -> None:
        """:raises GuestGone: there is no such process.  :raises ReaderError: it is not QEMU."""
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise GuestGone(f"QEMU process {pid} does not exist") from error
        try:
            if not _is_qemu(pid):
                raise ReaderError(f"process {pid} is not QEMU")
            self.arguments = _arguments(pid)
            self.check()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, domain: DomainMemory) -> QemuProcess:
        """The process that runs ``domain``: ``domain.pid`` if it is set, else the one started with its uuid
        and name.

        :raises GuestGone: none does.
        :raises ReaderError: several claim to.
        """
        if domain.pid is not None:
            return cls(domain.pid)
        found = [pid for pid in _pids() if _claims(pid, domain.uuid, domain.name)]
        if not found:
            raise GuestGone(f"guest {domain.uuid} has no QEMU process")
        if len(found) > 1:
            raise ReaderError(f"guest {domain.uuid} is claimed by several processes: {found[:8]}")
        return cls(found[0])

    def check(self) -> None:
        """:raises GuestGone: the process has ended."""
        poll = select.poll()
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        if self._pidfd < 0 or poll.poll(0):
            raise GuestGone(f"QEMU process {self.pid} has ended")

    def mappings(self) -> tuple[Mapping, ...]:
        """Its memory mappings in ascending order.

        :raises GuestGone: the process has ended.
        """
        try:
            with open(f"/proc/{self.pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                text = file.read(MAX_MAPS)
        except OSError as error:
            self.check()
            raise ReaderError(
                f"mappings of QEMU process {self.pid} cannot be read: {error.strerror}"
            ) from error
        self.check()
        return parse_maps(text)

    def ram(self, domain: DomainMemory) -> tuple[RamMapping, ...]:
        """Where the RAM of ``domain`` is, one mapping for each backend, in the order in which they make up
        its RAM.

        :raises ReaderError: it cannot be told exactly.  :raises GuestGone: the process has ended.
        """
        if override := layout_override(self.arguments):
            raise UnsupportedLayout(f"memory layout of guest {domain.uuid} is not known: {override}")
        backends = ram_backends(self.arguments, domain.size)
        return find_ram(backends, self.mappings())

    def close(self) -> None:
        """Let go of the process. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


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
class RamBackend:
    """What QEMU was told to use as RAM: ``kind`` is ram, file or memfd."""

    kind: str
    size: int
    path: str = ""
    preallocated: bool = False


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
    return (
        last.end == part.start
        and (last.permissions, last.device, last.inode, last.path)
        == (part.permissions, part.device, part.inode, part.path)
        and (last.inode == 0 or last.offset + last.end - last.start == part.offset)
    )


def find_ram(backends: Sequence[RamBackend], mappings: Sequence[Mapping]) -> tuple[RamMapping, ...]:
    """The mapping of each backend: of exactly its size, and the only one that it can be.

    :raises ReaderError: none or several fit, e.g. anonymous cells of the same size, or a mapping that the
        kernel merged with a neighbour.
    """
    found = []
    for backend in backends:
        fitting = [mapping for mapping in mappings if _fits(backend, mapping)]
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


def _fits(backend: RamBackend, mapping: Mapping) -> bool:
    if mapping.end - mapping.start != backend.size or not mapping.permissions.startswith("rw-"):
        return False
    path = mapping.path.removesuffix(" (deleted)")
    if mapping.offset and mapping.inode:
        return False
    if backend.kind == "file":  # a directory stands for a file that QEMU makes in it and deletes at once
        return path == backend.path or path.startswith(f"{backend.path.rstrip('/')}/qemu_back_mem.")
    if backend.kind == "memfd":
        return path.startswith("/memfd:")
    return path in ("", "/dev/zero") or path.startswith("/memfd:")


def ram_backends(arguments: Sequence[str], size: int) -> tuple[RamBackend, ...]:
    """The backends that make up ``size`` bytes of RAM, in order, from QEMU's command line.

    :raises ReaderError: the command line and ``size`` contradict each other, or it cannot be understood.
    """
    objects: dict[str, RamBackend] = {}
    cells: dict[int, str] = {}
    whole = ""
    stated = 0
    for option, value in itertools.pairwise(arguments):
        if option == "-object" and "memory-backend-" in value:
            name, backend = _backend(_options(value, "qom-type"))
            objects[name] = backend
        elif option in ("-machine", "-M"):
            whole = _options(value, "type").get("memory-backend", whole)
        elif option == "-numa":
            fields = _options(value, "type")
            if "memdev" in fields:
                cells[_number(fields.get("nodeid", str(len(cells))))] = fields["memdev"]
        elif option == "-m":
            fields = _options(value, "size")
            stated = _number(fields["size"], default="m") if "size" in fields else 0
        elif option == "-mem-path":
            raise ReaderError("QEMU was started with -mem-path, which does not name the file of its RAM")
    names = [cells[node] for node in sorted(cells)] or [whole] * bool(whole)
    if any(name not in objects for name in names):
        raise ReaderError("a RAM backend that QEMU's command line names is not on it")
    backends = tuple(objects[name] for name in names) or (RamBackend("ram", size),)
    if sum(backend.size for backend in backends) != size or stated not in (0, size):
        raise ReaderError(f"QEMU was not started with the {size} bytes of RAM that its domain states")
    return backends


def _backend(fields: dict[str, str]) -> tuple[str, RamBackend]:
    kind = fields.get("qom-type", "").removeprefix("memory-backend-")
    if kind not in ("ram", "file", "memfd") or fields.get("offset", "0") != "0":
        raise ReaderError(f"RAM backend {kind[:32]!r} of QEMU cannot be read")
    backend = RamBackend(
        kind=kind,
        size=_number(fields.get("size", "")),
        path=fields.get("mem-path", ""),
        preallocated=fields.get("prealloc", "off") in ("on", "yes", "true"),
    )
    return fields.get("id", ""), backend


def _options(value: str, first: str) -> dict[str, str]:
    """QEMU's option syntax: JSON, or ``first,key=value,...`` with doubled commas standing for one."""
    if value.startswith("{"):
        try:
            fields = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ReaderError("an argument of QEMU is not valid JSON") from error
        return {
            key: str(item).lower() if isinstance(item, bool) else str(item)
            for key, item in fields.items()
            if isinstance(item, str | int)
        }
    options: dict[str, str] = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if index == 0 and not equals:
            key, text = first, key
        options[key] = text
    return options


def _number(text: str, default: str = "") -> int:
    found = _SIZE.fullmatch(text)
    if not found:
        raise ReaderError(f"{text[:32]!r} in an argument of QEMU is not a size")
    return int(found[1]) * _SCALE[found[2].lower() or default]


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isascii() and entry.isdigit())


def _claims(pid: int, identity: uuid.UUID, name: str) -> bool:
    arguments = _arguments(pid)
    guest = "guest=" + name.replace(",", ",,")
    named = {"-uuid": False, "-name": False}
    for option, value in itertools.pairwise(arguments):
        if option == "-uuid":
            named[option] = value.lower() == str(identity)
        elif option == "-name":
            named[option] = value == guest or value.startswith(guest + ",")
    return all(named.values()) and _is_qemu(pid)


def _arguments(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(MAX_COMMAND_LINE).decode("utf-8", "surrogateescape").split("\0")[:-1]
    except OSError:
        return []


def _is_qemu(pid: int) -> bool:
    try:
        return bool(_EXECUTABLE.fullmatch(os.path.basename(os.readlink(f"/proc/{pid}/exe"))))
    except OSError:
        return False
