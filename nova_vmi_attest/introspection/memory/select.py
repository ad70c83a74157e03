# SPDX-License-Identifier: Apache-2.0
"""Which reader fits a domain.

Readers are the entry points of ``nova_vmi_attest.memory``. Each says of a domain how well it fits and why,
from the live XML alone; the best one is taken, and the caller logs the choice. Nothing falls back in silence:
when the chosen reader cannot be opened, that is the answer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol, cast

from stevedore import ExtensionManager

from nova_vmi_attest.introspection.memory.base import GuestMemory, ReaderError, Suitability
from nova_vmi_attest.introspection.memory.domain import DomainMemory

NAMESPACE = "nova_vmi_attest.memory"


class Reader(Protocol):
    """What an entry point of the namespace is: a class of readers."""

    def suitability(self, domain: DomainMemory) -> Suitability:
        """How well it fits ``domain``. Reads no memory and raises nothing."""

    def open(self, domain: DomainMemory) -> GuestMemory:
        """Open the memory of ``domain``.

        :raises ReaderError: it cannot be read this way.
        :raises GuestGone: it does not run.
        """


@dataclass(frozen=True, slots=True)
class Choice:
    """The reader to use, by name, and why, for the log."""

    reader: str
    reason: str


def choose(domain: DomainMemory, reader: str | None = None) -> Choice:
    """The best reader for ``domain``, or ``reader`` if the operator named one and it fits.

    :raises ReaderError: none fits, or the named one does not exist or does not fit; before that, the
        errors of
        :meth:`~.domain.DomainMemory.require_readable`.
    """
    domain.require_readable()
    known = _readers()
    if reader is not None and reader not in known:
        raise ReaderError(
            f"there is no memory reader {reader[:64]!r}", f"use one of: {', '.join(sorted(known))}"
        )
    found = {name: known[name].suitability(domain) for name in ([reader] if reader else sorted(known))}
    best = max(found, key=lambda name: found[name].score, default=None)
    if best is None or found[best].score <= 0:
        reasons = "; ".join(f"{name}: {found[name].reason}" for name in found)
        raise ReaderError(f"no memory reader fits guest {domain.uuid} ({reasons})")
    reason = found[best].reason
    return Choice(best, f"{reason}; named in the configuration" if reader else reason)


def open_memory(domain: DomainMemory, reader: str | None = None) -> GuestMemory:
    """Open the memory of ``domain`` with the reader that :func:`choose` gives.

    :raises ReaderError: as :func:`choose`, or the reader could not be opened.
    :raises GuestGone: the domain does not run.
    """
    return _readers()[choose(domain, reader).reader].open(domain)


@functools.cache
def _readers() -> dict[str, Reader]:
    manager: ExtensionManager[Reader] = ExtensionManager(NAMESPACE)
    return {extension.name: cast(Reader, extension.plugin) for extension in manager}
