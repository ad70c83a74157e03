# SPDX-License-Identifier: Apache-2.0
"""What Nova's scheduler does in a real cloud when flavors and images ask for trust."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from lab.cloud import disk
from lab.cloud.cloud import Cloud
from lab.cloud.guests import SYMBOL, alter
from lab.cloud.images import KERNEL_IMAGE
from lab.cloud.waiting import until
from openstack import exceptions
from openstack.compute.v2.server import Server

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.refusals import Refusal, Refusals
from tests.openstack.conftest import Boot

FIRST, SECOND = "compute-1", "compute-2"


@pytest.fixture
def altered(cloud: Cloud, boot: Boot) -> Server:
    """A server on the first host whose kernel was altered."""
    server = boot("altered", host=FIRST)
    cloud.wait_verdict(server)
    alter(cloud.console(server))
    cloud.wait_verdict(server, Verdict.UNTRUSTED)
    return server


@pytest.fixture
def flavor(cloud: Cloud) -> Iterator[str]:
    """A flavor for servers that want good neighbours; its name."""
    name = f"careful-{uuid.uuid4().hex[:8]}"
    made = cloud.admin.compute.create_flavor(name=name, ram=192, vcpus=1, disk=1)
    cloud.admin.compute.create_flavor_extra_specs(made, {"trust:neighbours": "required"})
    yield name
    cloud.admin.compute.delete_flavor(made)


@pytest.fixture
def image(cloud: Cloud) -> Iterator[str]:
    """A tenant's own image that asks for good neighbours, and in vain for less of the host; its name."""
    name = f"careful-{uuid.uuid4().hex[:8]}"
    booted = cloud.admin.image.find_image(KERNEL_IMAGE, ignore_missing=False)
    made = cloud.user("alpha").image.create_image(
        name, filename=str(disk.empty()), disk_format="qcow2", container_format="bare",
        kernel_id=booted.kernel_id, ramdisk_id=booted.ramdisk_id, os_command_line="console=ttyS0",
        **{"trust:neighbours": "required", "trust:host": "ignored"},
    )  # fmt: skip
    yield name
    cloud.user("alpha").image.delete_image(made)


@pytest.fixture
def blank(cloud: Cloud) -> Iterator[str]:
    """An image with nothing on it: what boots from it runs no kernel. Its name."""
    name = f"blank-{uuid.uuid4().hex[:8]}"
    made = cloud.user("alpha").image.create_image(
        name, filename=str(disk.empty()), disk_format="qcow2", container_format="bare"
    )
    yield name
    cloud.user("alpha").image.delete_image(made)


def refusals(cloud: Cloud, server: Server) -> tuple[Refusal, ...]:
    """What the verifiers keep of the scheduler's refusals, once there is anything."""
    kept = Refusals(Database(cloud.layout.database("attest")))
    return until(lambda: kept.list(server=server.id), "a refusal to be stored", 30)


def test_flavors_and_images_keep_servers_off_altered_neighbours(
    cloud: Cloud, boot: Boot, altered: Server, flavor: str, image: str
) -> None:
    for chosen in ({"flavor": flavor}, {"image": image}):
        server = boot("careful", **chosen)
        assert server.compute_host == SECOND
        (told,) = refusals(cloud, server)
        assert [refused.host for refused in told.hosts] == [FIRST]
        assert told.hosts[0].reason.startswith(f"the servers on it are untrusted: text {SYMBOL}")
        assert (told.level, told.project) == ("required", server.project_id)
        assert told.request.startswith("build req-")
        # Until it is measured it is no neighbour for the next one.
        cloud.wait_verdict(server)


def test_the_weigher_takes_known_neighbours_first(cloud: Cloud, boot: Boot, blank: str) -> None:
    """Though the host whose server cannot be measured has more memory left, which Nova's weighers like."""
    nobody = boot("nobody", image=blank, host=FIRST, up=False)
    for number in range(2):
        cloud.wait_verdict(boot(f"known-{number}", flavor="medium", host=SECOND))
    cloud.wait_verdict(nobody, Verdict.UNKNOWN)
    name = f"picky-{uuid.uuid4().hex[:8]}"
    made = cloud.admin.compute.create_flavor(name=name, ram=192, vcpus=1, disk=1)
    cloud.admin.compute.create_flavor_extra_specs(made, {"trust:neighbours": "preferred"})
    try:
        assert boot("plain", up=False).compute_host == FIRST
        assert boot("picky", flavor=name, up=False).compute_host == SECOND
    finally:
        cloud.admin.compute.delete_flavor(made)


def test_a_server_that_nothing_asks_for_may_join_it(cloud: Cloud, boot: Boot, altered: Server) -> None:
    cloud.admin.compute.disable_service(service_of(cloud, SECOND))
    try:
        assert boot("careless", up=False).compute_host == FIRST
    finally:
        cloud.admin.compute.enable_service(service_of(cloud, SECOND))


def test_an_altered_server_is_refused_everywhere_and_why_is_kept(cloud: Cloud, altered: Server) -> None:
    with pytest.raises(exceptions.BadRequestException, match="No valid host"):
        cloud.admin.compute.live_migrate_server(altered.id, host=SECOND, block_migration="auto")
    told = refusals(cloud, altered)[0]
    assert told.request.startswith("live-migrate req-")
    assert told.hosts[0].host == SECOND
    assert told.hosts[0].reason.startswith(f"server {altered.id} is untrusted: text {SYMBOL}")


def test_extra_specs_are_checked_when_they_are_set(cloud: Cloud, flavor: str) -> None:
    made = cloud.admin.compute.find_flavor(flavor, ignore_missing=False)
    for wrong in ({"trust:host": "Required"}, {"trust:hosts": "required"}):
        answer = cloud.admin.compute.post(
            f"/flavors/{made.id}/os-extra_specs", json={"extra_specs": wrong}, microversion="2.86"
        )
        assert answer.status_code == 400
        assert "Validation failed" in answer.json()["badRequest"]["message"]


def service_of(cloud: Cloud, host: str) -> str:
    """The id of a host's nova-compute."""
    (service,) = cloud.admin.compute.services(host=host, binary="nova-compute")
    return str(service.id)
