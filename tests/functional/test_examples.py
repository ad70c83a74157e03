# SPDX-License-Identifier: Apache-2.0
"""The example plug-ins of the manual install, are found, and work on a real guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab import REPOSITORY, kernels
from lab.hypervisor import Hypervisor

from nova_vmi_attest.references.store import ReferenceStore

# Runs where the plug-ins are installed: a guest is measured live, then from the dump in the locker.
PROBE = """
import json, sys, uuid
from nova_vmi_attest.introspection.measure import Measurer
from nova_vmi_attest.introspection.memory.domain import parse_domain
from nova_vmi_attest.introspection.memory.select import choose, open_memory
from nova_vmi_attest.references.store import ReferenceStore

class Provider:
    def __init__(self, reference): self.reference = reference
    def candidates(self): return (self.reference,)
    def missing(self, banner): raise LookupError(banner)

store = ReferenceStore(sys.argv[1])
domain = parse_domain(open(sys.argv[2]).read())
measurer = Measurer(Provider(store.open(store.manifests()[0].digest)))
memory = open_memory(domain, sys.argv[3] or None)
measurement = measurer.measure(domain.uuid, memory, memory.name)
print(json.dumps({
    "chosen": choose(domain).reader,
    "reader": measurement.observation.reader,
    "checks": {check.check: str(check.outcome) for check in measurement.integrity.checks},
    "findings": [one.detail for check in measurement.integrity.checks for one in check.findings],
}))
"""

# Runs where the plug-ins are installed: a guest becomes untrusted, and the configured response is asked.
RESPONSE_PROBE = """
import json, sys, uuid
from nova_vmi_attest import conf as configuration
from nova_vmi_attest.evidence.result import Reason, Verdict
from nova_vmi_attest.records.changes import NumberedChange
from nova_vmi_attest.records.results import Change
from nova_vmi_attest.verifier.responses.base import Tools
from nova_vmi_attest.verifier.responses.plugins import Plugins

plugins = Plugins(configuration.load(["--config-file", sys.argv[1]]), Tools(None, None))
guest = str(uuid.UUID(int=1))
reasons = (Reason("text", "sys_read", 4, 2, "altered"),)
change = NumberedChange(7, Change(5, "guest", guest, "h", Verdict.TRUSTED, Verdict.UNTRUSTED, reasons))
print(json.dumps([plugins.call(name, change) for name in plugins.names_for(change)]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where pip puts the plug-ins, beside nothing else."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = REPOSITORY / "doc" / "examples" / "attest-plugins"
    built = tmp_path / "source"
    subprocess.run(["cp", "-r", str(source), str(built)], check=True)
    subprocess.run([*command, "--target", str(target), str(built)], check=True)
    return target


def test_the_plugins_measure_a_guest(site: Path, tmp_path: Path) -> None:
    references, xml, locker = tmp_path / "references", tmp_path / "guest.xml", tmp_path / "locker"
    ReferenceStore(references).import_package(kernels.package())
    locker.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "EVIDENCE_LOCKER": str(locker)}

    def probe(reader: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(references), str(xml), reader],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with Hypervisor(tmp_path / "libvirt") as hypervisor:
        guest = hypervisor.start("plugins").wait_up()
        xml.write_text(guest.xml())
        sound = probe("")
        assert (sound["chosen"], sound["reader"]) == ("ram_file", "ram_file")
        assert set(sound["checks"].values()) == {"passed"}
        assert "taint" in sound["checks"]

        # Loading it taints the kernel; without arguments it alters nothing and does not stay.
        guest.shell("insmod /lib/modules/tamper.ko")
        guest.dump(locker / f"{guest.uuid}.core")
        tainted = probe("evidence_locker")
    assert tainted["reader"] == "evidence_locker"
    assert tainted["checks"]["taint"] == "failed"
    assert "a module from outside the kernel tree was loaded" in tainted["findings"]


def test_the_response_is_found_and_asked(site: Path, tmp_path: Path) -> None:
    config, tickets = tmp_path / "test.conf", tmp_path / "tickets"
    config.write_text("[responses]\non_guest_untrusted = ticket\n")
    tickets.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "TICKETS": str(tickets)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", RESPONSE_PROBE, str(config)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == ["ticket 7.json was written"]
    (ticket,) = tickets.iterdir()
    assert json.loads(ticket.read_text())["why"] == ["text sys_read altered"]
