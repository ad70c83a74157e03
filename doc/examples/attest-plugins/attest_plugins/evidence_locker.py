# SPDX-License-Identifier: Apache-2.0
"""A memory reader: dumps that an operator keeps in one directory, each named by the guest's UUID.

Useful to measure a guest again after it is gone. It fits a guest only when its dump is there, and then
ranks behind the readers of live memory, so it has to be named: ``[agent] reader = evidence_locker``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nova_vmi_attest.introspection.memory.base import GuestMemory, Suitability
from nova_vmi_attest.introspection.memory.domain import DomainMemory
from nova_vmi_attest.introspection.memory.dump import DumpMemory


class EvidenceLocker(DumpMemory):
    """The dump ``$EVIDENCE_LOCKER/<uuid>.core``."""

    name = "evidence_locker"

    @classmethod
    def suitability(cls, domain: DomainMemory) -> Suitability:
        """1 (worse than any reader of live memory) when there is a dump."""
        kept = _path(domain)
        return Suitability(int(kept.is_file()), f"dump {kept}")

    @classmethod
    def open(cls, domain: DomainMemory) -> GuestMemory:
        """Open the dump; raises as :class:`DumpMemory`."""
        return super().open(replace(domain, dump=str(_path(domain))))


def _path(domain: DomainMemory) -> Path:
    return Path(os.environ.get("EVIDENCE_LOCKER", "/var/lib/nova-vmi-attest/locker")) / f"{domain.uuid}.core"
