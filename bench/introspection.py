# SPDX-License-Identifier: Apache-2.0
"""What measuring costs: time against reading the same bytes, bytes touched, and memory for many guests."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import numpy as np
from lab.hypervisor import LibvirtGuest

from bench.guests import OneReference, open_guest
from bench.harness import Row, compare, row, timed
from nova_vmi_attest.introspection.checks.base import Check
from nova_vmi_attest.introspection.locate import find_kernel
from nova_vmi_attest.introspection.measure import Measurer
from nova_vmi_attest.introspection.memory.base import GuestMemory
from nova_vmi_attest.kernel.reference import Reference

MANY = 64
FEW = 5  # runs of what takes long


def warm_pass(guest: LibvirtGuest, reference: Reference) -> Iterator[Row]:
    """A pass over a guest whose kernel is known, against one numpy comparison of as many bytes.

    The guest runs all the while, and pass and comparison take turns. What is compared begins where the kernel
    does: nearly all of it are bytes that the pass verifies too.
    """
    memory = open_guest(guest.xml())
    first = [timed(lambda: _measure_anew(guest, reference, memory)) for _ in range(FEW)]
    measurer = Measurer(OneReference(reference))
    measurer.measure(guest.uuid, memory, memory.name)
    measurement = measurer.measure(guest.uuid, memory, memory.name)
    verified = sum(check.bytes_verified for check in measurement.integrity.checks)
    start, size = find_kernel(memory, [reference.vmlinux]).physical_base, verified // 8 * 8
    copy = memory.view(start, size).copy()
    for name, unit, kind in (("warm_pass_vs_read", "bytes", "u1"), ("warm_pass_vs_word_read", "words", "u8")):
        yield compare(
            name,
            lambda: measurer.measure(guest.uuid, memory, memory.name),
            f"numpy.array_equal of as many {unit} as it verifies: {size:,} bytes",
            lambda kind=kind: np.array_equal(memory.view(start, size).view(kind), copy.view(kind)),  # type: ignore[misc]
        )
    yield row("first_pass", first, "ms")
    for name, values in checks_of(measurer, guest.uuid, memory).items():
        yield row(f"warm_pass_{name}", values, "ms")
    yield row("ram_touched", [measurement.observation.bytes_read], "bytes")
    memory.close()


def _measure_anew(guest: LibvirtGuest, reference: Reference, memory: GuestMemory) -> None:
    Measurer(OneReference(reference)).measure(guest.uuid, memory, memory.name)


def checks_of(measurer: Measurer, guest: UUID, memory: GuestMemory, runs: int = 15) -> dict[str, list[float]]:
    """Milliseconds of each check in warm passes."""
    spent: dict[str, list[float]] = {}
    with watched(spent):
        for _ in range(runs):
            measurer.measure(guest, memory, memory.name)
    return spent


@contextmanager
def watched(spent: dict[str, list[float]]) -> Iterator[None]:
    """Note the time of every check while the block runs."""
    original = Check.run

    def run(self: Check, context: object) -> object:
        result: list[object] = []
        spent.setdefault(self.name, []).append(timed(lambda: result.append(original(self, context))))  # type: ignore[arg-type]
        return result[0]

    Check.run = run  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Check.run = original  # type: ignore[method-assign]


def agent_memory(guest: LibvirtGuest, references: Path, directory: Path) -> Iterator[Row]:
    """Private memory of a process that measures 1 and 64 guests on one kernel.

    The 64 are one guest under 64 names, each with its own reader and its own state: what a host's agent
    would hold.
    """
    xml = directory / "guest.xml"
    xml.write_text(guest.xml())
    pairs = [tuple(_footprint(references, xml, count) for count in (1, MANY)) for _ in range(FEW)]
    one, many = ([pair[place] for pair in pairs] for place in (0, 1))
    yield row("agent_memory_1_guest", one, "MiB")
    yield row(
        f"agent_memory_{MANY}_guests",
        many,
        "MiB",
        "the same for 1 guest: the reference is shared",
        statistics.median(b / a for a, b in pairs),
    )
    yield row("agent_memory_per_further_guest", [(b - a) / (MANY - 1) for a, b in pairs], "MiB")


def _footprint(references: Path, xml: Path, guests: int) -> float:
    command = [sys.executable, "-m", "bench.footprint", str(references), str(xml), str(guests)]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
