# SPDX-License-Identifier: Apache-2.0
"""What is known of one boot of one guest, kept between passes so that a warm pass only compares.

Everything here was derived from the reference and from live inputs that the checks validate in every pass. It
is thrown away when the guest boots anew, and it holds only where this guest differs from the shared
reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nova_vmi_attest.introspection.build import Build
from nova_vmi_attest.introspection.expectation import Expectation
from nova_vmi_attest.introspection.gather import Gather
from nova_vmi_attest.introspection.guest import WORD, Guest
from nova_vmi_attest.introspection.locate import Located
from nova_vmi_attest.introspection.memory.base import GuestMemory
from nova_vmi_attest.introspection.paging import PAGE, AddressSpace, Leaves
from nova_vmi_attest.introspection.replay.inputs import LiveInputs
from nova_vmi_attest.introspection.replay.module import ReplayedModule
from nova_vmi_attest.introspection.replay.text import replay_kernel
from nova_vmi_attest.introspection.structures import LiveModule, Structures
from nova_vmi_attest.introspection.vdso import SharedObject, replay_vdso
from nova_vmi_attest.kernel.reference import Reference


@dataclass(frozen=True, slots=True)
class KernelText:
    """The text that this boot must have, the live values that decided it, and a quick look at those."""

    expectation: Expectation
    inputs: LiveInputs
    keys: Gather
    calls: Gather

    def followed(self, guest: Guest) -> bool:
        """Whether the static keys, static calls and the return thunk are what text was worked out from."""
        counts = np.array(list(self.inputs.static_keys.values()), np.int64)
        if not np.array_equal(self.keys.read(guest).astype(np.uint32), counts.astype(np.uint32)):
            return False
        targets = np.array(list(self.inputs.static_calls.values()), np.uint64)
        if not np.array_equal(self.calls.read(guest), targets):
            return False
        thunk = self.inputs.return_thunk
        return thunk is None or guest.u64(guest.symbol("x86_return_thunk")) == thunk


@dataclass(frozen=True, slots=True)
class ModulePart:
    """The code or the read-only data of a module; ``exact`` is None where every byte is."""

    address: int
    executable: bool
    expected: NDArray[np.uint8]
    exact: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class ModuleText:
    """A module as it must be where it was loaded.

    ``parts`` are its memory, each at a running address: the expected bytes, and which of them are exact.
    ``functions`` are the running addresses of its functions.
    """

    live: LiveModule
    replayed: ReplayedModule
    parts: tuple[ModulePart, ...]
    functions: frozenset[int]


class BootState:
    """One boot. Not thread-safe: a guest is measured by one thread at a time."""

    def __init__(self, reference: Reference, build: Build, located: Located, memory: GuestMemory) -> None:
        self.reference = reference
        self.build = build
        self.located = located
        self.guest = Guest(memory, reference.vmlinux, located)
        self.structures = Structures(self.guest)
        self.modules: dict[int, ModuleText] = {}
        self.static_calls = Gather((call.key + located.slide for call in build.static_calls), 8)
        self.static_call_targets = np.array(
            [call.target and (call.target + located.slide) & WORD for call in build.static_calls], np.uint64
        )
        self.descriptions: dict[int, tuple[bytes, LiveModule]] = {}
        self.accepted: dict[str, bytes] = {}
        # What user mode runs on under page table isolation, and mappings that were found to be as they must.
        self.user_space = AddressSpace(memory, self.guest.space.root + PAGE, located.levels)
        self.sound: Leaves | None = None
        self.sound_user: tuple[Leaves, Leaves] | None = None
        self.trampoline: tuple[int, NDArray[np.uint8]] | None = None
        self.ticks: int | None = None
        self.ticked = 0.0
        self._vdso: tuple[SharedObject, ...] | None = None
        self._text: KernelText | None = None
        self._read_only: Expectation | None = None

    def begin_pass(self, memory: GuestMemory) -> None:
        """Forget what was read in the pass before; ``memory`` may be another reader of the same guest."""
        self.guest.memory = self.guest.space.memory = self.user_space.memory = memory
        self.guest.refresh()

    def text(self) -> KernelText:
        """The expected text, worked out at the first call.

        :raises AttestError: it cannot be worked out.
        """
        if self._text is None:
            self._text = self.replay_text()
        return self._text

    def replay_text(self) -> KernelText:
        """The expected text anew, from the live inputs as they are now."""
        replayed = replay_kernel(self.guest, self.guest.vmlinux)
        span = self.build.text
        reference = self.guest.vmlinux.image[span.start : span.end]
        inputs = replayed.inputs
        self._text = KernelText(
            Expectation(reference, replayed.image),
            inputs,
            Gather(inputs.static_keys, 4),
            Gather(inputs.static_calls, 8),
        )
        return self._text

    def expected_text(self, start: int, length: int) -> bytes:
        """Expected bytes of text from an offset on, cut at its end."""
        expectation = self.text().expectation
        return expectation.expected(start, min(start + length, len(expectation))).tobytes()

    def read_only(self) -> Expectation:
        """The expected read-only data, without what boot code writes."""
        if self._read_only is None:
            span = self.build.read_only
            vmlinux = self.guest.vmlinux
            expected = vmlinux.relocated(self.guest.slide, span.start, span.end)
            reference = vmlinux.image[span.start : span.end]
            self._read_only = Expectation(reference, expected, self.build.ignored)
        return self._read_only

    def vdso(self) -> tuple[SharedObject, ...]:
        """What the kernel gives to every process as code, as it must be.

        :raises AttestError: it cannot be worked out.
        """
        if self._vdso is None:
            self._vdso = tuple(replay_vdso(self.guest, self.guest.vmlinux))
        return self._vdso

    def is_function(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which running addresses are the start of a symbol in kernel text."""
        linked = addresses - np.uint64(self.guest.slide)
        functions = self.build.functions
        places = np.minimum(np.searchsorted(functions, linked), len(functions) - 1)
        found: NDArray[np.bool_] = functions[places] == linked
        return found
