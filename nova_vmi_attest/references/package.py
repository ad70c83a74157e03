# SPDX-License-Identifier: Apache-2.0
"""A kernel and its modules, from a distribution package or from files.

A package must hold exactly one boot image, ``boot/vmlinuz-RELEASE`` or ``[usr/]lib/modules/RELEASE/vmlinuz``,
and modules of that release alone. Modules come out uncompressed, by the name that the kernel gives them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nova_vmi_attest.kernel.module import normalised
from nova_vmi_attest.references.archives import MAX_FILE, Archive, open_archive
from nova_vmi_attest.references.streams import PackageError, unpack_whole

__all__ = ["KernelPackage", "PackageError", "PackagedModule", "read_package", "read_tree"]

_MAX_MODULES = 32768
_RELEASE = r"[0-9A-Za-z.+~_-]{1,64}"
_IMAGE = re.compile(rf"boot/vmlinuz-({_RELEASE})|(?:usr/)?lib/modules/({_RELEASE})/vmlinuz")
_MODULE = re.compile(
    rf"(?:usr/)?lib/modules/(?P<release>{_RELEASE})/(?:[^/]+/)*(?P<file>[^/]+)\.ko(?:\.gz|\.xz|\.zst)?"
)
_MODULE_FILE = re.compile(r"(?P<file>[^/]+)\.ko(?:\.gz|\.xz|\.zst)?")


@dataclass(frozen=True, slots=True)
class PackagedModule:
    """The kernel's name for a module, its uncompressed file, and how far into the package it is (0 to 1)."""

    name: str
    contents: bytes
    fraction: float


@dataclass(frozen=True, slots=True)
class KernelPackage:
    """A kernel and where it came from.

    ``digest`` is SHA-256 (hex) of the package file, or of the boot image when there was no package;
    ``release`` is what the paths say, to be compared with what the image says. ``modules`` starts over on
    each call; it raises PackageError for a damaged package, a second boot image, another release's module, or
    two modules of one name.
    """

    name: str
    version: str
    digest: str
    release: str
    image: bytes
    modules: Callable[[], Iterator[PackagedModule]]


def read_package(path: Path) -> KernelPackage:
    """Read a ``.deb`` or ``.rpm`` file. Raises PackageError.

    The package is read once up to its boot image, and again for each use of ``modules``.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            archive = open_archive(file, path.stat().st_size)
            found = _first_image(archive)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error
    if found is None:
        raise PackageError(
            f"{path} holds no boot image",
            "give the package that has boot/vmlinuz-*, or import a tree of files",
        )
    release, image_path, image = found
    return KernelPackage(
        archive.name,
        archive.version,
        digest,
        release,
        image,
        lambda: _named_once(_package_modules(path, release, image_path)),
    )


def read_tree(vmlinuz: Path, modules_directory: Path, name: str = "", version: str = "") -> KernelPackage:
    """Take a boot image and its modules' directory, ``…/lib/modules/RELEASE``, as if they were a package.

    Symbolic links below the directory are not followed. Raises PackageError.
    """
    try:
        if vmlinuz.stat().st_size > MAX_FILE:
            raise PackageError(f"{vmlinuz} is larger than {MAX_FILE} bytes")
        image = vmlinuz.read_bytes()
        release = modules_directory.resolve(strict=True).name
    except OSError as error:
        raise PackageError(f"{error.filename} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(image).hexdigest()
    return KernelPackage(
        name, version, digest, release, image, lambda: _named_once(_tree_modules(modules_directory))
    )


def _first_image(archive: Archive) -> tuple[str, str, bytes] | None:
    """(release, path, contents) of the first boot image of a package."""
    for entry in archive.entries():
        release = _image_release(entry.path)
        if release is not None:
            return release, entry.path, entry.read()
    return None


def _image_release(path: str) -> str | None:
    match = _IMAGE.fullmatch(path)
    return (match[1] or match[2]) if match else None


def _package_modules(path: Path, release: str, image_path: str) -> Iterator[PackagedModule]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            yield from _archive_modules(open_archive(file, size), release, image_path, file, size)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error


def _archive_modules(
    archive: Archive, release: str, image_path: str, file: BinaryIO, size: int
) -> Iterator[PackagedModule]:
    for entry in archive.entries():
        if _image_release(entry.path) is not None and entry.path != image_path:
            raise PackageError(
                f"the package holds two boot images, {image_path} and {entry.path}", "import a tree of files"
            )
        match = _MODULE.fullmatch(entry.path)
        if match is None:
            continue
        if match["release"] != release:
            raise PackageError(f"{entry.path} does not belong to kernel {release}")
        contents = unpack_whole(entry.read(), MAX_FILE)
        yield PackagedModule(normalised(match["file"]), contents, file.tell() / size)


def _tree_modules(directory: Path) -> Iterator[PackagedModule]:
    try:
        files = sorted(path for path in directory.rglob("*.ko*") if path.is_file() and not path.is_symlink())
        for done, path in enumerate(files, 1):
            match = _MODULE_FILE.fullmatch(path.name)
            if match is None:
                continue
            if path.stat().st_size > MAX_FILE:
                raise PackageError(f"{path} is larger than {MAX_FILE} bytes")
            contents = unpack_whole(path.read_bytes(), MAX_FILE)
            yield PackagedModule(normalised(match["file"]), contents, done / len(files))
    except OSError as error:
        raise PackageError(f"{error.filename} cannot be read: {error.strerror}") from error


def _named_once(modules: Iterator[PackagedModule]) -> Iterator[PackagedModule]:
    """Pass modules on; PackageError for too many, or for two of one name."""
    seen: set[str] = set()
    for module in modules:
        if module.name in seen:
            raise PackageError(f"there are two modules {module.name}")
        if len(seen) >= _MAX_MODULES:
            raise PackageError(f"there are more than {_MAX_MODULES} modules")
        seen.add(module.name)
        yield module
