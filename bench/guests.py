# SPDX-License-Identifier: Apache-2.0
"""A guest and its reference, as the measurer wants them."""

from __future__ import annotations

from collections.abc import Sequence

from nova_vmi_attest.introspection.memory.base import GuestMemory
from nova_vmi_attest.introspection.memory.domain import parse_domain
from nova_vmi_attest.introspection.memory.select import choose, open_memory
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.references.store import ReferenceStore


class OneReference:
    """The references of a host whose guests all run one kernel."""

    def __init__(self, reference: Reference) -> None:
        self._references = (reference,)

    def candidates(self) -> Sequence[Reference]:
        return self._references

    def missing(self, banner: str) -> None:
        raise LookupError(banner)


def load(store: ReferenceStore) -> Reference:
    """The only reference of a store."""
    return store.open(store.manifests()[0].digest)


def open_guest(xml: str) -> GuestMemory:
    """A guest's memory through the reader that fits it."""
    domain = parse_domain(xml)
    return open_memory(domain, choose(domain, None).reader)
