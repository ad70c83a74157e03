# SPDX-License-Identifier: Apache-2.0
"""Locks a server: its project can neither change nor delete it until an operator unlocks it."""

from __future__ import annotations

from uuid import UUID

from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import GUEST, Response, Tools, server_of, why


class Lock(Response):
    """See the module."""

    kinds = frozenset((GUEST,))
    needs_nova = True

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Lock it with the finding as the reason, which its project sees. A lock that is there stays."""
        if server_of(item, tools.require_nova()).is_locked:
            return "the server was locked already"
        tools.require_nova().lock(UUID(item.change.subject), why(item))
        return "the server is locked"
