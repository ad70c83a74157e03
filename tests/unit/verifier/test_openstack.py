# SPDX-License-Identifier: Apache-2.0
"""Requests to OpenStack: credentials that end, services that are away, and answers of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.verifier import openstack as module
from nova_vmi_attest.verifier.openstack import (
    COMPUTE,
    PLACEMENT,
    BadRequestError,
    ConflictError,
    NotFoundError,
    OpenStack,
    OpenStackError,
    UnavailableError,
)
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, Request


def call(cloud: FakeCloud, timeout: float = 10) -> object:
    query = {"limit": "1", "all_tenants": "1"}
    return cloud.openstack(timeout).call(COMPUTE, "GET", "/servers/detail", "2.69", query)


def test_a_request_has_a_token_a_microversion_and_its_query(cloud: FakeCloud) -> None:
    assert call(cloud) == {"servers": []}
    cloud.openstack().call(PLACEMENT, "PUT", "/traits/CUSTOM_X", "1.18")
    (nova,) = cloud.asked("GET", "/compute/servers/detail")
    (placement,) = cloud.asked("PUT", "/placement/traits")
    assert nova.headers["openstack-api-version"] == "compute 2.69"
    assert placement.headers["openstack-api-version"] == "placement 1.18"
    assert nova.query["all_tenants"] == "1"
    assert nova.headers["x-auth-token"].startswith("token-")


def test_a_token_that_expired_in_between_is_renewed(cloud: FakeCloud) -> None:
    openstack = cloud.openstack()
    openstack.call(COMPUTE, "GET", "/servers/detail", "2.69", {"limit": "1"})
    cloud.tokens += 1
    assert openstack.call(COMPUTE, "GET", "/servers/detail", "2.69", {"limit": "1"}) == {"servers": []}
    assert cloud.tokens == 3


def test_credentials_that_are_refused_say_so(cloud: FakeCloud) -> None:
    cloud.before = lambda request: Answer(401, {}) if request.path.startswith("/identity") else None
    with pytest.raises(UnavailableError, match="credentials") as caught:
        call(cloud)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (403, UnavailableError),
        (404, NotFoundError),
        (406, BadRequestError),
        (409, ConflictError),
        (500, UnavailableError),
        (502, UnavailableError),
    ],
)
def test_each_refusal_has_its_kind(cloud: FakeCloud, status: int, error: type[OpenStackError]) -> None:
    cloud.before = lambda request: (
        Answer(status, raw=b"no\nway\x1b[31m") if "compute" in request.path else None
    )
    with pytest.raises(error, match=str(status)) as caught:
        call(cloud)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()


def test_too_many_requests_are_tried_again_and_then_given_up(cloud: FakeCloud) -> None:
    left = [Answer(429, {}), Answer(503, {})]
    cloud.before = lambda request: left.pop() if left and "compute" in request.path else None
    assert call(cloud) == {"servers": []}
    cloud.requests.clear()
    cloud.before = lambda request: Answer(429, {}) if "compute" in request.path else None
    with pytest.raises(UnavailableError, match="429"):
        call(cloud)
    assert len(cloud.asked("GET", "/compute/servers")) == 3


def test_a_service_that_does_not_answer_is_given_up(cloud: FakeCloud) -> None:
    cloud.before = lambda request: Answer(body={}, seconds=3) if "compute" in request.path else None
    with pytest.raises(UnavailableError, match="compute"):
        call(cloud, timeout=0.2)


def test_an_answer_that_does_not_end_is_cut_off(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    cloud.before = lambda request: Answer(raw=b" " * 1001) if "compute" in request.path else None
    with pytest.raises(UnavailableError, match="1000 bytes"):
        call(cloud)
    monkeypatch.setattr(module, "_WHOLE_ANSWER", -1)
    cloud.before = lambda request: None
    with pytest.raises(UnavailableError, match="longer than"):
        call(cloud)


def test_nobody_there_is_no_crash(cloud: FakeCloud) -> None:
    openstack = cloud.openstack()
    cloud.stop()
    with pytest.raises(UnavailableError, match="auth_url"):
        openstack.call(COMPUTE, "GET", "/servers", "2.69")
    cloud.start()


def test_a_service_that_is_not_in_the_catalogue_is_named(cloud: FakeCloud) -> None:
    with pytest.raises(UnavailableError, match="volume") as caught:
        cloud.openstack().call("volume", "GET", "/", "3.0")
    assert "region_name" in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(min_size=1, max_size=60), st.just(b"[" * 100_000), st.just(b"9" * 5000)))
def test_whatever_the_body_is_it_is_decoded_or_refused(cloud: FakeCloud, raw: bytes) -> None:
    def broken(request: Request) -> Answer | None:
        return Answer(raw=raw) if "compute" in request.path else None

    cloud.before = broken
    try:
        call(cloud)
    except UnavailableError as error:
        assert "JSON" in str(error)  # noqa: PT017 - either is right


def test_credentials_come_from_the_configuration(tmp_path: Path, cloud: FakeCloud) -> None:
    path = tmp_path / "own.conf"
    assert OpenStack.from_conf(configuration.load([], default_files=[])) is None
    path.write_text(
        f"[openstack]\nauth_type = password\nauth_url = {cloud.url}/identity/v3\nusername = attest\n"
        "password = secret\nproject_name = service\nuser_domain_id = default\nproject_domain_id = default\n"
        "region_name = One\n"
    )
    openstack = OpenStack.from_conf(configuration.load(["--config-file", str(path)]))
    assert openstack is not None
    assert openstack.call(COMPUTE, "GET", "/servers/detail", "2.69", {"limit": "1"}) == {"servers": []}


@pytest.mark.parametrize("lines", ["auth_type = nonsense", "auth_type = password"])
def test_credentials_that_cannot_be_are_an_error_with_a_remedy(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "own.conf"
    path.write_text(f"[openstack]\n{lines}\n")
    with pytest.raises(OpenStackError, match=r"\[openstack\]"):
        OpenStack.from_conf(configuration.load(["--config-file", str(path)]))
