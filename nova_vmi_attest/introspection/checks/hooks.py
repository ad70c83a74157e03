# SPDX-License-Identifier: Apache-2.0
"""Nobody has hooked the kernel: no function tracer, no probe, no pointer bent, no security hook taken out.

Tracers and probes have honest uses, and change what the kernel does without altering a byte that is not
theirs to alter; whether a guest may use them is for the policy to say. Pointers and security hooks are in
:mod:`.pointers`. NOT looked at: tracepoints (the check ``control`` sees a single probe on one), perf events,
netfilter hooks and notifier chains, which are allocated, and BPF programs.

Sources: kernel/trace/ftrace.c (ftrace_ops_list), kernel/kprobes.c (kprobe_table).
"""

from __future__ import annotations

import numpy as np

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.checks.pointers import examine_pointers, examine_security_hooks
from nova_vmi_attest.introspection.guest import GuestFault

PROBE_HEADS = 64  # 1 << KPROBE_HASH_BITS


class Hooks(Check):
    """See the module."""

    name = "hooks"
    needs = ("modules",)

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """Tracers and probes, then pointers."""
        self._tracers(context, findings)
        self._probes(context, findings)
        examine_security_hooks(context, findings)
        examine_pointers(context, findings)

    def _tracers(self, context: CheckContext, findings: Findings) -> None:
        guest = context.guest
        if not guest.has_symbol("ftrace_ops_list"):
            return
        first = guest.u64(guest.symbol("ftrace_ops_list"))
        findings.bytes_verified += 8
        if first != guest.symbol("ftrace_list_end"):
            detail = f"functions are traced by {context.name(first)}"
            findings.add("ftrace_ops_list", detail, length=8, address=guest.symbol("ftrace_ops_list"),
                         actual=first.to_bytes(8, "little"))  # fmt: skip

    def _probes(self, context: CheckContext, findings: Findings) -> None:
        guest = context.guest
        if not guest.has_symbol("kprobe_table"):
            return
        start = guest.symbol("kprobe_table")
        heads = np.frombuffer(guest.read(start, 8 * PROBE_HEADS), "<u8")
        findings.bytes_verified += heads.nbytes
        # hlist is the first member of struct kprobe.
        address_at = guest.offset("kprobe", "addr") - guest.offset("kprobe", "hlist")
        for index in np.flatnonzero(heads).tolist():
            try:
                detail = f"a probe on {context.name(guest.u64(int(heads[index]) + address_at))}"
            except GuestFault:
                detail = "a probe that cannot be read"
            findings.add("kprobe_table", detail, offset=8 * index, length=8, address=start + 8 * index)
