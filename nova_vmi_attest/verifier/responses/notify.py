# SPDX-License-Identifier: Apache-2.0
"""Raises an alert: a notification for people, once the verdict is confirmed and within the limit.

Every change of a verdict is notified anyway, at once and without limit; alerts are fewer and more certain.
"""

from __future__ import annotations

from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.verifier.responses.base import GUEST, HOST, Response, Tools


class Notify(Response):
    """See the module."""

    kinds = frozenset((GUEST, HOST))

    def respond(self, item: NumberedChange, tools: Tools) -> str:
        """Send it. Twice means two alerts about the same ``change``."""
        tools.alerts.alert(item)
        return "an alert was sent"
