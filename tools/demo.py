# SPDX-License-Identifier: Apache-2.0
"""`make demo`: four real guests, one TPM, one guest altered from inside, and what everybody then sees.

Every statement that is printed is checked, and written to the report; the exit status is 0 only if all of
them came out as they must. What is started here is stopped here, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import nova_vmi_attest.cmd  # noqa: F401 - before Nova's classes choose the retired backend of oslo.service
from lab import kernels, report
from lab.deployment import Deployment
from lab.errors import LabError
from lab.hypervisor import Hypervisor, LibvirtGuest
from lab.placement import placement_questions
from lab.qemu import Backing
from lab.tpm import TPM_CC_QUOTE, SoftwareTpm
from rich.console import Console

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import AttestationResult, GuestResult, Verdict
from nova_vmi_attest.references.store import ReferenceStore

# What is altered: bytes in the middle of a function that prints /proc/net/tcp, so that the guest lives on.
SYMBOL, OFFSET, LENGTH = "tcp4_seq_show", 0x20, 4
SPARSE_GROWTH = 16 << 20
"""Bytes that the RAM file of the large guest may grow by while it is measured: the guest itself runs on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A guest of the demo."""

    name: str
    memory_mib: int
    backing: Backing
    cpu: str
    vcpus: int = 1


PLANS = (
    Plan("alice", 256, "file", "qemu64"),
    Plan("bob", 256, "file", "Skylake-Server", 2),
    Plan("carol", 256, "anonymous", "Haswell"),
    Plan("dave", 5120, "file", "EPYC-Milan"),
)
VICTIM = "bob"


@dataclass
class Demo:
    """The state of one run: what was printed, and whether it is what it must be."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        """Show a step with its duration."""
        begun = time.monotonic()
        with self.console.status(f"[bold]{number}[/] {title} …"):
            yield
        self.console.print(f"[bold cyan]{number}[/] {title} [dim]({time.monotonic() - begun:.1f} s)[/]")

    def expect(self, holds: bool, statement: str) -> None:
        """State something that must be so."""
        mark = "[green]✓[/]" if holds else "[bold red]✗[/]"
        self.console.print(f"  {mark} {statement}")
        if not holds:
            self.failures.append(statement)


def main() -> int:
    """Run the demo; the exit status says whether everything came out as stated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, default=Path("demo-report.json"), help="where the figures go")
    arguments = parser.parse_args()
    demo = Demo(Console(highlight=False, width=None if sys.stdout.isatty() else 132))
    if os.geteuid() != 0:
        demo.console.print("libvirtd and its guests need root: run `sudo make demo`")
        return 1
    # An interrupted demo stops what it started, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nova-vmi-attest-demo-")))
            run(demo, stack, directory)
    except (LabError, AttestError) as error:
        demo.console.print(f"[bold red]failed:[/] {error}")
        demo.failures.append(str(error))
    demo.figures["failures"] = demo.failures
    demo.figures["seconds"] = round(time.monotonic() - demo.started, 1)
    arguments.report.write_text(json.dumps(demo.figures, indent=2) + "\n")
    verdict = (
        "[bold red]not as stated[/]" if demo.failures else "[bold green]everything came out as stated[/]"
    )
    demo.console.print(f"{verdict} in {demo.figures['seconds']} s; the figures are in {arguments.report}")
    return 1 if demo.failures else 0


def run(demo: Demo, stack: contextlib.ExitStack, directory: Path) -> None:
    """The six steps."""
    with demo.step(0, "kernel package, initramfs and the module that will alter a kernel"):
        package = kernels.package()
        kernels.initramfs()

    with demo.step(1, "a software TPM with a manufactured endorsement key certificate is the host's TPM"):
        tpm = stack.enter_context(SoftwareTpm(directory / "tpm"))

    with demo.step(2, f"{len(PLANS)} guests boot through libvirt, emulated, with KASLR"):
        hypervisor = stack.enter_context(Hypervisor(directory / "libvirt"))
        with ThreadPoolExecutor(len(PLANS)) as pool:
            guests = {guest.name: guest for guest in pool.map(lambda plan: boot(hypervisor, plan), PLANS)}
    names = {guest.uuid: guest.name for guest in guests.values()}

    with demo.step(3, "the kernel package becomes a reference, the authority enrols the host"):
        deployment = stack.enter_context(Deployment(directory / "cloud", tpm, hypervisor.uri))
        deployment.prepare()
        deployment.approve(package)
        deployment.register_host()
        deployment.start()
        deployment.wait_ready()

    large = next(plan.name for plan in PLANS if plan.memory_mib > 4096)
    occupied = allocated(guests[large])
    with demo.step(4, "a round: one nonce, one batch, one quote for all guests"):
        first = counted_round(demo, deployment, tpm, names)
    demo.console.print(report.table(first, names))
    for guest in first.guests:
        demo.expect(
            guest.verdict is Verdict.TRUSTED and guest.unexplained_bytes == 0,
            f"{names[guest.guest]} is {guest.verdict}: {guest.code_bytes:,} bytes of code, "
            f"{guest.unexplained_bytes} unexplained" + "".join(f"; {line}" for line in report.reasons(guest)),
        )
    demo.expect(len(first.guests) == len(PLANS), f"{len(first.guests)} guests have a verdict")
    grown = allocated(guests[large]) - occupied
    demo.figures["sparse_ram_growth_bytes"] = grown
    demo.expect(
        grown <= SPARSE_GROWTH, f"measuring {large} filled {grown / 2**20:.1f} MiB of its 5 GiB sparse RAM"
    )

    with demo.step(5, f"a module inside {VICTIM} patches {SYMBOL}, and unloads itself"):
        altered = tamper(guests[VICTIM], deployment)
        second = counted_round(demo, deployment, tpm, names)
    demo.console.print(report.table(second, names))
    judge_alteration(demo, second, names, altered)

    with demo.step(6, "the scheduler is asked, and a tenant checks the proof offline"):
        answers = placement_questions(deployment, names, VICTIM)
        proof = tenant_proof(deployment, directory / "tenant", guests["alice"])
    demo.figures["filter"] = answers
    for answer in answers:
        demo.expect(
            answer["passes"] == answer["expected"], f"filter: {answer['question']}: {answer['answer']}"
        )
    demo.figures["tenant_proof"] = proof
    demo.expect(proof["valid"], f"tenant: proof of alice is valid, all {proof['checks']} checks passed")
    demo.expect(
        proof["forgery_refused"], "tenant: the same proof with one byte of its measurement changed is refused"
    )


def boot(hypervisor: Hypervisor, plan: Plan) -> LibvirtGuest:
    """Start one guest and wait until it is up."""
    guest = hypervisor.start(
        plan.name, memory_mib=plan.memory_mib, backing=plan.backing, cpu=plan.cpu, vcpus=plan.vcpus
    )
    return guest.wait_up()


def counted_round(
    demo: Demo, deployment: Deployment, tpm: SoftwareTpm, names: dict[UUID, str]
) -> AttestationResult:
    """One round, with the quotes that the TPM made meanwhile by its own count."""
    before = tpm.count(TPM_CC_QUOTE)
    result = deployment.round()
    quotes = tpm.count(TPM_CC_QUOTE) - before
    demo.figures.setdefault("rounds", []).append(report.figures(result, names, quotes))
    demo.expect(quotes == 1, f"the TPM made {quotes} quote for {len(result.guests)} guests")
    demo.expect(result.host.verdict is Verdict.TRUSTED, f"host {result.host.host} is {result.host.verdict}")
    return result


def allocated(guest: LibvirtGuest) -> int:
    """Bytes of storage behind the guest's RAM file."""
    return guest.ram_file().stat().st_blocks * 512


def tamper(guest: LibvirtGuest, deployment: Deployment) -> bytes:
    """Alter the function from inside the guest; returns the bytes that were written."""
    store = ReferenceStore(Path(deployment.conf.references.path))
    vmlinux = store.open(store.manifests()[0].digest).vmlinux
    at = vmlinux.offset_of(SYMBOL) + OFFSET
    altered = bytes(byte ^ 0xFF for byte in vmlinux.image[at : at + LENGTH].tolist())
    said = guest.shell(
        f"insmod /lib/modules/tamper.ko address=0x$(grep ' {SYMBOL}$' /proc/kallsyms | cut -d' ' -f1)"
        f" offset={OFFSET:#x} bytes={altered.hex()}; lsmod | grep -c tamper"
    )
    if not said.rstrip().endswith("0"):
        raise LabError(f"the module did not do its work and leave: {said}")
    return altered


def judge_alteration(demo: Demo, result: AttestationResult, names: dict[UUID, str], altered: bytes) -> None:
    """The altered guest is named with symbol, offset and bytes; nobody else is concerned."""
    by_name: dict[str, GuestResult] = {names[guest.guest]: guest for guest in result.guests}
    victim = by_name[VICTIM]
    for line in report.reasons(victim):
        demo.console.print(f"  [bold red]{VICTIM}[/] {line}")
    named = [
        reason
        for reason in victim.reasons
        if (reason.check, reason.symbol, reason.offset, reason.length) == ("text", SYMBOL, OFFSET, LENGTH)
        and altered.hex() in reason.detail
    ]
    demo.expect(victim.verdict is Verdict.UNTRUSTED, f"{VICTIM} is {victim.verdict}")
    demo.expect(
        len(named) == 1, f"the reason names {SYMBOL}+{OFFSET:#x} and the {LENGTH} bytes {altered.hex()}"
    )
    demo.expect(
        victim.unexplained_bytes == LENGTH, f"{victim.unexplained_bytes} bytes of {VICTIM} are unexplained"
    )
    others = [guest for name, guest in by_name.items() if name != VICTIM]
    demo.expect(
        all(guest.verdict is Verdict.TRUSTED for guest in others),
        f"the other {len(others)} guests stay trusted",
    )


def tenant_proof(deployment: Deployment, directory: Path, guest: LibvirtGuest) -> dict[str, Any]:
    """What the owner of a guest does, with two files: the proof, and the authority's certificate."""
    directory.mkdir()
    proof, certificate = directory / "proof.json", directory / "authority.pem"
    certificate.write_bytes(deployment.authority_certificate.read_bytes())
    exported = json.loads(deployment.manage("proof", "export", "--json", str(guest.uuid), str(proof)))
    command = ["proof", "verify", "--json", "--ca", str(certificate), "--nonce", exported["nonces"][0]]
    shown = json.loads(deployment.manage(*command, str(proof)))
    checks = shown["measurement"]["integrity"]["checks"]
    forged = directory / "forged.json"
    forged.write_bytes(proof.read_bytes().replace(b'"unexplained_bytes":0', b'"unexplained_bytes":1'))
    refused = deployment.refuses(*command, str(forged))
    return {
        "guest": shown["guest"],
        "host": shown["host"],
        "nonce": exported["nonces"][0],
        "bytes": proof.stat().st_size,
        "valid": shown["guest"] == str(guest.uuid) and all(check["outcome"] == "passed" for check in checks),
        "checks": len(checks),
        "forgery_refused": "merkle" in refused.lower()
        or "root" in refused.lower()
        or "leaf" in refused.lower(),
        "refusal": refused,
    }


if __name__ == "__main__":
    sys.exit(main())
