# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a domain, and where its address space holds the guest's RAM.

Everything comes from /proc (proc(5)) and is what the kernel of this host says, except the command line, which
the process could rewrite: QEMU itself is trusted as far as the host is. Other processes are not, so a process
counts only if its executable is QEMU, and two that claim the same domain are refused.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator, Sequence

from nova_vmi_attest.introspection.memory.base import (
    EncryptedMemory,
    GuestGone,
    ReaderError,
    UnsupportedLayout,
)
from nova_vmi_attest.introspection.memory.command_line import (
    layout_override,
    options,
    protection,
    ram_backends,
)
from nova_vmi_attest.introspection.memory.domain import DomainMemory
from nova_vmi_attest.introspection.memory.mappings import Mapping, RamMapping, find_ram, parse_maps

MAX_COMMAND_LINE = 4 << 20
MAX_MAPS = 64 << 20

_EXECUTABLE = re.compile(r"(qemu-system-[a-z0-9_]+|qemu-kvm)( \(deleted\))?")


class QemuProcess:
    """A running QEMU, held by a pidfd, so that it is never mistaken for another process of its number."""

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
        """The process that runs ``domain``: ``domain.pid`` if set, else the one with its uuid and name.

        :raises GuestGone: none does.
        :raises ReaderError: several claim to.
        """
        if domain.pid is not None:
            return cls(domain.pid)
        found = [pid for pid in _pids() if _is_qemu(pid) and _claims(_arguments(pid), domain)]
        if not found:
            raise GuestGone(f"guest {domain.uuid} has no QEMU process")
        if len(found) > 1:
            raise ReaderError(f"guest {domain.uuid} is claimed by several processes: {found[:8]}")
        process = cls(found[0])
        if not _claims(process.arguments, domain):  # its number went to another guest meanwhile
            process.close()
            raise GuestGone(f"guest {domain.uuid} has no QEMU process")
        return process

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
        """Where the RAM of ``domain`` is: one mapping for each backend, in their order.

        :raises ReaderError: it cannot be told exactly, or is protected, or lies elsewhere than usual.
        :raises GuestGone: the process has ended.
        """
        if option := protection(self.arguments):
            raise EncryptedMemory(f"memory of guest {domain.uuid} is protected from its host ({option})")
        if override := layout_override(self.arguments):
            raise UnsupportedLayout(f"memory layout of guest {domain.uuid} is not known: {override}")
        backends = ram_backends(self.arguments, domain.size)
        return find_ram(backends, self.mappings(), self._identify)

    def _identify(self, path: str) -> tuple[int, int] | None:
        """Device and inode of a path as QEMU sees it, which may be in another mount namespace than ours."""
        try:
            found = os.stat(f"/proc/{self.pid}/root{path}")
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Let go of the process. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isascii() and entry.isdigit())


def _claims(arguments: Sequence[str], domain: DomainMemory) -> bool:
    guest = "guest=" + domain.name.replace(",", ",,")
    stated = list(options(arguments))
    named = any(option == "-name" and (value + ",").startswith(guest + ",") for option, value in stated)
    return named and ("-uuid", str(domain.uuid)) in stated


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
