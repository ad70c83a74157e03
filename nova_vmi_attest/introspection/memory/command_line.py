# SPDX-License-Identifier: Apache-2.0
"""What QEMU's command line says of the guest's RAM: its backends, and what would move or protect it.

Options are ``-machine``, ``-object``, ``-numa`` and ``-m`` in both of QEMU's syntaxes (qemu(1), and
qapi/qom.json for the memory backends). Whatever is not understood is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nova_vmi_attest.introspection.memory.base import ReaderError

_SIZE = re.compile(r"([0-9]{1,20})([bkmgt]?)b?", re.IGNORECASE)
_SCALE = {"b": 1, "": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MEMORY_DEVICES = ("pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem")


@dataclass(frozen=True, slots=True)
class RamBackend:
    """What QEMU was told to use as RAM: ``kind`` is ram, file or memfd."""

    kind: str
    size: int
    path: str = ""
    preallocated: bool = False


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with the argument after it, which is its value if it takes one.

    The guest's kernel command line comes from tenants: it is never taken for an option.
    """
    value_of_append = False
    for option, value in itertools.pairwise(arguments):
        if not value_of_append and option.startswith("-"):
            option = "-" + option.lstrip("-")
            value_of_append = option == "-append"
            yield option, value
        else:
            value_of_append = False


def ram_backends(arguments: Sequence[str], size: int) -> tuple[RamBackend, ...]:
    """The backends that make up ``size`` bytes of RAM, in order, from QEMU's command line.

    :raises ReaderError: the command line and ``size`` contradict each other, or it cannot be understood.
    """
    objects: dict[str, RamBackend] = {}
    cells: dict[int, str] = {}
    whole = ""
    stated = 0
    for option, value in options(arguments):
        if option == "-object" and "memory-backend-" in value:
            name, backend = _backend(_fields(value, "qom-type"))
            objects[name] = backend
        elif option in ("-machine", "-M"):
            whole = _fields(value, "type").get("memory-backend", whole)
        elif option == "-numa":
            fields = _fields(value, "type")
            if "memdev" in fields:
                cells[_number(fields.get("nodeid", str(len(cells))))] = fields["memdev"]
        elif option == "-m":
            fields = _fields(value, "size")
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


def _fields(value: str, first: str) -> dict[str, str]:
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
    parsed: dict[str, str] = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if index == 0 and not equals:
            key, text = first, key
        parsed[key] = text
    return parsed


def _number(text: str, default: str = "") -> int:
    found = _SIZE.fullmatch(text)
    if not found:
        raise ReaderError(f"{text[:32]!r} in an argument of QEMU is not a size")
    return int(found[1]) * _SCALE[found[2].lower() or default]


def layout_override(arguments: Sequence[str]) -> str:
    """Which of QEMU's ``arguments`` moves RAM away from where the machine type puts it, or nothing.

    :raises ReaderError: they cannot be understood.
    """
    for option, value in options(arguments):
        if option in ("-machine", "-M") and "max-ram-below-4g" in _fields(value, "type"):
            return "QEMU was started with max-ram-below-4g"
        if option == "-device" and _fields(value, "driver").get("driver", "").startswith(_MEMORY_DEVICES):
            return "QEMU was started with a memory device"
        if option in ("-readconfig", "-set"):
            return f"QEMU was started with {option}"
    return ""


def protection(arguments: Sequence[str]) -> str:
    """The option by which ``arguments`` protect the guest's memory from its host, or nothing.

    :raises ReaderError: they cannot be understood.
    """
    for option, value in options(arguments):
        if option in ("-machine", "-M"):
            for name in ("confidential-guest-support", "memory-encryption"):
                if name in _fields(value, "type"):
                    return name
    return ""
