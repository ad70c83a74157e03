# SPDX-License-Identifier: Apache-2.0
"""Nobody has hooked the kernel through its own tracing: no function tracer, no probe.

Both have honest uses, and both change what the kernel does without altering a byte that is not theirs to
alter; whether a guest may use them is for the policy to say. NOT looked at: tracepoints (the check
``control`` sees a probe on one), perf events, netfilter hooks, BPF programs.

Sources: kernel/trace/ftrace.c (ftrace_ops_list), kernel/kprobes.c (kprobe_table).
"""

from __future__ import annotations

import numpy as np

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings

PROBE_HEADS = 64  # 1 << KPROBE_HASH_BITS


class Hooks(Check):
    """See the module."""

    name = "hooks"
    needs = ("modules",)

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The two lists."""
        guest = context.guest
        if guest.has_symbol("ftrace_ops_list"):
            first = guest.u64(guest.symbol("ftrace_ops_list"))
            findings.bytes_verified += 8
            if first != guest.symbol("ftrace_list_end"):
                detail = f"functions are traced by {context.name(first)}"
                findings.add("ftrace_ops_list", detail, length=8, address=guest.symbol("ftrace_ops_list"),
                             actual=first.to_bytes(8, "little"))  # fmt: skip
        if guest.has_symbol("kprobe_table"):
            start = guest.symbol("kprobe_table")
            heads = np.frombuffer(guest.read(start, 8 * PROBE_HEADS), "<u8")
            findings.bytes_verified += heads.nbytes
            for index in np.flatnonzero(heads).tolist():
                probe = int(heads[index])
                # hlist is the first member of struct kprobe.
                at = guest.u64(probe + guest.offset("kprobe", "addr") - guest.offset("kprobe", "hlist"))
                detail = f"a probe on {context.name(at)}"
                findings.add("kprobe_table", detail, offset=8 * index, length=8, address=start + 8 * index)
