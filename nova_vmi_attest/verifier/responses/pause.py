# SPDX-License-Identifier: Apache-2.0
"""Pauses a server: its processors stop, its memory stays as it is for somebody to examine."""

from __future__ import annotations

from uuid import UUID

from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import GUEST, Moot, Response, Tools, server_of

# Whatever a server in one of these had in its memory is not running any more.
_AT_REST = frozenset(("DELETED", "SHELVED", "SHELVED_OFFLOADED", "SHUTOFF", "SOFT_DELETED", "SUSPENDED"))


class Pause(Response):
    """See the module."""

    kinds = frozenset((GUEST,))
    needs_nova = True

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Pause it. Its project can unpause it, unless it is locked, too."""
        status = server_of(item, tools.require_nova()).status
        if status == "PAUSED":
            return "the server was paused already"
        if status in _AT_REST:
            raise Moot(f"a server in the status {status} is not running")
        tools.require_nova().pause(UUID(item.change.subject))
        return "the server is paused"
