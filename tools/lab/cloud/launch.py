# SPDX-License-Identifier: Apache-2.0
"""The order in which a cloud comes up, with everything at once that does not need the rest."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from lab.cloud import disk, images, web
from lab.cloud.backing import Glance, Neutron, Placement
from lab.cloud.cloud import Cloud
from lab.cloud.database import seed_password
from lab.cloud.layout import HOSTS, Layout
from lab.cloud.processes import CONTROL, Processes
from lab.cloud.steps import Say, Steps
from lab.cloud.waiting import until
from lab.errors import LabError

UP_TIMEOUT = 180.0


def start(directory: Path, say: Say) -> Cloud:
    """Start a new cloud in ``directory``, which is emptied before. Needs root; takes a minute or two.

    ``say`` is told of each finished step. Raises LabError, with the end of the log of what failed, after it
    has ended what it had started.
    """
    if os.geteuid() != 0:
        raise LabError("a cloud needs root", "run as root or with sudo")
    Processes(directory).stop_all()
    shutil.rmtree(directory, ignore_errors=True)
    layout = Layout.plan(directory)
    if password := seed_password():
        layout = Layout(layout.directory, layout.ports, password)
    layout.save()
    cloud = Cloud(layout)
    try:
        with Steps(say, cloud.processes.stop_all) as steps:
            _bring_up(cloud, steps, seeded=bool(password))
    except BaseException:
        cloud.processes.stop_all()
        raise
    return cloud


def _bring_up(cloud: Cloud, steps: Steps, *, seeded: bool) -> None:
    """Name all steps; they run on their own. ``seeded``: there is a copy of the databases to begin with."""
    layout, processes, go = cloud.layout, cloud.processes, steps.go
    glance, placement = Glance(layout, processes), Placement(layout, processes)
    neutron = Neutron(layout, processes)
    for part in (cloud.identity, glance, placement, neutron, cloud.nova):
        part.configure()
    processes.space(CONTROL, "")
    go("database", cloud.database.start)
    go("bus", cloud.bus.start)
    go("our configuration", cloud.attestation.configure)
    go("our keys", cloud.attestation.make_keys, "our configuration")
    if seeded:
        go("databases", cloud.database.restore, "database")
        go("endpoints", partial(cloud.identity.move_endpoints, cloud.database), "databases")
        go("keystone", cloud.identity.start, "endpoints")
        filled = "keystone"
    else:
        _fill_databases(cloud, steps, {"glance": glance, "placement": placement, "neutron": neutron})
        filled = "copy of the databases"
    go("nova", cloud.nova.start, "bus", "our keys", filled)
    for name, one in (("glance", glance), ("placement", placement), ("neutron", neutron)):
        go(name, one.start, "keystone", filled)
    go("disk image", disk.bootable)
    _bring_up_hosts(cloud, steps)
    go("APIs", partial(_wait_for_apis, cloud), "nova", "glance", "placement", "neutron")
    go("images", partial(images.register, cloud.admin), "APIs", "disk image")
    go("network", neutron.wake, "APIs")
    go(
        "hosts in the cell",
        partial(_discover_hosts, cloud),
        "APIs",
        *(f"{one} nova-compute" for one in HOSTS),
    )
    go("our API", cloud.attestation.start_api, "our references", "keystone")
    go("first results", partial(_wait_for_results, cloud), *(f"{one} agent" for one in HOSTS))


def _fill_databases(cloud: Cloud, steps: Steps, backing: dict[str, Glance | Placement | Neutron]) -> None:
    services = {"keystone": cloud.identity, **backing, "nova": cloud.nova}
    for name, service in services.items():
        steps.go(f"{name} schema", service.migrate, "database")
    steps.go("keystone", cloud.identity.start, "keystone schema")
    steps.go("users", cloud.identity.populate, "keystone")
    steps.go("copy of the databases", cloud.database.keep, "users", *(f"{name} schema" for name in services))


def _bring_up_hosts(cloud: Cloud, steps: Steps) -> None:
    go = steps.go
    go("our references", cloud.attestation.prepare, "our configuration", "database")
    previous: tuple[str, ...] = ()
    for name, host in cloud.computes.items():
        # The later ones use the network of the first.
        go(f"{name} libvirt", host.start_libvirt, *previous)
        previous = (f"{name} libvirt",)
        go(f"{name} TPM", partial(cloud.attestation.start_tpm, name), f"{name} libvirt")
        register = partial(cloud.attestation.register, name)
        go(f"{name} registered", register, f"{name} TPM", "our references")
    for name, host in cloud.computes.items():
        go(f"{name} nova-compute", host.start_compute, *previous, "nova", "placement", "neutron", "glance")
    go("authority and verifier", cloud.attestation.start, "bus", *(f"{one} registered" for one in HOSTS))
    for name in HOSTS:
        go(f"{name} agent", partial(cloud.attestation.start_agent, name), "authority and verifier")


def _wait_for_apis(cloud: Cloud) -> None:
    for service in ("glance", "placement", "neutron", "nova", "metadata"):
        web.wait(cloud.layout, cloud.processes, service)


def _discover_hosts(cloud: Cloud) -> None:
    def up() -> bool:
        for name in HOSTS:
            cloud.processes.pid(f"nova-compute-{name}")
        services = cloud.admin.compute.services(binary="nova-compute")
        return {service.host for service in services if service.state == "up"} >= set(HOSTS)

    until(up, "every nova-compute to be up", UP_TIMEOUT)
    cloud.nova.manage("cell_v2", "discover_hosts", "--by-service")


def _wait_for_results(cloud: Cloud) -> None:
    """Wait for the first verdict on each host, without which the scheduler finds no valid one."""
    services = ("attest-authority", "attest-verifier", *(f"agent-{name}" for name in HOSTS))

    def trusted() -> bool:
        for name in services:
            cloud.processes.pid(name)
        return all(cloud.host_trusted(name) for name in HOSTS)

    until(trusted, "both hosts to be trusted", UP_TIMEOUT, lambda: cloud.attestation.manage("result", "list"))
