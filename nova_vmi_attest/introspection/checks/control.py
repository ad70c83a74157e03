# SPDX-License-Identifier: Apache-2.0
"""The live values that decide how text is patched are legal ones.

The replay explains text from values that the guest could alter together with the text. What each of them
could hide, and what is asked of it:

* a static call: it redirects calls to any address. Its target must be the one that the build starts with, or
  one that the kernel itself installs there (:data:`STATIC_CALLS`), and the exact start of a function.
* a paravirtual operation: likewise (:data:`PARAVIRT`).
* the return thunk: it redirects every return. It must be one of the kernel's own, and none but the default
  without the capability that selects it.
* CPU capabilities: they choose among instruction sequences that the build contains, never others. What every
  CPU states of itself must include them. Turning mitigations off by altering all copies alike is NOT seen.
* the mark that there is one CPU only: it leaves out lock prefixes. No second CPU may be online.
* a static key: it chooses between two targets that the build contains. Its count must be plausible. Switching
  a feature on or off by its own key, text included, is NOT seen.

The values are those of now, and the text must follow from them: where they changed since the replay, text is
worked out and compared anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import WORD
from nova_vmi_attest.introspection.replay.features import RETHUNK

KEY_COUNT_LIMIT = 1 << 20

# What the kernel installs in a static call besides what it starts with ("" for none): kernel/sched/core.c
# (dynamic preemption), arch/x86/events/core.c, the clocks of the hypervisors.
_PMU = r"(x86|intel|amd|p4|p6|core|knc|zhaoxin|icl|hsw|nhm|snb|ivb|skl|adl|spr|glc|mtl|tfa|cmt)_\w+|"
STATIC_CALLS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (re.compile(key), re.compile(targets))
    for key, targets in (
        (r"(cond|might)_resched", r"(__)?cond_resched|__static_call_return0|"),
        (r"preempt_schedule(_notrace)?", r"preempt_schedule(_notrace)?(_thunk)?|"),
        (r"irqentry_exit_cond_resched", r"(raw_)?irqentry_exit_cond_resched|"),
        (r"pv_steal_clock", r"(native|kvm|xen|vmware)_steal_clock"),
        (r"pv_sched_clock", r"native_sched_clock|kvm_sched_clock_read|(xen|vmware|read_hv)_sched_clock\w*"),
        (r"(x86_pmu|amd_pmu|intel_pmu|x86_perf|perf_snapshot)_\w+", _PMU),
        (r"tp_func_\w+", r"__traceiter_\w+|trace_event_raw_event_\w+|perf_trace_\w+"),
    )
)
# What a KVM guest installs in pv_ops (arch/x86/kernel/kvm.c), by member of struct paravirt_patch_template.
PARAVIRT: Mapping[str, tuple[str, ...]] = {
    "cpu.io_delay": ("kvm_io_delay",),
    "mmu.flush_tlb_multi": ("kvm_flush_tlb_multi",),
    "mmu.tlb_remove_table": ("tlb_remove_table",),
    "lock.queued_spin_lock_slowpath": ("__pv_queued_spin_lock_slowpath",),
    "lock.queued_spin_unlock.func": ("__raw_callee_save___pv_queued_spin_unlock",),
    "lock.wait": ("kvm_wait",),
    "lock.kick": ("kvm_kick_cpu",),
    "lock.vcpu_is_preempted.func": ("__raw_callee_save___kvm_vcpu_is_preempted",),
}
DEFAULT_THUNK = "__x86_return_thunk"
RETURN_THUNKS = frozenset(
    (
        DEFAULT_THUNK,
        "its_return_thunk",
        "srso_return_thunk",
        "srso_alias_return_thunk",
        "retbleed_return_thunk",
        "zen_untrain_ret",
        "call_depth_return_thunk",
        "__ret",
    )
)


class ControlData(Check):
    """See the module."""

    name = "control"
    needs = ("modules", "text")

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """Each kind of input in turn, then whether text still follows from them."""
        inputs = context.state.text().inputs
        self._static_calls(context, findings)
        self._paravirt(context, findings)
        self._return_thunk(context, findings)
        self._capabilities(context, findings)
        self._static_keys(context, findings)
        self._single_cpu(context, findings)
        for one in inputs.invalid:
            findings.add(context.name(one.address), f"{one.kind}: {one.detail}", address=one.address)
        if not findings and not context.state.text().followed(context.guest):
            self._follow(context, findings)

    def _static_calls(self, context: CheckContext, findings: Findings) -> None:
        """Every key of the image, and every key that decided the text of a module."""
        guest, state = context.guest, context.state
        live, first = state.static_calls.read(guest), state.static_call_targets
        for index in (live != first).nonzero()[0].tolist():
            call = state.build.static_calls[index]
            target = int(live[index])
            if not self._legal(context, call.name, target):
                findings.add(
                    f"__SCK__{call.name}",
                    f"static call to {context.name(target)}",
                    length=8,
                    address=(call.key + guest.slide) & WORD,
                    expected=first[index].tobytes(),
                    actual=live[index].tobytes(),
                )
        findings.bytes_verified += 8 * len(live)
        for module in state.modules.values():
            for address, target in module.replayed.inputs.static_calls.items():
                if target and not guest.symbol("_text") <= address < guest.symbol("_end"):
                    self._module_call(context, findings, address, target)

    def _legal(self, context: CheckContext, name: str, target: int) -> bool:
        """Whether the kernel itself would install that target in a static call that started with another."""
        for key, targets in STATIC_CALLS:
            if key.fullmatch(name):
                names = self._names(context, target) if target else ("",)
                return any(targets.fullmatch(one) for one in names)
        return False

    def _module_call(self, context: CheckContext, findings: Findings, address: int, target: int) -> None:
        """A key that a module owns leads to a function of the kernel, or of a module that is verified."""
        if self._names(context, target):
            return
        if any(target in module.functions for module in context.state.modules.values()):
            return
        detail = f"static call to {context.name(target)}"
        actual = target.to_bytes(8, "little")
        findings.add(context.name(address), detail, length=8, address=address, actual=actual)

    def _names(self, context: CheckContext, address: int) -> tuple[str, ...]:
        """Names of the kernel function that starts at a running address; empty when none does."""
        guest = context.guest
        if not guest.symbol("_text") <= address < guest.symbol("_etext"):
            return ()
        return guest.vmlinux.symbols.names_at(guest.link(address))

    def _paravirt(self, context: CheckContext, findings: Findings) -> None:
        guest, state = context.guest, context.state
        if not guest.has_symbol("pv_ops"):
            return
        btf = guest.vmlinux.btf
        size = btf.size("paravirt_patch_template") // 8 * 8
        start = guest.symbol("pv_ops")
        live = guest.read(start, size)
        findings.bytes_verified += size
        if state.accepted.get("pv_ops") == live:
            return
        offset = guest.vmlinux.offset_of("pv_ops")
        first = guest.vmlinux.relocated(guest.slide, offset, offset + size).tobytes()
        extra = {
            btf.offset("paravirt_patch_template", member): names
            for member, names in PARAVIRT.items()
            if btf.has("paravirt_patch_template", member)
        }
        clean = True
        for at in range(0, size, 8):
            wanted, actual = first[at : at + 8], live[at : at + 8]
            target = int.from_bytes(actual, "little")
            if wanted == actual or set(self._names(context, target)) & set(extra.get(at, ())):
                continue
            clean = False
            findings.add(
                "pv_ops", f"operation {context.name(target)}", offset=at, length=8, address=start + at,
                expected=wanted, actual=actual,
            )  # fmt: skip
        if clean:
            state.accepted["pv_ops"] = live

    def _return_thunk(self, context: CheckContext, findings: Findings) -> None:
        guest = context.guest
        if not guest.has_symbol("x86_return_thunk"):
            return
        address = guest.symbol("x86_return_thunk")
        target = guest.u64(address)
        names = self._names(context, target)
        findings.bytes_verified += 8
        if not RETURN_THUNKS & set(names):
            detail = f"returns go to {context.name(target)}"
        elif DEFAULT_THUNK not in names and not context.state.text().inputs.has(RETHUNK):
            detail = f"returns go to {context.name(target)} without the capability that selects it"
        else:
            return
        actual = target.to_bytes(8, "little")
        findings.add("x86_return_thunk", detail, length=8, address=address, actual=actual)

    def _capabilities(self, context: CheckContext, findings: Findings) -> None:
        """What the boot CPU's record has, every online CPU's own record has too."""
        guest = context.guest
        start = guest.offset("cpuinfo_x86", "x86_capability")
        size = guest.offset("cpuinfo_x86", "x86_vendor_id") - start
        boot = guest.read(guest.symbol("boot_cpu_data") + start, size)
        common = int.from_bytes(boot, "little")
        for cpu, area in context.structures.online_cpus():
            record = guest.read((area + guest.symbol("cpu_info") + start) & WORD, size)
            findings.bytes_verified += size
            if common & ~int.from_bytes(record, "little"):
                bit = (common & ~int.from_bytes(record, "little")).bit_length() - 1
                detail = f"capability {bit // 32}*32+{bit % 32} is one that CPU {cpu} does not state"
                findings.add("boot_cpu_data", detail, offset=start + bit // 32 * 4, length=4, expected=record,
                             actual=boot)  # fmt: skip

    def _single_cpu(self, context: CheckContext, findings: Findings) -> None:
        """Lock prefixes are left out only where there is nobody to lock out."""
        smp = context.state.text().inputs.smp
        cpus = len(list(context.structures.online_cpus()))
        if smp is not None and smp.uniprocessor and cpus > 1:
            findings.add("uniproc_patched", f"lock prefixes are patched out with {cpus} CPUs online")

    def _static_keys(self, context: CheckContext, findings: Findings) -> None:
        for address, count in context.state.text().inputs.static_keys.items():
            if not -1 <= count <= KEY_COUNT_LIMIT:
                findings.add(context.name(address), f"static key counts {count}", length=4, address=address)

    def _follow(self, context: CheckContext, findings: Findings) -> None:
        """Work text out anew; where it is not what the values of now make of it, say so."""
        guest, state = context.guest, context.state
        guest.refresh()
        expectation = state.replay_text().expectation
        live = guest.view(guest.symbol("_text"), state.build.text.size)
        different = expectation.mismatches(live)
        if len(different):
            findings.differences(
                different, state.expected_text, live, guest.symbol("_text"),
                lambda at: guest.vmlinux.symbols.at(guest.link(at)),
                "kernel text does not follow from the values that decide it",
            )  # fmt: skip
