# SPDX-License-Identifier: Apache-2.0
"""``make bench``: prints a table and writes ``bench/results.json``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import nova_vmi_attest.cmd  # noqa: F401 - chooses how oslo.service runs before anything else does
from lab import kernels
from lab.deployment import Deployment
from lab.hypervisor import Hypervisor
from lab.tpm import SoftwareTpm
from rich.console import Console

from bench import harness, introspection, rounds, scheduler
from bench.guests import load
from nova_vmi_attest.references.store import ReferenceStore

GUESTS = 4


def main() -> None:
    """Boot what is measured, measure it, and say what came of it."""
    console = Console(highlight=False, stderr=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nova-vmi-attest-bench-")))
        with console.status("a software TPM and four guests start …"):
            package = kernels.package()
            tpm = stack.enter_context(SoftwareTpm(directory / "tpm"))
            hypervisor = stack.enter_context(Hypervisor(directory / "libvirt"))
            with ThreadPoolExecutor(GUESTS) as pool:
                guests = list(pool.map(lambda n: hypervisor.start(f"guest-{n}").wait_up(), range(GUESTS)))
        with console.status("the host is enrolled …"):
            deployment = stack.enter_context(Deployment(directory / "cloud", tpm, hypervisor.uri))
            deployment.prepare()
            deployment.approve(package)
            deployment.register_host()
            rows = list(rounds.quote(tpm))
            deployment.start()
            deployment.wait_ready()
        with console.status("rounds …"):
            rows += rounds.rounds(deployment, tpm, GUESTS)
        deployment.stop()
        references = Path(deployment.conf.references.path)
        # The other guests must not run meanwhile: on two cores they would be measured as well.
        for guest in guests[1:]:
            guest.destroy()
        with console.status("warm passes …"):
            reference = load(ReferenceStore(references))
            rows += introspection.warm_pass(guests[0], reference)
        with console.status("memory …"):
            rows += introspection.agent_memory(guests[0], references, directory)
    with console.status("the scheduler …"):
        rows += scheduler.scheduler()
    harness.present(rows, Path(__file__).with_name("results.json"))


if __name__ == "__main__":
    main()
