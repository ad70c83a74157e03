# SPDX-License-Identifier: Apache-2.0
"""No process is hidden, and what runs is listed.

The task list and the process numbers of the initial namespace must name the same thread group leaders. They
are read one after the other while processes come and go, so a disagreement counts only when every reading
has it.

The inventory is what the guest says of its processes. NOT checked: threads, tasks that neither view has,
credentials, and the code of processes.
"""

from __future__ import annotations

from nova_vmi_attest.evidence.measurement import Process
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import GuestFault

ATTEMPTS = 4
PROCESS_LIMIT = 4096


class Processes(Check):
    """See the module."""

    name = "processes"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The two views, then the inventory."""
        structures = context.structures
        hidden: set[int] | None = None
        numberless: set[int] | None = None
        tasks: list[int] = []
        for _ in range(ATTEMPTS):
            try:
                tasks = structures.tasks()
                numbered = structures.leaders()
            except GuestFault:
                # A list that is being changed may lead astray once; one that always does is reported below.
                context.guest.refresh()
                continue
            idle, listed = tasks[0], set(tasks)
            unlisted, unnumbered = numbered - listed, listed - numbered - {idle}
            hidden = unlisted if hidden is None else hidden & unlisted
            numberless = unnumbered if numberless is None else numberless & unnumbered
            if not hidden and not numberless:
                break
            context.guest.refresh()
        else:
            if hidden is None:
                structures.tasks()
                structures.leaders()
                findings.incomplete("the lists of processes could not be read")
        for task, where in [
            *((one, "the task list") for one in sorted(hidden or ())),
            *((one, "the process numbers") for one in sorted(numberless or ())),
        ]:
            self._hidden(context, findings, task, where)
        context.facts.tasks = tuple(tasks)
        self._inventory(context, findings, [*tasks[1:], *sorted(hidden or ())])

    def _hidden(self, context: CheckContext, findings: Findings, task: int, where: str) -> None:
        try:
            process = context.structures.task(task)
        except GuestFault:
            findings.add("process", f"a process that cannot be read is not in {where}", address=task)
            return
        detail = f"hidden: {process.name} (uid {process.uid}) is not in {where}"
        findings.add(f"process {process.pid}", detail, address=task)

    def _inventory(self, context: CheckContext, findings: Findings, tasks: list[int]) -> None:
        found = []
        for address in tasks[:PROCESS_LIMIT]:
            try:
                task = context.structures.task(address)
            except GuestFault:
                continue  # it ended meanwhile
            found.append(Process(task.pid, task.name, task.uid, task.executable))
        found.sort(key=lambda process: (process.pid, process.name))
        context.facts.processes = tuple(found)
        context.facts.processes_left_out = max(len(tasks) - PROCESS_LIMIT, 0)
