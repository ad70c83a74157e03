# SPDX-License-Identifier: Apache-2.0
"""The whole way in a real cloud: servers boot, are measured, trusted, moved, altered, and refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from lab.cloud.cloud import Cloud
from lab.cloud.guests import OFFSET, SYMBOL, alter
from lab.cloud.images import DISK_IMAGE, KERNEL_IMAGE
from lab.cloud.waiting import until
from openstack import exceptions

from nova_vmi_attest.evidence.result import Verdict
from tests.openstack.conftest import Boot


@pytest.mark.parametrize(
    ("image", "host"),
    [(DISK_IMAGE, "compute-1"), (KERNEL_IMAGE, "compute-2")],
)
def test_a_new_server_is_trusted(image: str, host: str, cloud: Cloud, boot: Boot) -> None:
    server = boot("fresh", image=image, host=host)
    verdict = cloud.wait_verdict(server)
    assert (verdict.host, verdict.reasons) == (host, ())
    shown = cloud.user("alpha").compute.get_server(server.id).metadata
    assert shown["trust:verdict"] == "trusted"
    assert shown["trust:host_verdict"] == "trusted"


def test_the_scheduler_places_servers_on_trusted_hosts(cloud: Cloud, boot: Boot) -> None:
    server = boot("placed")
    assert cloud.host_trusted(server.compute_host)
    assert cloud.wait_verdict(server).host == server.compute_host


def test_another_project_does_not_see_the_server(cloud: Cloud, boot: Boot) -> None:
    server = boot("private", up=False)
    assert cloud.user("alpha-reader").compute.get_server(server.id).name == "private"
    with pytest.raises(exceptions.NotFoundException):
        cloud.user("beta").compute.get_server(server.id)


def test_a_live_migration_keeps_the_trust(cloud: Cloud, boot: Boot) -> None:
    server = boot("moving", host="compute-1")
    cloud.wait_verdict(server)
    cloud.admin.compute.live_migrate_server(server.id, host="compute-2", block_migration="auto")
    cloud.wait(server, host="compute-2")
    assert cloud.wait_verdict(server, host="compute-2").reasons == ()
    assert UUID(server.id) not in cloud.computes["compute-1"].domains()


def test_an_altered_server_is_untrusted_and_cannot_be_moved(cloud: Cloud, boot: Boot) -> None:
    server = boot("victim", host="compute-1")
    cloud.wait_verdict(server)
    alter(cloud.console(server))
    verdict = cloud.wait_verdict(server, Verdict.UNTRUSTED)
    assert [(reason.check, reason.symbol, reason.offset) for reason in verdict.reasons] == [
        ("text", SYMBOL, OFFSET)
    ]
    shown = cloud.user("alpha").compute.get_server(server.id).metadata
    assert (shown["trust:verdict"], SYMBOL in shown["trust:reason"]) == ("untrusted", True)
    with pytest.raises(exceptions.BadRequestException, match="No valid host"):
        cloud.admin.compute.live_migrate_server(server.id, host="compute-2", block_migration="auto")
    assert cloud.server(server).compute_host == "compute-1"


def test_a_deleted_server_is_forgotten(cloud: Cloud) -> None:
    server = cloud.boot("brief")
    cloud.wait_verdict(server)
    cloud.delete(server)
    until(lambda: cloud.guest(server) is None, "the deleted server to be forgotten", 30)
    assert all(UUID(server.id) not in host.domains() for host in cloud.computes.values())
