# SPDX-License-Identifier: Apache-2.0
"""A check: the kernel says of itself that nothing tainted it.

The kernel sets a bit of ``tainted_mask`` when it loads an unsigned or foreign module, or after an oops
(Documentation/admin-guide/tainted-kernels.rst). The guest owns that word and can clear it, so this finds
the careless only. To let it count, add its name to ``[policy] required_checks`` of the verifiers.
"""

from __future__ import annotations

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings

# What is told by the verdict of other checks, or harmless on an emulated guest, is not repeated here.
FLAGS = {
    1: "a module was loaded by force",
    4: "a machine check was reported",
    7: "the kernel died",
    12: "a module from outside the kernel tree was loaded",
}


class Taint(Check):
    """See the module."""

    name = "taint"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """One finding for each flag. An unreadable word raises, which makes the check incomplete."""
        guest = context.guest
        address = guest.symbol("tainted_mask")
        mask = guest.u64(address)
        findings.bytes_verified = 8
        for bit, meaning in FLAGS.items():
            if mask >> bit & 1:
                findings.add(
                    "tainted_mask", meaning, length=8, address=address, actual=mask.to_bytes(8, "little")
                )
