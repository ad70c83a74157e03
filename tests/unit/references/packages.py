# SPDX-License-Identifier: Apache-2.0
"""Small .deb and .rpm packages for tests, made by the rules of their formats."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Mapping, Sequence

import zstandard

from tests.unit.kernel import builders

RELEASE = builders.RELEASE
CONTROL = b"Package: linux-image-test\nVersion: 6.1-1\nDescription: a kernel\n Version: no\n"

COMPRESSIONS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "": bytes,
}


def kernel_files(
    release: str = RELEASE, modules: Sequence[str] = ("demo-mod", "other"), prefix: str = "./lib"
) -> dict[str, bytes]:
    """The files of a kernel package as Debian lays them out."""
    files = {f"./boot/vmlinuz-{release}": builders.boot_image(release)}
    for name in modules:
        files[f"{prefix}/modules/{release}/kernel/drivers/{name}.ko"] = builders.module(name, release)
    return files


def tar(files: Mapping[str, bytes], extra: Sequence[tarfile.TarInfo] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info in extra:
            archive.addfile(info)
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) & 1)
    return out


def deb(data_tar: bytes, compression: str = "xz", control: bytes = CONTROL) -> bytes:
    suffix = f".{compression}" if compression else ""
    pack = COMPRESSIONS[compression]
    return ar(
        {
            "debian-binary": b"2.0\n",
            f"control.tar{suffix}": pack(tar({"./control": control, "./md5sums": b"x"})),
            f"data.tar{suffix}": pack(data_tar),
        }
    )


def kernel_deb(compression: str = "gz", **options: object) -> bytes:
    return deb(tar(kernel_files(**options)), compression)  # type: ignore[arg-type]


def cpio(files: Mapping[str, bytes]) -> bytes:
    out = b""
    entries = [("./lib", b"", 0o040755), *((path, data, 0o100644) for path, data in files.items())]
    for path, data, mode in [*entries, ("TRAILER!!!", b"", 0)]:
        name = path.encode() + b"\0"
        numbers = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(f"{number:08x}".encode() for number in numbers) + name
        out += b"\0" * (-len(out) % 4)
        out += data
        out += b"\0" * (-len(out) % 4)
    return out


def rpm_header(strings: Mapping[int, str]) -> bytes:
    index, data = b"", b""
    for tag, text in strings.items():
        index += struct.pack(">IIII", tag, 6, len(data), 1)
        data += text.encode() + b"\0"
    return b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", len(strings), len(data)) + index + data


def rpm(payload: bytes, names: Mapping[int, str] | None = None) -> bytes:
    """A package with a signature header, a header and a compressed payload."""
    signature = rpm_header({1000: "not this", 62: "x"})
    head = b"\xed\xab\xee\xdb".ljust(96, b"\0") + signature
    head += b"\0" * (-len(head) % 8)
    return head + rpm_header(names or {1000: "kernel-core", 1001: "6.1", 1002: "5"}) + payload


def kernel_rpm(compression: str = "zst") -> bytes:
    """A kernel as Fedora lays it out: everything below lib/modules, modules compressed."""
    files = {
        f"./lib/modules/{RELEASE}/kernel/demo-mod.ko.xz": lzma.compress(builders.module("demo-mod")),
        f"./lib/modules/{RELEASE}/vmlinuz": builders.boot_image(),
        f"./lib/modules/{RELEASE}/kernel/other.ko.zst": COMPRESSIONS["zst"](builders.module("other")),
    }
    return rpm(COMPRESSIONS[compression](cpio(files)))
