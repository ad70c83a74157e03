# SPDX-License-Identifier: Apache-2.0
"""What a domain's live XML says about its memory.

The XML comes from libvirt on this host and is trusted for what it states, but names and metadata in it come
from tenants: size, depth and count are bounded and document type declarations are refused. Elements: "Memory
Allocation", "Memory Backing", "CPU model and topology" and "Launch Security" in libvirt's formatdomain.html.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    MemoryRange,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.command_line import layout_override
from nova_vmi_attest.introspection.memory.layout import guest_ranges, machine_family

MAX_XML = 4 << 20
MAX_ELEMENTS = 65536
MAX_DEPTH = 64
MAX_CELLS = 128
MAX_BYTES = 1 << 52
_GIB = 1 << 30

_UNITS = {
    "b": 1, "bytes": 1,
    "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10,
    "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30,
    "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip


class DomainError(ReaderError):
    """The domain XML cannot be understood."""


class Source(enum.StrEnum):
    """What libvirt gives QEMU as RAM."""

    ANONYMOUS = "anonymous"
    FILE = "file"
    MEMFD = "memfd"


@dataclass(frozen=True, slots=True)
class Backend:
    """The RAM of one NUMA cell, or of the whole domain when it has none. ``size`` is in bytes."""

    size: int
    source: Source
    shared: bool


@dataclass(frozen=True, slots=True)
class DomainMemory:
    """The memory of one domain, as its live XML states it.

    ``machine`` is the machine type as written, ``size`` the bytes of RAM at boot (a balloon changes what of
    it is in use, not where it lies), ``backends`` follow each other in it. ``encrypted`` names the
    protection, and ``obstacle`` says why the layout cannot be told; both are empty for a readable domain.
    ``pid`` and ``dump`` are no part of the XML: the caller may set them with :func:`dataclasses.replace` to
    name the QEMU process, or a dump to read instead.
    """

    uuid: uuid.UUID
    name: str
    machine: str
    size: int
    backends: tuple[Backend, ...]
    running: bool = True
    encrypted: str = ""
    obstacle: str = ""
    hotplug: int = 0
    pci_window: int | None = None
    pid: int | None = None
    dump: str = ""

    @property
    def shared_files(self) -> bool:
        """Whether all RAM is in files or memfds that QEMU shares, so that a reader can open them."""
        return all(backend.shared and backend.source is not Source.ANONYMOUS for backend in self.backends)

    def require_readable(self) -> None:
        """Whether its memory may be read at all, before any of it is.

        :raises GuestGone: it does not run.
        :raises EncryptedMemory: what would be read is ciphertext.
        :raises UnsupportedLayout: where its RAM lies is not known.
        """
        if not self.running and not self.dump:
            raise GuestGone(f"guest {self.uuid} does not run")
        if self.encrypted:
            raise EncryptedMemory(
                f"memory of guest {self.uuid} is protected from its host ({self.encrypted})"
            )
        if self.obstacle:
            raise UnsupportedLayout(f"memory layout of guest {self.uuid} is not known: {self.obstacle}")
        machine_family(self.machine)

    def ranges(self) -> tuple[MemoryRange, ...]:
        """Its RAM in guest-physical memory; offsets are into the backends laid end to end.

        :raises ReaderError: as :meth:`require_readable`, and as :func:`~.layout.guest_ranges`.
        """
        self.require_readable()
        return guest_ranges(
            machine_family(self.machine), self.size, hotplug=self.hotplug, pci_window=self.pci_window
        )


def parse_domain(xml: str) -> DomainMemory:
    """Read live domain XML (``virDomainGetXMLDesc`` without the inactive flag).

    :raises DomainError: it is malformed, too large, or has no readable memory size.
    """
    root = _tree(xml)
    if root.tag != "domain":
        raise DomainError("not a domain XML")
    name = root.findtext("name", "")
    try:
        identity = uuid.UUID(root.findtext("uuid", ""))
    except ValueError:
        raise DomainError(f"domain {name[:64]!r} has no valid uuid") from None
    kind = root.find("os/type")
    size = _bytes(root.find("memory"))
    if size <= 0:
        raise DomainError(f"domain {identity} has no memory size")
    security = root.find("launchSecurity")
    return DomainMemory(
        uuid=identity,
        name=name,
        machine=kind.get("machine", "") if kind is not None else "",
        size=size,
        backends=_backends(root, size),
        running=root.get("id") is not None,
        encrypted=(security.get("type") or "launchSecurity")[:32] if security is not None else "",
        obstacle=_obstacle(root, size),
        hotplug=_hotplug(root, size),
        pci_window=_pci_window(root),
    )


def _backends(root: Element, size: int) -> tuple[Backend, ...]:
    backing = root.find("memoryBacking")
    source, shared = Source.ANONYMOUS, False
    if backing is not None:
        access, stated = backing.find("access"), backing.find("source")
        shared = access is not None and access.get("mode") == "shared"
        if stated is not None:
            source = _source(stated.get("type", ""))
        elif access is not None or backing.find("hugepages") is not None:
            source = Source.FILE
    cells = root.findall("cpu/numa/cell")
    if not cells:
        return (Backend(size, source, shared),)
    if len(cells) > MAX_CELLS:
        raise DomainError(f"more than {MAX_CELLS} NUMA cells")
    backends = []
    for cell in sorted(cells, key=lambda cell: _integer(cell.get("id", "0"))):
        access_mode = cell.get("memAccess")
        backends.append(
            Backend(
                size=_scaled(cell.get("memory", "0"), cell.get("unit", "KiB")),
                source=Source.FILE if access_mode and source is Source.ANONYMOUS else source,
                shared=access_mode == "shared" if access_mode else shared,
            )
        )
    return tuple(backends)


def _source(text: str) -> Source:
    try:
        return Source(text)
    except ValueError:
        raise DomainError(f"unknown memory source {text[:32]!r}") from None


def _obstacle(root: Element, size: int) -> str:
    """Why the layout cannot be told from the machine type and the size, or nothing."""
    kind = root.find("os/type")
    if root.get("type") not in ("kvm", "qemu"):
        return f"domain type {root.get('type', '')[:32]!r} is not QEMU's"
    if kind is None or kind.get("arch") != "x86_64":
        return "the architecture is not x86_64"
    if root.find("devices/memory") is not None:
        return "it has memory devices"
    cells = [
        _scaled(cell.get("memory", "0"), cell.get("unit", "KiB")) for cell in root.findall("cpu/numa/cell")
    ]
    if cells and sum(cells) != size:
        return "its NUMA cells do not add up to its memory"
    arguments = [argument.get("value", "") for argument in root.iterfind("{*}commandline/{*}arg")]
    return layout_override(arguments)


def _hotplug(root: Element, size: int) -> int:
    """Address space kept for memory devices: a GiB more for each slot, as QEMU aligns them."""
    maximum = root.find("maxMemory")
    if maximum is None:
        return 0
    return max(0, _bytes(maximum) - size) + _integer(maximum.get("slots", "0")) * _GIB


def _pci_window(root: Element) -> int | None:
    window = root.find("devices/controller/pcihole64")
    return None if window is None else _bytes(window)


def _bytes(element: Element | None) -> int:
    return 0 if element is None else _scaled(element.text or "", element.get("unit", "KiB"))


def _scaled(text: str, unit: str) -> int:
    if unit not in _UNITS:
        raise DomainError(f"unknown unit {unit[:16]!r}")
    value = _integer(text) * _UNITS[unit]
    if value > MAX_BYTES:
        raise DomainError("a memory size in the domain XML is absurd")
    return value


def _integer(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise DomainError(f"{text[:32]!r} in the domain XML is not a number")
    return int(digits)


def _tree(xml: str) -> Element:
    """Parse without entities, within bounds; names of other namespaces come out as ``{uri}name``."""
    if len(xml) > MAX_XML:
        raise DomainError(f"domain XML of {len(xml)} characters is too large")
    builder = TreeBuilder()
    depth = count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS:
            raise DomainError("domain XML is nested too deeply or has too many elements")
        builder.start(qualified(tag), attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(qualified(tag))

    def qualified(tag: str) -> str:
        return "{" + tag if "}" in tag else tag

    def doctype(*_: object) -> None:
        raise DomainError("domain XML has a document type declaration")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, UnicodeError) as error:
        raise DomainError(f"domain XML is malformed: {error}") from error
    return builder.close()
