# SPDX-License-Identifier: Apache-2.0
"""The files in a distribution package (.deb or .rpm), in the order in which the package keeps them.

Neither format is installed or executed, no script of a package is run, and nothing is written. The format is
told from the first bytes. Who built a package is not checked here: an operator who imports it vouches for it.

Source: deb(5), the RPM V4 package format, cpio(5) "newc".
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from nova_vmi_attest.references.streams import Forward, PackageError, Slice, unpacked

MAX_FILE = 256 << 20

_MAX_UNPACKED = 4 << 30
_MAX_ENTRIES = 200_000
_MAX_CONTROL = 1 << 20
_MAX_PATH = 4096
_MAX_RPM_HEADER = 64 << 20
_REGULAR, _TYPE_MASK = 0o100000, 0o170000
_NAME, _VERSION, _RELEASE = 1000, 1001, 1002
_RPM_STRING = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file: its path without a leading "/"; ``read`` works until the next entry is taken."""

    path: str
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Archive:
    """A package. ``entries`` starts over each time it is called; it raises PackageError."""

    name: str
    version: str
    entries: Callable[[], Iterator[Entry]]


def open_archive(file: BinaryIO, size: int) -> Archive:
    """The package in the seekable ``file`` of ``size`` bytes. Raises PackageError."""
    magic = _bytes_at(file, 0, 8)
    if magic == b"!<arch>\n":
        return _deb(file, size)
    if magic.startswith(b"\xed\xab\xee\xdb"):
        return _rpm(file, size)
    raise PackageError("the file is neither a .deb nor an .rpm package")


def _bytes_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


# -- Debian: an ar archive of two tar archives ---------------------------------------------------------------


def _deb(file: BinaryIO, size: int) -> Archive:
    members = _ar_members(file, size)
    control, data = _only(members, "control.tar"), _only(members, "data.tar")
    fields: dict[str, str] = {}
    for entry in _tar_entries(_open_member(file, control, _MAX_CONTROL)):
        if entry.path == "control":
            fields = _control_fields(entry.read())
    if not fields.get("Package") or not fields.get("Version"):
        raise PackageError("the package does not say its name and version")
    return Archive(
        fields["Package"],
        fields["Version"],
        lambda: _tar_entries(_open_member(file, data, _MAX_UNPACKED)),
    )


def _ar_members(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where each member is: name -> (offset, size)."""
    members: dict[str, tuple[int, int]] = {}
    at = 8
    while at + 60 <= size and len(members) < 16:
        header = _bytes_at(file, at, 60)
        digits = header[48:58].rstrip(b" ")
        if header[58:] != b"`\n" or not digits.isdigit():
            raise PackageError("the package is not a well-formed ar archive")
        start, length = at + 60, int(digits)
        if start + length > size:
            raise PackageError("the package is cut off")
        members[header[:16].rstrip(b" ").rstrip(b"/").decode("ascii", "replace")] = start, length
        at = start + length + (length & 1)
    return members


def _only(members: dict[str, tuple[int, int]], prefix: str) -> tuple[int, int]:
    found = [place for name, place in members.items() if name == prefix or name.startswith(prefix + ".")]
    if len(found) != 1:
        raise PackageError(f"the package has {len(found)} members {prefix}")
    return found[0]


def _open_member(file: BinaryIO, place: tuple[int, int], limit: int) -> Forward:
    start, size = place
    return unpacked(
        Slice(file, start, size), _bytes_at(file, start, min(size, 6)), limit, min(limit, MAX_FILE)
    )


def _tar_entries(stream: Forward) -> Iterator[Entry]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]  # reads, seeks forward
            for count, member in enumerate(tar):
                if count >= _MAX_ENTRIES:
                    raise PackageError(f"the package has more than {_MAX_ENTRIES} files")
                # tarfile would otherwise remember every member.
                tar.members.clear()
                if member.isreg() and not member.issparse():
                    yield Entry(_path(member.name), member.size, _tar_reader(stream, member))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise PackageError(f"the package holds a malformed tar archive: {error}") from error


def _tar_reader(stream: Forward, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        stream.seek(member.offset_data)
        return _whole(stream, member.size)

    return read


def _whole(stream: Forward, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise PackageError("the package is cut off")
    return data


def _path(name: str) -> str:
    return name.removeprefix(".").lstrip("/")


def _control_fields(data: bytes) -> dict[str, str]:
    """The single-line fields of a control file."""
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, separator, value = line.partition(":")
        if separator and not line.startswith((" ", "\t")):
            fields.setdefault(name, value.strip())
    return fields


# -- RPM: two headers and a compressed cpio archive ----------------------------------------------------------


def _rpm(file: BinaryIO, size: int) -> Archive:
    signature_end = _rpm_header(file, 96, size)[1]
    fields, payload = _rpm_header(file, signature_end + 7 & ~7, size)
    name, version, release = (fields.get(tag, "") for tag in (_NAME, _VERSION, _RELEASE))
    if not name or not version:
        raise PackageError("the package does not say its name and version")
    place = payload, size - payload
    return Archive(
        name,
        f"{version}-{release}" if release else version,
        lambda: _cpio_entries(_open_member(file, place, _MAX_UNPACKED)),
    )


def _rpm_header(file: BinaryIO, at: int, size: int) -> tuple[dict[int, str], int]:
    """(the strings of a header by tag, the offset behind it)."""
    start = _bytes_at(file, at, 16)
    if len(start) < 16 or start[:4] != b"\x8e\xad\xe8\x01":
        raise PackageError("the package is not a well-formed RPM")
    count, data_size = struct.unpack(">II", start[8:])
    end = at + 16 + 16 * count + data_size
    if 16 * count + data_size > _MAX_RPM_HEADER or end > size:
        raise PackageError("the header of the package is larger than is accepted")
    index, data = _bytes_at(file, at + 16, 16 * count), _bytes_at(file, at + 16 + 16 * count, data_size)
    fields: dict[int, str] = {}
    for tag, kind, offset, _ in struct.iter_unpack(">IIII", index):
        if kind == _RPM_STRING and tag in (_NAME, _VERSION, _RELEASE):
            fields[tag] = data[offset : offset + 256].partition(b"\0")[0].decode("utf-8", "replace")
    return fields, end


def _cpio_entries(stream: Forward) -> Iterator[Entry]:
    for _ in range(_MAX_ENTRIES):
        start = stream.tell()
        header = _whole(stream, 110)
        if header[:6] not in (b"070701", b"070702"):
            raise PackageError("the package holds a cpio archive of a kind that is not read")
        try:
            numbers = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        except ValueError as error:
            raise PackageError("the package holds a malformed cpio archive") from error
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        if not 0 < name_size <= _MAX_PATH:
            raise PackageError("the package holds a malformed cpio archive")
        name = _whole(stream, name_size)[:-1].decode("utf-8", "replace")
        if name == "TRAILER!!!":
            return
        contents = start + (110 + name_size + 3 & ~3)
        if mode & _TYPE_MASK == _REGULAR:
            yield Entry(_path(name), size, _cpio_reader(stream, contents, size))
        stream.seek(contents + (size + 3 & ~3))
    raise PackageError(f"the package has more than {_MAX_ENTRIES} files")


def _cpio_reader(stream: Forward, at: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        stream.seek(at)
        return _whole(stream, size)

    return read
