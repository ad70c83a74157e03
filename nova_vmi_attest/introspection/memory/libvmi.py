# SPDX-License-Identifier: Apache-2.0
"""RAM files through LibVMI, the library of the introspection community (PyPI ``libvmi``, the ``libvmi``
extra).

Its file driver takes the RAM file of a live guest for a memory dump. Only the physical reads of its partial
initialisation (``vmi_init``) are used: they need no profile of the guest's kernel, no paging mode and no
kpgd. To LibVMI a physical address is an offset in the file, so it knows no PCI hole; the offset of a
guest-physical address comes from the layout, as for every other reader, and guests of any size can be read.

LibVMI keeps a cache of pages, which goes stale on a live guest: it is flushed before every pass. It copies,
page by page, so this reader is for sites that want LibVMI between them and the guest, not for speed. RAM that
is no file it cannot read at all.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from nova_vmi_attest.introspection.memory.base import MemoryRange, ReaderError, Suitability
from nova_vmi_attest.introspection.memory.domain import DomainMemory
from nova_vmi_attest.introspection.memory.qemu import QemuProcess
from nova_vmi_attest.introspection.memory.ram_file import RamFile, RamFiles


class LibvmiMemory(RamFiles):
    """Reads RAM files by ``vmi_read_pa``, with one LibVMI instance for each file."""

    name = "libvmi"

    def __init__(
        self, ranges: Sequence[MemoryRange], files: Sequence[RamFile], process: QemuProcess | None = None
    ) -> None:
        super().__init__(ranges, files, process)
        self._library = _library()
        self._instances: list[Any] = []
        try:
            self._instances += (self._start(file) for file in files)
        except BaseException:
            self._stop()
            raise

    @classmethod
    def suitability(cls, domain: DomainMemory) -> Suitability:
        """Fits when every backend is a shared file or memfd, and the library is there; never the first
        choice.
        """
        if not domain.shared_files:
            return Suitability(0, "LibVMI reads files only, and RAM is not a shared file")
        if importlib.util.find_spec("libvmi") is None:
            return Suitability(0, "the libvmi package is not installed")
        return Suitability(10, "RAM is a shared file, read by LibVMI page by page")

    def begin_pass(self) -> None:
        super().begin_pass()
        for instance in self._instances:
            instance.pagecache_flush()

    def close(self) -> None:
        self._stop()
        super().close()

    def _start(self, file: RamFile) -> Any:
        # By descriptor, so that it is the inode that was found to be the guest's RAM, whatever its path says
        # now.
        path = f"/proc/self/fd/{file.descriptor}"
        library = self._library
        try:
            return library.Libvmi(path, library.INIT_DOMAINNAME, mode=library.VMIMode.FILE, partial=True)
        except library.LibvmiError as error:
            raise ReaderError(f"LibVMI cannot open the RAM file: {error}") from error

    def _stop(self) -> None:
        while self._instances:
            self._instances.pop().destroy()

    def _fetch(self, index: int, offset: int, length: int) -> bytes:
        try:
            data, count = self._instances[index].read_pa(offset, length)
        except self._library.LibvmiError as error:
            self._failed(f"LibVMI cannot read the RAM file at {offset:#x}: {error}")
        if count != length:
            self._failed(f"LibVMI read {count} of {length} bytes of the RAM file at {offset:#x}")
        return bytes(data)


def _library() -> Any:
    """The bindings, imported when first needed: they load a shared library and its dependencies."""
    try:
        return importlib.import_module("libvmi")
    except (ImportError, OSError) as error:
        raise ReaderError(
            f"LibVMI cannot be loaded: {error}", "pip install 'nova-vmi-attest[libvmi]'"
        ) from error
