# SPDX-License-Identifier: Apache-2.0
"""A response: a file for each change in a directory, from which a ticket system takes them.

To use it, install it beside the verifiers and name it: ``[responses] on_guest_untrusted = ticket``. It may be
asked twice about the same change, so the number of the change is the name of the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import GUEST, HOST, Response, ResponseError, Tools


class Ticket(Response):
    """``$TICKETS/<number>.json``."""

    kinds = frozenset((GUEST, HOST))

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Write it; what fails is tried again by the verifier."""
        change = item.change
        said = {
            "subject": change.subject,
            "host": change.host,
            "verdict": change.verdict.value,
            "why": [f"{reason.check} {reason.symbol} {reason.detail}" for reason in change.reasons],
        }
        path = Path(os.environ.get("TICKETS", "/var/lib/nova-vmi-attest/tickets")) / f"{item.number}.json"
        try:
            path.write_text(json.dumps(said), encoding="utf-8")
        except OSError as error:
            raise ResponseError(f"no ticket could be written: {error.strerror}") from error
        return f"ticket {path.name} was written"
