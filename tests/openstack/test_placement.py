# SPDX-License-Identifier: Apache-2.0
"""Nova's word and the hosts' evidence in a real cloud: the trait that follows verdicts, guests that are
hidden, domains that Nova did not make, and decoys.
"""

from __future__ import annotations

import contextlib
import datetime
import time
import uuid
from collections.abc import Iterator

import libvirt
import pytest
from lab.cloud.cloud import Cloud
from lab.cloud.waiting import until
from sqlalchemy import update

from nova_vmi_attest.db.models import ResultRow
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.results import StoredGuest
from tests.openstack.conftest import Boot

TRAIT = "CUSTOM_VMI_ATTESTED"
HOSTS = {"compute-1", "compute-2"}

DOMAIN = """<domain type='qemu'><name>stranger</name><uuid>{}</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os></domain>"""


def traits(cloud: Cloud, host: str) -> set[str]:
    """The traits of a host's compute node; its name in Placement is the host's."""
    placement = cloud.admin.placement
    (provider,) = placement.resource_providers(name=host)
    answer = placement.get(f"/resource_providers/{provider.id}/traits", microversion="1.6")
    return set(answer.json()["traits"])


def having(cloud: Cloud) -> set[str]:
    return {host for host in HOSTS if TRAIT in traits(cloud, host)}


def end_result(cloud: Cloud, host: str) -> None:
    """Let a host's newest result end now, as it does by itself some minutes later."""
    with Database(cloud.layout.database("attest")).writer() as session:
        session.execute(update(ResultRow).where(ResultRow.host == host).values(expires=int(time.time())))


@contextlib.contextmanager
def domain(cloud: Cloud, host: str, identifier: uuid.UUID) -> Iterator[None]:
    """A domain that was started behind Nova's back."""
    with cloud.computes[host].libvirt() as connection:
        started: libvirt.virDomain = connection.createXML(DOMAIN.format(identifier))
        try:
            yield
        finally:
            started.destroy()


def told(cloud: Cloud, host: str, identifier: uuid.UUID, check: str) -> StoredGuest:
    """Wait until a host's result says this of a guest before anything else."""

    def said() -> StoredGuest | None:
        found = [item for item in cloud.results.guests(host) if item.guest == identifier]
        return found[0] if found and found[0].reasons and found[0].reasons[0].check == check else None

    found = until(said, f"{check} of {identifier} by {host}", 60)
    assert found is not None
    return found


def noted(cloud: Cloud, host: str, check: str) -> set[str]:
    newest = cloud.results.newest(host)
    return {reason.symbol for reason in newest.reasons if reason.check == check} if newest else set()


def gone(cloud: Cloud, host: str, identifier: uuid.UUID) -> bool:
    return identifier not in {item.guest for item in cloud.results.guests(host)}


@pytest.fixture
def demanding(cloud: Cloud) -> Iterator[str]:
    """A flavor that asks for attested hosts by the trait alone."""
    flavor = cloud.admin.compute.create_flavor(name="attested", ram=192, vcpus=1, disk=1)
    specs = {f"trait:{TRAIT}": "required", "trust:host": "ignored", "trust:guest": "ignored"}
    cloud.admin.compute.create_flavor_extra_specs(flavor, specs)
    yield "attested"
    cloud.admin.compute.delete_flavor(flavor)


def test_the_trait_is_lost_with_the_agent_and_comes_back_with_it(
    cloud: Cloud, boot: Boot, demanding: str
) -> None:
    until(lambda: having(cloud) == HOSTS, "both hosts to have the trait", 60)
    others = {host: traits(cloud, host) - {TRAIT} for host in HOSTS}
    cloud.computes["compute-2"].agent.stop()
    try:
        end_result(cloud, "compute-2")
        until(lambda: having(cloud) == {"compute-1"}, "the host without an agent to lose the trait", 30)
        placed = [boot(f"demanding-{number}", flavor=demanding, up=False) for number in range(2)]
        assert [cloud.server(server).compute_host for server in placed] == ["compute-1"] * 2
    finally:
        cloud.computes["compute-2"].agent.start()
    until(lambda: having(cloud) == HOSTS, "the trait to come back", 60)
    assert {host: traits(cloud, host) - {TRAIT} for host in HOSTS} == others


def test_a_restart_of_nova_compute_keeps_the_trait_and_makes_no_write(cloud: Cloud, boot: Boot) -> None:
    until(lambda: having(cloud) == HOSTS, "both hosts to have the trait", 60)
    log = cloud.layout.logs / "attest-verifier.log"
    before = log.read_text().count(f"the trait {TRAIT}")
    cloud.computes["compute-1"].compute.restart()
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")

    def reported() -> bool:
        (service,) = cloud.admin.compute.services(host="compute-1", binary="nova-compute")
        return bool(service.state == "up" and service.updated_at > started)

    until(reported, "nova-compute to be there again", 60)
    # nova-compute reports its resources when it starts, and again for each server that it takes.
    boot("after", host="compute-1", up=False)
    assert having(cloud) == HOSTS
    assert log.read_text().count(f"the trait {TRAIT}") == before


def test_a_domain_that_nova_did_not_make_is_reported_and_goes_with_its_end(cloud: Cloud) -> None:
    stranger = uuid.uuid4()
    with domain(cloud, "compute-1", stranger):
        found = told(cloud, "compute-1", stranger, "not_known_to_nova")
        assert found.verdict is Verdict.UNKNOWN
        assert cloud.host_trusted("compute-1")
    until(lambda: gone(cloud, "compute-1", stranger), "the domain to be forgotten", 60)


def test_a_decoy_on_another_host_changes_no_verdict(cloud: Cloud, boot: Boot) -> None:
    server = boot("genuine", host="compute-1")
    cloud.wait_verdict(server)
    with domain(cloud, "compute-2", uuid.UUID(server.id)):
        until(lambda: server.id in noted(cloud, "compute-2", "not_placed_here"), "the decoy to be noted", 60)
        assert gone(cloud, "compute-2", uuid.UUID(server.id))
        assert cloud.user("alpha").compute.get_server(server.id).metadata["trust:verdict"] == "trusted"
    until(lambda: not noted(cloud, "compute-2", "not_placed_here"), "the note to go", 60)


def test_a_guest_that_its_host_does_not_show_is_missed(cloud: Cloud, boot: Boot) -> None:
    """Nova is kept from noticing that the guest ended, as a host that hides it would keep it."""
    server = boot("hidden", host="compute-1")
    cloud.wait_verdict(server)
    cloud.computes["compute-1"].compute.stop()
    try:
        with cloud.computes["compute-1"].libvirt() as connection:
            connection.lookupByUUIDString(server.id).destroy()
        told(cloud, "compute-1", uuid.UUID(server.id), "guest_missing")
        seen = cloud.user("alpha").compute.get_server(server.id)
        assert (seen.status, seen.metadata["trust:verdict"]) == ("ACTIVE", "unknown")
    finally:
        cloud.computes["compute-1"].compute.start()
    cloud.wait(server, "SHUTOFF")
    until(lambda: gone(cloud, "compute-1", uuid.UUID(server.id)), "the stopped guest to be forgotten", 60)
