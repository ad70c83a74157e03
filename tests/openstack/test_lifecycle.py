# SPDX-License-Identifier: Apache-2.0
"""Everything that can happen to a server, driven through Nova: where it is measured, and what its owner sees.

One server goes through all of it, for a boot is what takes the time; the second one is there for the reboot
of its host. What was observed is the table of doc/source/reference/lifecycle.rst.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.cloud.cloud import Cloud
from lab.cloud.images import DISK_IMAGE, KERNEL_IMAGE
from lab.cloud.waiting import until
from lab.errors import LabError
from lab.hypervisor import stand_in
from openstack import exceptions
from openstack.compute.v2.server import Server

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.evidence.result import Verdict
from tests.openstack import lifecycle_table
from tests.openstack.conftest import Boot
from tests.openstack.lifecycle_table import FILE, Row

REWRITE = "NOVA_VMI_ATTEST_LIFECYCLE_TABLE"
PATIENCE = 90.0
NAMES = {"compute-1": "first", "compute-2": "second"}
FIRST, SECOND = NAMES
# Reasons of a verdict on a guest that its host did not show.
NOT_SHOWN = frozenset({"guest_missing", "placement_unchecked"})

FOREIGN = """<domain type='qemu'>
  <name>foreign</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices>
</domain>"""


class Story:
    """What happens in the cloud, and the rows of the table that it makes."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.compute = cloud.admin.compute
        self.rows: list[Row] = []
        conf = configuration.load(["--config-file", str(cloud.attestation.file)], "test")
        self.verifiers = messaging.VerifierClient(messaging.get_transport(conf), timeout=30)

    def then(self, operation: str, server: Server, status: str, host: str, shown: bool) -> None:
        """Wait until an operation is over and its host's evidence is newer, then note what there is.

        ``shown``: the guest is to be measured on that host and trusted; otherwise nobody measures it, and
        its verdict is unknown.
        """
        self.cloud.wait(server, status, host=host if status != "SHELVED_OFFLOADED" else "")
        place = f" on {NAMES[host]}" if status != "SHELVED_OFFLOADED" else ""
        expected = Row(
            operation,
            f"{status}{place}",
            NAMES[host] if shown else "no host",
            Verdict.TRUSTED if shown else Verdict.UNKNOWN,
        )
        over = int(time.time())
        # Sooner than by the verifier's own interval; it may refuse when it was asked just now.
        with contextlib.suppress(messaging.RefusedError):
            self.verifiers.challenge(host)
        self.note(expected, lambda: self.fresh(host, over) and self.observed(operation, server))

    def note(self, expected: Row, observe: Callable[[], Row | bool]) -> None:
        """Wait until this is observed; what is observed is noted, whatever it is."""
        started, seen = time.monotonic(), None
        with contextlib.suppress(LabError):
            until(lambda: (seen := observe()) == expected, expected.operation, PATIENCE)
        seen = observe()
        print(f"{expected.operation}: {time.monotonic() - started:.1f} s until {seen}")
        assert seen == expected
        self.rows.append(expected)

    def fresh(self, host: str, since: int) -> bool:
        """Whether the newest result of a host is no older than this."""
        newest = self.cloud.results.newest(host)
        return newest is not None and newest.issued >= since

    def observed(self, operation: str, server: Server) -> Row:
        """What Nova, the evidence and the server's owner say now."""
        seen = self.cloud.server(server)
        place = f" on {NAMES[seen.compute_host]}" if seen.compute_host else ""
        shown = self.cloud.user("alpha").compute.get_server(server.id).metadata
        return Row(operation, f"{seen.status}{place}", self.measured(server.id), shown["trust:verdict"])

    def measured(self, guest: str) -> str:
        """The hosts whose newest evidence shows a guest, and which have agents."""
        hosts = [
            NAMES[one.host]
            for one in self.cloud.results.guests()
            if str(one.guest) == guest
            and NOT_SHOWN.isdisjoint(reason.check for reason in one.reasons)
            and self.cloud.computes[one.host].agent.running
        ]
        return " and ".join(sorted(hosts)) or "no host"

    def qemu(self, server: Server) -> int:
        """Process id of a server's QEMU."""
        host = self.cloud.host_of(server)
        with host.libvirt() as connection:
            name = connection.lookupByUUIDString(server.id).name()
        return int((stand_in(host.directory, "/run") / "libvirt" / "qemu" / f"{name}.pid").read_text())

    def certificates(self) -> list[str]:
        """Digests of the certificates of both hosts' attestation keys."""
        paths = sorted(self.cloud.layout.directory.glob("compute-*/**/ak.pem"))
        assert len(paths) == len(NAMES)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def story(cloud: Cloud) -> Iterator[Story]:
    story = Story(cloud)
    yield story
    for name in (f"libvirtd-{SECOND}", f"swtpm-{SECOND}", f"agent-{SECOND}", f"nova-compute-{SECOND}"):
        if not cloud.processes.alive(name):
            cloud.processes.restart(name)
    force_down(cloud, False)


def force_down(cloud: Cloud, down: bool) -> None:
    """Tell Nova that the second host is down for good, or no longer."""
    service = next(iter(cloud.admin.compute.services(binary="nova-compute", host=SECOND)))

    def told() -> bool:
        # A host that is back has to clean up after its evacuated servers first.
        with contextlib.suppress(exceptions.BadRequestException):
            cloud.admin.compute.update_service_forced_down(service, SECOND, "nova-compute", down)
            return True
        return False

    until(told, "Nova to agree", PATIENCE)


def test_every_operation(story: Story, boot: Boot) -> None:
    server = boot("everything", image=DISK_IMAGE, host=FIRST)
    story.then("create", server, "ACTIVE", FIRST, True)
    on_one_host(story, server)
    between_hosts(story, server)
    other = boot("patient", image=KERNEL_IMAGE, host=SECOND)
    faults(story, server)
    end_of_a_host(story, server, other)
    story.cloud.delete(server)
    gone = Row("delete", "no such server", "no host", "none")
    story.note(gone, lambda: Row("delete", "no such server", story.measured(server.id), "none"))
    if os.environ.get(REWRITE):
        FILE.write_text(lifecycle_table.render(story.rows))
    assert lifecycle_table.parse(FILE.read_text()) == story.rows


def on_one_host(story: Story, server: Server) -> None:
    cloud, compute = story.cloud, story.compute
    # The guest has no daemon that hears ACPI: it is told to switch itself off, as one would do.
    cloud.console(server).shell("(sleep 2; poweroff -f) > /dev/null 2>&1 &")
    compute.reboot_server(server, "SOFT")
    story.then("soft reboot", server, "ACTIVE", FIRST, True)
    compute.reboot_server(server, "HARD")
    story.then("hard reboot", server, "ACTIVE", FIRST, True)
    cloud.console(server).wait_up()
    cloud.console(server).shell("(sleep 1; reboot -f) > /dev/null 2>&1 &")
    until(lambda: cloud.console(server).text().count("GUEST-UP") == 2, "the reboot", PATIENCE)
    story.then("reboot by the guest itself", server, "ACTIVE", FIRST, True)
    compute.stop_server(server)
    story.then("stop", server, "SHUTOFF", FIRST, False)
    compute.start_server(server)
    story.then("start", server, "ACTIVE", FIRST, True)
    compute.pause_server(server)
    story.then("pause", server, "PAUSED", FIRST, True)
    compute.unpause_server(server)
    story.then("unpause", server, "ACTIVE", FIRST, True)
    compute.suspend_server(server)
    story.then("suspend", server, "SUSPENDED", FIRST, False)
    compute.resume_server(server)
    story.then("resume", server, "ACTIVE", FIRST, True)
    compute.rebuild_server(server, server.image.id)
    story.then("rebuild", server, "ACTIVE", FIRST, True)


def between_hosts(story: Story, server: Server) -> None:
    cloud, compute = story.cloud, story.compute
    compute.shelve_server(server)
    story.then("shelve", server, "SHELVED_OFFLOADED", FIRST, False)
    compute.unshelve_server(server, host=FIRST)
    story.then("unshelve", server, "ACTIVE", FIRST, True)
    compute.resize_server(server, compute.find_flavor("medium").id)
    story.then("resize", server, "VERIFY_RESIZE", SECOND, True)
    compute.confirm_server_resize(server)
    story.then("confirm the resize", server, "ACTIVE", SECOND, True)
    compute.migrate_server(server)
    story.then("cold migrate", server, "VERIFY_RESIZE", FIRST, True)
    compute.confirm_server_resize(server)
    story.then("confirm the migration", server, "ACTIVE", FIRST, True)

    cloud.console(server).wait_up()
    certificates, before = story.certificates(), int(time.time())
    compute.live_migrate_server(server, host=SECOND, block_migration="auto")
    story.then("live migrate", server, "ACTIVE", SECOND, True)
    assert story.certificates() == certificates
    changes = [one for one in cloud.results.history(server.id) if one.at >= before]
    # The verdict came along: nobody who looked saw the guest untrusted, or unknown on its new host.
    assert {one.verdict for one in changes if one.host == SECOND} <= {Verdict.TRUSTED}


def faults(story: Story, server: Server) -> None:
    host = story.cloud.computes[SECOND]
    os.kill(story.qemu(server), signal.SIGKILL)
    story.then("crash of the guest's QEMU", server, "SHUTOFF", SECOND, False)
    story.compute.start_server(server)
    story.then("start after the crash", server, "ACTIVE", SECOND, True)
    host.agent.restart()
    story.then("restart of the agent", server, "ACTIVE", SECOND, True)
    host.libvirtd.restart()
    story.then("restart of libvirtd", server, "ACTIVE", SECOND, True)

    stranger = uuid.uuid4()
    operation = "a domain that Nova does not know"
    with host.libvirt() as connection:
        domain = connection.createXML(FOREIGN.format(uuid=stranger), 0)
        try:
            story.note(
                Row(operation, "no such server", "second", "unknown: not_known_to_nova"),
                lambda: Row(
                    operation, "no such server", story.measured(str(stranger)), verdict(story, stranger)
                ),
            )
        finally:
            domain.destroy()


def verdict(story: Story, guest: uuid.UUID) -> str:
    """What operators see of a guest that has no owner."""
    found = next((one for one in story.cloud.results.guests(SECOND) if one.guest == guest), None)
    return "none" if found is None else f"{found.verdict}: {found.reasons[0].check if found.reasons else ''}"


def end_of_a_host(story: Story, server: Server, other: Server) -> None:
    """The second host loses its power; one of its servers is evacuated, the other one waits."""
    cloud, host = story.cloud, story.cloud.computes[SECOND]
    lost = [story.qemu(one) for one in (server, other)]
    for service in (host.compute, host.agent, host.libvirtd):
        service.stop(signal.SIGKILL)
    for pid in lost:
        os.kill(pid, signal.SIGKILL)
    cloud.processes.stop(f"swtpm-{SECOND}")
    force_down(cloud, True)
    story.compute.evacuate_server(server, host=FIRST)
    # It stays switched off (compute API 2.95): what to start, and when, is its owner's decision.
    # What the lost host said last is still valid, and says nothing of a server without memory.
    story.then("evacuate", server, "SHUTOFF", FIRST, False)
    story.compute.start_server(server)
    story.then("start after the evacuation", server, "ACTIVE", FIRST, True)

    cloud.processes.restart(f"swtpm-{SECOND}")
    for service in (host.libvirtd, host.agent, host.compute):
        service.start()
    force_down(cloud, False)
    story.then("reboot of the host", other, "SHUTOFF", SECOND, False)
    until_up(cloud)
    story.compute.start_server(other)
    story.then("start after the reboot of the host", other, "ACTIVE", SECOND, True)
    # The copy that the host still had is gone, too.
    assert story.measured(server.id) == "first"


def until_up(cloud: Cloud) -> None:
    """Wait until Nova knows that the second host is back."""

    def up() -> bool:
        services: Any = cloud.admin.compute.services(binary="nova-compute", host=SECOND)
        return all(one.state == "up" for one in services)

    until(up, "nova-compute to be up", PATIENCE)
