# SPDX-License-Identifier: Apache-2.0
"""What responses ask of Nova, and what they make of answers that are not as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nova_vmi_attest.verifier.openstack import ConflictError, NotFoundError, UnavailableError
from nova_vmi_attest.verifier.responses.base import ComputeService, Moot, NovaServer, ResponseError
from nova_vmi_attest.verifier.responses.nova import ComputeApi
from tests.unit.verifier.responses.scene import guest

G1 = guest(1)
SERVER = {
    "OS-EXT-SRV-ATTR:host": "h",
    "OS-EXT-STS:task_state": None,
    "status": "ACTIVE",
    "locked": False,
    "name": "tenant's own words",
}
SERVICE = {"id": "0b1c", "host": "h", "status": "enabled", "disabled_reason": None, "state": "up"}


class OpenStack:
    """Gives one answer, or raises it; notes what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def call(
        self,
        service: str,
        method: str,
        path: str,
        microversion: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        self.asked.append((service, method, path, microversion, query, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def api(answer: Any) -> tuple[ComputeApi, OpenStack]:
    openstack = OpenStack(answer)
    return ComputeApi(openstack), openstack  # type: ignore[arg-type]


def test_a_server_as_nova_shows_it() -> None:
    nova, openstack = api({"server": SERVER})
    assert nova.server(G1) == NovaServer("h", "ACTIVE", "", False)
    assert openstack.asked == [("compute", "GET", f"/servers/{G1}", "2.73", {}, None)]


def test_a_server_that_is_nowhere_and_one_that_is_not() -> None:
    assert api({"server": {**SERVER, "OS-EXT-SRV-ATTR:host": None}})[0].server(G1).host == ""  # type: ignore[union-attr]
    assert api(NotFoundError("404"))[0].server(G1) is None


def test_what_is_done_to_a_server() -> None:
    nova, openstack = api(None)
    nova.lock(G1, "because")
    nova.pause(G1)
    assert [(method, path, body) for _, method, path, _, _, body in openstack.asked] == [
        ("POST", f"/servers/{G1}/action", {"lock": {"locked_reason": "because"}}),
        ("POST", f"/servers/{G1}/action", {"pause": None}),
    ]


def test_services_and_disabling_one() -> None:
    off = {**SERVICE, "id": "2", "host": "i", "status": "disabled", "disabled_reason": "attestation: x"}
    nova, openstack = api({"services": [SERVICE, off]})
    services = nova.compute_services()
    assert services == (
        ComputeService("0b1c", "h", False, ""),
        ComputeService("2", "i", True, "attestation: x"),
    )
    nova.disable(services[0], "because")
    assert [(method, path, query, body) for _, method, path, _, query, body in openstack.asked] == [
        ("GET", "/os-services", {"binary": "nova-compute"}, None),
        ("PUT", "/os-services/0b1c", {}, {"status": "disabled", "disabled_reason": "because"}),
    ]


@pytest.mark.parametrize("hidden", sorted(set(SERVER) - {"name"}))
def test_a_server_whose_details_are_hidden_says_nothing(hidden: str) -> None:
    """Without the role admin, or while its cell is down; it must not look like one that is nowhere."""
    server = {name: value for name, value in SERVER.items() if name != hidden}
    with pytest.raises(ResponseError, match=hidden):
        api({"server": server})[0].server(G1)


@pytest.mark.parametrize("answer", [None, [], 7, "x", {}, {"server": []}, {"server": {"locked": "no"}}])
def test_answers_of_another_shape_are_no_answers(answer: Any) -> None:
    with pytest.raises(ResponseError):
        api(answer)[0].server(G1)


@pytest.mark.parametrize(
    "answer", [None, {}, {"services": {}}, {"services": [7]}, {"services": [{**SERVICE, "id": 7}]}]
)
def test_services_of_another_shape_are_no_answer(answer: Any) -> None:
    with pytest.raises(ResponseError):
        api(answer)[0].compute_services()


def test_very_many_services_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.verifier.responses.nova._MAX_SERVICES", 1)
    with pytest.raises(ResponseError, match="more than 1"):
        api({"services": [SERVICE, SERVICE]})[0].compute_services()


def test_errors_keep_their_remedy_and_what_is_gone_is_moot() -> None:
    for error in (UnavailableError("no route", "check auth_url"), ConflictError("task state")):
        with pytest.raises(ResponseError, match=error.message) as caught:
            api(error)[0].lock(G1, "because")
        assert caught.value.remedy == error.remedy
        assert not isinstance(caught.value, Moot)
    with pytest.raises(Moot):
        api(NotFoundError("404"))[0].lock(G1, "because")
