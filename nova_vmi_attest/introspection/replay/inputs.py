# SPDX-License-Identifier: Apache-2.0
"""The values of the live guest that decide how its text is patched, each recorded when it is read.

None of them is proven by the replay. Whoever owns one of them can make altered text look explained, so each
must be validated apart (legal target, consistent with the others and with the virtual hardware): that is why
every byte a mechanism takes from the guest goes through :class:`LiveKernel` and ends in :class:`LiveInputs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.introspection.memory.base import GuestGone, ReaderError
from nova_vmi_attest.kernel.vmlinux import Vmlinux

MASK64 = (1 << 64) - 1
PERCPU_LIMIT = 1 << 32  # symbols below are per-cpu offsets or constants: KASLR does not move them
MAX_INVALID = 256
PAGE = 4096


def signed(address: int) -> int:
    """A 64-bit address as two's complement, the form in which numpy computes with them here."""
    return ((address & MASK64) ^ 1 << 63) - (1 << 63)


class ReplaySource(Protocol):
    """A live kernel, as far as the replay reads it; ``introspection.guest.Guest`` is one.

    A read that fails for a reason inside the guest raises an AttestError other than GuestGone and
    ReaderError.
    """

    @property
    def slide(self) -> int:
        """Running address less link-time address, in bytes."""

    def read(self, address: int, length: int, /) -> bytes:
        """``length`` bytes at a guest-virtual address."""


@dataclass(frozen=True, slots=True)
class SmpState:
    """Whether the lock prefixes are patched out, and the CPU counts that must agree with it.

    ``uniprocessor`` is the kernel's own flag (uniproc_patched) where it has one, else derived from the
    counts.
    """

    uniprocessor: bool
    online: int
    possible: int


@dataclass(frozen=True, slots=True)
class TwoForms:
    """A site whose bytes depend on history: the live ones were taken, one of exactly two legal forms."""

    address: int
    taken: bytes


@dataclass(frozen=True, slots=True)
class InvalidInput:
    """A value that leads nowhere legal; the sites that it decides were left as they were.

    ``address`` is where the value was read, ``value`` what was found (None: unreadable).
    """

    kind: str
    address: int
    value: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class ThunkPage:
    """A page of thunks for indirect branches: where text leads, and the 4,096 bytes that must be there."""

    address: int
    expected: bytes


@dataclass(frozen=True, slots=True)
class LiveInputs:
    """Everything read from the guest that decided bytes; addresses are running ones, unsigned.

    ``cpu_capabilities``: boot_cpu_data.x86_capability, bit n of word w at bit 32 * w + n, bug words last.
    ``pv_ops``: the slots of pv_ops in order, functions or flags, empty when no site needed them.
    ``return_thunk``: x86_return_thunk, None when the kernel has none or no site needed it.
    ``static_keys``: address of a key -> its signed ``enabled`` count.
    ``static_calls``: address of a key (__SCK__name) -> its function, 0 for none.
    ``thunk_pages``: the pages of :mod:`.indirect_thunks`; their address is an input, their contents are not.
    """

    cpu_capabilities: int
    pv_ops: tuple[int, ...]
    return_thunk: int | None
    smp: SmpState | None
    static_keys: Mapping[int, int]
    static_calls: Mapping[int, int]
    two_forms: tuple[TwoForms, ...]
    invalid: tuple[InvalidInput, ...]
    thunk_pages: tuple[ThunkPage, ...] = ()

    def has(self, feature: int) -> bool:
        """Whether the CPU feature or bug bit is set."""
        return bool(self.cpu_capabilities >> feature & 1)


class LiveKernel:
    """Reads the inputs of a replay from the guest, once each, and records them.

    Symbols and types come from the reference, values from the guest. An unreadable value is recorded as
    invalid, and stands for "absent": what it decides stays unpatched, hence unexplained.
    """

    def __init__(self, source: ReplaySource, vmlinux: Vmlinux) -> None:
        self.source = source
        self.vmlinux = vmlinux
        self.slide = source.slide
        self._capabilities: int | None = None
        self._pv_ops: tuple[int, ...] | None = None
        self._return_thunk: int | None = None
        self._return_thunk_read = False
        self._smp: SmpState | None = None
        self._keys: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._two_forms: list[TwoForms] = []
        self._invalid: list[InvalidInput] = []
        self._thunk_pages: list[ThunkPage] = []

    def symbol(self, name: str) -> int | None:
        """Running address of a kernel symbol, unsigned; None when the build has no such symbol."""
        link = self.vmlinux.symbols.get(name)
        if link is None or link < PERCPU_LIMIT:
            return link
        return (link + self.slide) & MASK64

    def names_at(self, address: int) -> tuple[str, ...]:
        """The names of the kernel symbols at exactly this running address."""
        return tuple(self.vmlinux.symbols.names_at((address - self.slide) & MASK64))

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes of the guest, or None when they cannot be read. The caller records what it made of them."""
        try:
            data = self.source.read(address & MASK64, length)
        except (GuestGone, ReaderError):
            raise
        except AttestError:
            return None
        return data if len(data) == length else None

    def invalid(self, kind: str, address: int, value: int | None, detail: str) -> None:
        """Record a value that leads nowhere legal; at most MAX_INVALID are kept."""
        if len(self._invalid) < MAX_INVALID:
            self._invalid.append(InvalidInput(kind, address & MASK64, value, detail))

    def _integer(self, kind: str, name: str, length: int, offset: int = 0) -> int | None:
        address = self.symbol(name)
        if address is None:
            return None
        data = self.read(address + offset, length)
        if data is None:
            self.invalid(kind, address + offset, None, f"{name} cannot be read")
            return None
        return int.from_bytes(data, "little")

    def has(self, feature: int) -> bool:
        """Whether boot_cpu_data has the feature or bug bit (bugs are numbered after the features)."""
        if self._capabilities is None:
            btf = self.vmlinux.btf
            offset = btf.offset("cpuinfo_x86", "x86_capability")
            size = 4 * btf.length("cpuinfo_x86", "x86_capability")
            self._capabilities = self._integer("cpu_capabilities", "boot_cpu_data", size, offset) or 0
        return bool(self._capabilities >> feature & 1)

    @property
    def pv_ops(self) -> tuple[int, ...]:
        """The slots of pv_ops, empty when it cannot be read."""
        if self._pv_ops is None:
            count = self.vmlinux.btf.size("paravirt_patch_template") // 8
            value = self._integer("pv_ops", "pv_ops", 8 * count)
            self._pv_ops = () if value is None else tuple(value >> 64 * i & MASK64 for i in range(count))
        return self._pv_ops

    @property
    def return_thunk(self) -> int | None:
        """x86_return_thunk, or None when the build has no such variable or it cannot be read."""
        if not self._return_thunk_read:
            self._return_thunk_read = True
            self._return_thunk = self._integer("return_thunk", "x86_return_thunk", 8)
        return self._return_thunk

    @property
    def smp(self) -> SmpState:
        """The CPU counts, and whether the kernel patched its lock prefixes out."""
        if self._smp is None:
            online = self._integer("smp", "__num_online_cpus", 4) or 0
            possible = self._integer("smp", "nr_cpu_ids", 4) or 0
            flag = self._integer("smp", "uniproc_patched", 1)
            alone = online == 1 and possible == 1 if flag is None else bool(flag)
            self._smp = SmpState(alone, online, possible)
        return self._smp

    def static_keys(self, addresses: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ``enabled`` count of the key at each address, and whether it could be read."""
        values, readable = self._words_at(addresses, 4, self._keys, "static_key")
        return np.array([value - (value >> 31 << 32) for value in values], np.int64), readable

    def static_calls(self, addresses: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The function of the static call key at each address (as int64), and whether it could be read."""
        values, readable = self._words_at(addresses, 8, self._calls, "static_call")
        return np.array(values, np.uint64).astype(np.int64), readable

    def _words_at(
        self, addresses: NDArray[np.int64], width: int, known: dict[int, int], kind: str
    ) -> tuple[list[int], NDArray[np.bool_]]:
        unique, inverse = np.unique(addresses, return_inverse=True)
        wanted = [address & MASK64 for address in unique.tolist()]
        for group in _groups([address for address in wanted if address not in known], width):
            span = group[-1] + width - group[0]
            block = self.read(group[0], span)
            for address in group:
                data = block[address - group[0] :][:width] if block else self.read(address, width)
                if data is None:
                    self.invalid(kind, address, None, "the key cannot be read")
                else:
                    known[address] = int.from_bytes(data, "little")
        values = [known.get(address, 0) for address in wanted]
        readable = np.array([address in known for address in wanted], np.bool_)
        return [values[i] for i in inverse.tolist()], readable[inverse] if len(readable) else readable

    def two_forms(self, address: int, forms: tuple[bytes, bytes]) -> bytes:
        """The live bytes where they are one of two forms that history allows, else the first form."""
        live = self.read(address, len(forms[0]))
        if live not in forms:
            return forms[0]
        self._two_forms.append(TwoForms(address & MASK64, live))
        return live

    def thunk_page(self, page: ThunkPage) -> None:
        """Record a page of thunks whose address was taken from the text."""
        self._thunk_pages.append(page)

    def inputs(self) -> LiveInputs:
        """What has been read so far."""
        return LiveInputs(
            cpu_capabilities=self._capabilities or 0,
            pv_ops=self._pv_ops or (),
            return_thunk=self._return_thunk,
            smp=self._smp,
            static_keys=MappingProxyType({a: v - (v >> 31 << 32) for a, v in self._keys.items()}),
            static_calls=MappingProxyType(dict(self._calls)),
            two_forms=tuple(self._two_forms),
            invalid=tuple(self._invalid),
            thunk_pages=tuple(self._thunk_pages),
        )


def _groups(addresses: list[int], width: int) -> Iterable[list[int]]:
    """Ascending addresses, cut into groups that one read of at most a page serves."""
    group: list[int] = []
    for address in addresses:
        if group and address + width - group[0] > PAGE:
            yield group
            group = []
        group.append(address)
    if group:
        yield group
