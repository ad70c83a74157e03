# SPDX-License-Identifier: Apache-2.0
"""What nova-scheduler would be told: the filter, with Nova's own objects and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import nova.conf
from nova import objects
from nova.scheduler.host_manager import HostState

from lab.deployment import Deployment
from nova_vmi_attest.relying.demand import Operation, Server
from nova_vmi_attest.relying.scheduler_filter import VMIAttestationFilter
from nova_vmi_attest.relying.shared import SharedTrust


def placement_questions(
    deployment: Deployment, names: Mapping[UUID, str], victim: str
) -> list[dict[str, Any]]:
    """Ask the filter about the host and about moves of guests.

    Each answer says what was asked, what must be answered and what was.
    """
    conf = nova.conf.CONF
    shared = SharedTrust()
    trust_filter = VMIAttestationFilter(shared, lambda spec: _server(spec, names))
    conf.set_override("verifier_keys", str(deployment.verifier_keys), "relying")
    conf.set_override("transport_url", deployment.transport_url, "relying")
    objects.register_all()
    deployment.wait_for_trust(shared.get(conf))
    uuids = {name: guest for guest, name in names.items()}
    healthy = next(name for name in sorted(uuids) if name != victim)
    questions = (
        (f"may {deployment.host} take a new server", deployment.host, uuid4(), True),
        ("may a host that never attested take a new server", "compute-2", uuid4(), False),
        (f"may {healthy} move to {deployment.host}", deployment.host, uuids[healthy], True),
        (
            f"may {victim}, which was altered, move to {deployment.host}",
            deployment.host,
            uuids[victim],
            False,
        ),
    )
    answers = []
    for question, host, server, expected in questions:
        passes = bool(trust_filter.host_passes(HostState(host, host, uuid4()), _request(server)))
        answer = "yes" if passes else "no"
        answers.append(
            {
                "question": question,
                "host": host,
                "server": str(server),
                "expected": expected,
                "passes": passes,
                "answer": answer,
            }
        )
    return answers


def _request(server: UUID) -> objects.RequestSpec:
    flavor = objects.Flavor(extra_specs={})
    return objects.RequestSpec(instance_uuid=str(server), flavor=flavor, scheduler_hints={})


def _server(spec: objects.RequestSpec, running: Mapping[UUID, str]) -> Server:
    """What Nova's databases would say, which this deployment has none of."""
    server = UUID(spec.instance_uuid)
    if server in running:
        return Server(server, Operation.LIVE_MIGRATE, running=True, properties={})
    return Server(server, Operation.BUILD, running=False, properties={})
