# SPDX-License-Identifier: Apache-2.0
"""What the verifiers do by themselves, in a real Nova: an altered server, one bad policy, and break-glass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab.cloud.cloud import Cloud
from lab.cloud.guests import SYMBOL, alter
from lab.cloud.waiting import until
from openstack import exceptions
from openstack.compute.v2.server import Server

from tests.openstack.conftest import Boot

TIMEOUT = 90
RESPONSES = {
    "on_guest_untrusted": "lock,pause",
    "on_host_untrusted": "disable_service",
    # Less than the interval of the challenges here, so that the next result confirms.
    "confirm_after": 5,
}
# No boot of any machine gives this value.
BAD_POLICY = {"approved_pcr": f"0:{'5a' * 32}"}


def responses(cloud: Cloud, subject: str) -> dict[str, str]:
    """The outcome of each response to a host or guest, the newest of each."""
    rows: list[dict[str, Any]] = json.loads(cloud.attestation.manage("response", "list", subject, "--json"))
    return {row["response"]: row["outcome"] for row in reversed(rows)}


def disabled(cloud: Cloud) -> dict[str, str]:
    """The hosts whose compute service attestation has disabled, and why."""
    services = cloud.admin.compute.services(binary="nova-compute")
    found = {item.host: item.disabled_reason or "" for item in services if item.status == "disabled"}
    return {host: why for host, why in found.items() if why.startswith("attestation: ")}


@pytest.fixture
def enabled(cloud: Cloud) -> Iterator[None]:
    """Leaves no service disabled by attestation, and no override."""
    yield
    for host in disabled(cloud):
        cloud.admin.compute.enable_service(None, host, "nova-compute")
    for host in cloud.hosts:
        if json.loads(cloud.attestation.manage("host", "show", host, "--json"))["override"]:
            cloud.attestation.manage("host", "lift-override", host)


def test_an_altered_server_is_locked_and_paused(cloud: Cloud, boot: Boot) -> None:
    with cloud.attestation.options({"responses": RESPONSES}):
        victim, sound = boot("altered", host="compute-1"), boot("sound", host="compute-1")
        for server in (victim, sound):
            cloud.wait_verdict(server)
        alter(cloud.console(victim))

        def stopped() -> Server | None:
            shown = cloud.server(victim)
            return shown if shown.status == "PAUSED" and shown.is_locked else None

        shown = until(stopped, "the server to be locked and paused", TIMEOUT)
        assert shown is not None
        assert shown.locked_reason.startswith("attestation: untrusted, text")
        assert SYMBOL in shown.locked_reason
        until(
            lambda: responses(cloud, victim.id) == {"lock": "done", "pause": "done"},
            "the record of it", TIMEOUT, lambda: str(responses(cloud, victim.id)),
        )  # fmt: skip
        with pytest.raises(exceptions.ConflictException, match="locked"):
            cloud.user("alpha").compute.unpause_server(victim.id)
        assert cloud.server(sound).status == "ACTIVE"
        assert responses(cloud, sound.id) == {}


@pytest.mark.usefixtures("enabled")
def test_one_bad_policy_disables_one_host_and_an_operator_breaks_glass(cloud: Cloud) -> None:
    for host in cloud.hosts:
        until(lambda host=host: cloud.host_trusted(host), f"{host} to be trusted", TIMEOUT)
    with cloud.attestation.options({"responses": RESPONSES, "policy": BAD_POLICY}):

        def settled() -> bool:
            outcomes = [responses(cloud, host).get("disable_service") for host in cloud.hosts]
            return sorted(map(str, outcomes)) == ["done", "limited"]

        until(settled, "one host to be disabled and no other", TIMEOUT)
        ((host, why),) = disabled(cloud).items()
        assert responses(cloud, host) == {"disable_service": "done"}
        assert why.startswith("attestation: untrusted")

        cloud.attestation.manage("host", "override", host, "--reason", "the policy is wrong", "--hours", "1")
        until(lambda: cloud.host_trusted(host), "the override to be in force", TIMEOUT)
        result = json.loads(cloud.attestation.manage("result", "show", host, "--json"))
        assert (result["verdict"], result["reasons"][0]["check"]) == ("trusted", "override")
        assert "the policy is wrong; appraised as untrusted" in result["reasons"][0]["detail"]
        cloud.attestation.manage("host", "lift-override", host)
        until(lambda: not cloud.host_trusted(host), "the override to end", TIMEOUT)
        assert list(disabled(cloud)) == [host], "enabling it again is left to the operator"
