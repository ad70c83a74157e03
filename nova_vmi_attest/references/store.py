# SPDX-License-Identifier: Apache-2.0
"""Reference kernels on disk: files by their digest, and the manifests that say which files make a kernel.

The same store serves a verifier, which imports packages, and an agent, which keeps what it fetched. A file is
written aside, flushed and renamed, so that a reader never sees a part of one; and because what is read is
checked against its digest each time, damage or tampering on disk is an error and never a wrong reference.
Several processes may use one directory: whatever changes what is kept holds a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.kernel.module import ModuleObject
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.kernel.vmlinux import Vmlinux
from nova_vmi_attest.references.manifest import MAX_BYTES, Blob, Manifest, ModuleBlob, Source
from nova_vmi_attest.references.package import KernelPackage, PackageError, read_package, read_tree

Progress = Callable[[float, str], None]

_MAX_BLOB = 256 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class StoreError(AttestError):
    """The store has no such file, has a damaged one, or its directory cannot be used."""


class ReferenceStore:
    """A directory of references. Safe to share between threads and processes.

    The directory is created (0700, files 0600) when something is written. Every method raises StoreError when
    the directory cannot be used.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._blobs = self._directory / "blobs"
        self._manifests = self._directory / "manifests"

    # -- importing -------------------------------------------------------------------------------------------

    def import_package(self, path: str | os.PathLike[str], progress: Progress | None = None) -> Manifest:
        """Add the kernel in a ``.deb`` or ``.rpm`` file.

        :param progress: called after each module with how much is done (0 to 1) and the module's name.
        :raises PackageError: the package does not hold one kernel whose modules and paths agree with it.
        :raises AttestError: the kernel or a module cannot be read (see Vmlinux.load, ModuleObject.parse).
        """
        return self._import(read_package(Path(path)), progress)

    def import_tree(
        self,
        vmlinuz: str | os.PathLike[str],
        modules_directory: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> Manifest:
        """Add a kernel from its boot image and ``…/lib/modules/RELEASE``; raises as import_package."""
        return self._import(read_tree(Path(vmlinuz), Path(modules_directory)), progress)

    def _import(self, package: KernelPackage, progress: Progress | None) -> Manifest:
        vmlinux = Vmlinux.load(package.image)
        if vmlinux.release != package.release:
            raise PackageError(
                f"the paths say that this is kernel {package.release}, the boot image says {vmlinux.release}"
            )
        with self._changing():
            modules = tuple(self._import_modules(package, vmlinux.release, progress))
            manifest = Manifest(
                release=vmlinux.release,
                build_id=vmlinux.build_id,
                banner_digest=hashlib.sha256(vmlinux.banner).hexdigest(),
                image=Blob(self.put_blob(package.image), len(package.image)),
                modules=tuple(sorted(modules, key=lambda module: module.name)),
                source=Source(package.name, package.version, package.digest),
            )
            self._put_manifest(manifest.digest, manifest.encode())
            return manifest

    def _import_modules(
        self, package: KernelPackage, release: str, progress: Progress | None
    ) -> Iterator[ModuleBlob]:
        for packaged in package.modules():
            module = ModuleObject.parse(packaged.contents)
            if module.name != packaged.name:
                raise PackageError(f"the file of module {packaged.name} calls itself {module.name}")
            if module.vermagic.split(" ")[0] != release:
                raise PackageError(f"module {module.name} is built for {module.vermagic}, not for {release}")
            yield ModuleBlob(module.name, self.put_blob(packaged.contents), len(packaged.contents))
            if progress is not None:
                progress(packaged.fraction, packaged.name)

    # -- manifests -------------------------------------------------------------------------------------------

    def manifests(self) -> tuple[Manifest, ...]:
        """Every manifest, ordered by release and then digest."""
        found = self._by_digest()
        return tuple(found[digest] for digest in sorted(found, key=lambda name: (found[name].release, name)))

    def _by_digest(self) -> dict[str, Manifest]:
        try:
            names = [path.name for path in self._manifests.iterdir() if _DIGEST.fullmatch(path.name)]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unusable(self._manifests, error) from error
        return {name: self.manifest(name) for name in names}

    def manifest(self, digest: str) -> Manifest:
        """The manifest that has ``digest``. Raises StoreError; ManifestError when it is malformed."""
        return Manifest.decode(self._read(self._manifests / _checked(digest), digest, MAX_BYTES))

    def put_manifest(self, data: bytes) -> Manifest:
        """Keep a manifest; the files that it names need not be there (yet).

        Raises ManifestError, StoreError.
        """
        manifest = Manifest.decode(data)
        with self._changing():
            self._put_manifest(hashlib.sha256(data).hexdigest(), data)
        return manifest

    def _put_manifest(self, digest: str, data: bytes) -> None:
        self._write(self._manifests / digest, data)
        # It may have come as a blob: a manifest is served like any other file, but kept in one place.
        self._remove(self._blob_path(digest))

    def delete(self, digest: str) -> None:
        """Forget a manifest, and the files that no other manifest names.

        Raises StoreError when there is none.
        """
        with self._changing():
            kept = self._by_digest()
            manifest = kept.pop(_checked(digest), None)
            if manifest is None:
                raise StoreError(f"the reference store has no manifest {digest[:16]}")
            self._remove(self._manifests / digest)
            for name in _files(manifest).difference(*map(_files, kept.values())):
                self._remove(self._blob_path(name))

    # -- files -----------------------------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        """Whether a file (or manifest) is there; that it is undamaged shows when it is read."""
        return os.path.isfile(self._blob_path(digest)) or os.path.isfile(self._manifests / digest)

    def blob(self, digest: str) -> bytes:
        """The file (or manifest) that has ``digest``, checked. Raises StoreError: absent or damaged."""
        manifest = self._manifests / _checked(digest)
        path = manifest if os.path.isfile(manifest) else self._blob_path(digest)
        return self._read(path, digest, _MAX_BLOB)

    def put_blob(self, data: bytes) -> str:
        """Keep a file and return its digest (SHA-256, hex)."""
        if not 0 < len(data) <= _MAX_BLOB:
            raise StoreError(f"a file of {len(data)} bytes is not kept")
        digest = hashlib.sha256(data).hexdigest()
        self._write(self._blob_path(digest), data)
        return digest

    def open(self, digest: str, fetch: Callable[[str], None] | None = None) -> Reference:
        """Load the kernel of a manifest, to measure guests with.

        :param fetch: called with the digest of a file that is needed and may not be here; it puts it here or
            raises.
        :raises AttestError: StoreError, or what Vmlinux.load raises.
        """
        manifest = self.manifest(digest)

        def load(blob: str) -> bytes:
            if fetch is not None and not self.has(blob):
                fetch(blob)
            return self.blob(blob)

        digests = {module.name: module.digest for module in manifest.modules}
        return Reference(digest, Vmlinux.load(load(manifest.image.digest)), digests, load)

    # -- the directory ---------------------------------------------------------------------------------------

    def _blob_path(self, digest: str) -> Path:
        return self._blobs / _checked(digest)[:2] / digest

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the directory's lock, against other processes and other threads alike. It does not nest."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._directory, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self, path: Path, digest: str, limit: int) -> bytes:
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as error:
            raise StoreError(f"the reference store has no file {digest[:16]}") from error
        except OSError as error:
            raise _unusable(path, error) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"the file {path} is damaged", "delete the reference and import it again")
        return data

    def _write(self, path: Path, data: bytes) -> None:
        """Put a file in place, whole or not at all; what is there already is left alone."""
        try:
            if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                return
            # One by one: a mode given for the last of several new directories is not that of the others.
            for directory in reversed(path.relative_to(self._directory).parents):
                (self._directory / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise _unusable(path, error) from error

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error


def _checked(digest: str) -> str:
    """``digest`` when it is one: it becomes a file name."""
    if not _DIGEST.fullmatch(digest):
        raise StoreError("a file is asked for by something that is not a SHA-256 digest")
    return digest


def _files(manifest: Manifest) -> set[str]:
    return {manifest.image.digest, *(module.digest for module in manifest.modules)}


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be used: {error.strerror}", "check the reference directory and its owner"
    )
