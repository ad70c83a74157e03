# SPDX-License-Identifier: Apache-2.0
"""No process is hidden, and what runs is listed.

Four views of the thread group leaders are compared. The task list and the process numbers of the initial
namespace must name the same ones. Whoever is in the tree of parents and children, runs on a CPU or waits for
one, must be on the task list: a process that was taken off both lists still needs a CPU to do something.

The views are read one after the other while processes come and go, so a disagreement counts only when every
reading has it about the same process: same place, same time of birth.

The inventory is what the guest says of its processes. NOT checked: tasks that none of the views has (one
that was taken off all of them and sleeps), threads of listed processes, credentials, and the code of
processes.

Sources: kernel/fork.c (copy_process), kernel/exit.c (__unhash_process), kernel/sched/sched.h (struct rq).
"""

from __future__ import annotations

import time

from nova_vmi_attest.evidence.measurement import Process
from nova_vmi_attest.introspection.checks.base import Check, CheckContext, Findings
from nova_vmi_attest.introspection.guest import GuestFault
from nova_vmi_attest.introspection.structures import Structures

ATTEMPTS = 6
SETTLE = 0.01  # seconds: a process that is being made or buried is no longer so after that
PROCESS_LIMIT = 4096
ODD_LIMIT = 1024
LIST, NUMBERS = "the task list", "the process numbers"
Odd = set[tuple[int, int, str]]  # address, time of birth, and where it is not


class Processes(Check):
    """See the module."""

    name = "processes"

    def examine(self, context: CheckContext, findings: Findings) -> None:
        """The views, then the inventory."""
        structures = context.structures
        odd: Odd | None = None
        tasks: list[int] = []
        unread: GuestFault | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(SETTLE)
                context.guest.refresh()
            try:
                now, tasks = _disagreements(structures)
            except GuestFault as fault:
                # A list that is being changed may lead astray once; one that always does is reported below.
                unread = fault
                continue
            odd = now if odd is None else odd & now
            if not odd:
                break
        if odd is None and unread is not None:
            findings.incomplete(f"the lists of processes cannot be read: {unread.message}")
        for task, _, where in sorted(odd or ()):
            self._hidden(context, findings, task, where)
        context.facts.tasks = tuple(tasks)
        hidden = {task for task, _, where in odd or () if where == LIST}
        self._inventory(context, [*tasks[1:], *sorted(hidden)])

    def _hidden(self, context: CheckContext, findings: Findings, task: int, where: str) -> None:
        try:
            process = context.structures.task(task)
        except GuestFault:
            findings.add("process", f"a process that cannot be read is not in {where}", address=task)
            return
        detail = f"hidden: {process.name} (uid {process.uid}) is not in {where}"
        findings.add(f"process {process.pid}", detail, address=task)

    def _inventory(self, context: CheckContext, tasks: list[int]) -> None:
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


def _disagreements(structures: Structures) -> tuple[Odd, list[int]]:
    """What one reading has, and the task list of that reading.

    :raises GuestFault: a view does not make sense, or one of its tasks is gone.
    """
    tasks = structures.tasks()
    numbered, active = structures.leaders(), structures.relatives() | structures.runnable()
    listed = set(tasks)
    unlisted = (numbered | active) - listed
    unnumbered = listed - numbered - {tasks[0]}
    odd = {(task, LIST) for task in unlisted} | {(task, NUMBERS) for task in unnumbered}
    return {(task, structures.born(task), where) for task, where in sorted(odd)[:ODD_LIMIT]}, tasks
