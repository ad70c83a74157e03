# SPDX-License-Identifier: Apache-2.0
"""Kernel text is exactly what the kernel's own patching makes of its build.

The bytes are read through the page tables and compared with the replay, to the end of the last page that is
executable. Before a difference is reported the text is worked out anew: the kernel may have switched a static
key. The live values that the replay depends on are not proven here: the check ``control`` does that.
"""

from __future__ import annotations

import numpy as np

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.paging import PAGE


class Text(Check):
    """See the module."""

    name = "text"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """Compare, and once more with a new replay where that differs."""
        guest, state = context.guest, context.state
        span = state.build.text
        base = guest.symbol("_text")
        live = guest.view(base, span.size)
        different = state.text().expectation.mismatches(live)
        if len(different):
            guest.refresh()
            live = guest.view(base, span.size)
            different = state.replay_text().expectation.mismatches(live)
        context.facts.code_bytes += span.size
        context.facts.unexplained_bytes += len(different)
        findings.bytes_verified = span.size
        if len(different):
            findings.differences(
                different,
                state.expected_text,
                live,
                base,
                lambda at: guest.vmlinux.symbols.at(guest.link(at)),
                "kernel text is not what its patching makes of it",
            )
        self._padding(context, findings)

    def _padding(self, context: CheckContext, findings: Findings) -> None:
        """What follows text in its last page can be executed too."""
        guest, span = context.guest, context.state.build.text
        size = -span.end % PAGE
        live = guest.view(guest.symbol("_etext"), size)
        different = np.flatnonzero(live != guest.vmlinux.image[span.end : span.end + size])
        context.facts.code_bytes += size
        context.facts.unexplained_bytes += len(different)
        findings.bytes_verified += size
        if len(different):
            at = int(different[0])
            findings.add(
                "_etext",
                "bytes behind the end of kernel text",
                offset=at,
                length=int(different[-1]) - at + 1,
                address=guest.symbol("_etext") + at,
                actual=live[at:].tobytes(),
            )
