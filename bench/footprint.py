# SPDX-License-Identifier: Apache-2.0
"""A process of its own that measures one guest under many names and prints its private memory in MiB."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from uuid import uuid4

from bench.guests import OneReference, load, open_guest
from nova_vmi_attest.introspection.measure import Measurer, passed
from nova_vmi_attest.references.store import ReferenceStore


def private_mebibytes() -> float:
    """Memory of this process that it shares with nobody: guest RAM that it maps is not its own."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def main() -> None:
    """Measure one guest under many names, and print the private memory of this process in MiB."""
    references, xml, count = Path(sys.argv[1]), Path(sys.argv[2]).read_text(), int(sys.argv[3])
    measurer = Measurer(OneReference(load(ReferenceStore(references))))
    held = [(uuid4(), open_guest(xml)) for _ in range(count)]
    for guest, memory in held:
        measurement = measurer.measure(guest, memory, memory.name)
        if not passed(measurement):
            raise SystemExit(f"the guest was not measured: {measurement.integrity}")
    print(json.dumps(private_mebibytes()))


if __name__ == "__main__":
    main()
