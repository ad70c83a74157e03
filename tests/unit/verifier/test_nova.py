# SPDX-License-Identifier: Apache-2.0
"""What is asked of Nova and Placement, and what is taken for an answer."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_vmi_attest.verifier.nova import Nova, NovaServer
from nova_vmi_attest.verifier.openstack import ConflictError, NotFoundError, OpenStackError, UnavailableError
from nova_vmi_attest.verifier.providers import Providers, ProviderTraits
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, Request, server

GUESTS = [uuid.UUID(int=number) for number in range(1, 8)]


@pytest.fixture
def nova(cloud: FakeCloud) -> Nova:
    return Nova(cloud.openstack())


def all_of(nova: Nova, **query: Any) -> list[NovaServer]:
    return [found for page in nova.servers(**query) for found in page]


def moving(guest: uuid.UUID, status: str, kind: str = "live-migration") -> dict[str, Any]:
    return {
        "instance_uuid": str(guest), "status": status, "source_compute": "compute-1",
        "dest_compute": "compute-2", "migration_type": kind,
    }  # fmt: skip


def test_pages_are_followed_by_their_last_server_and_never_by_a_link(cloud: FakeCloud, nova: Nova) -> None:
    cloud.page = 3
    cloud.add(*(server(guest) for guest in GUESTS))
    assert [found.guest for found in all_of(nova)] == GUESTS
    markers = [request.query.get("marker") for request in cloud.asked("GET", "/compute/servers")]
    assert markers == [None, str(GUESTS[2]), str(GUESTS[5])]
    assert {request.query["all_tenants"] for request in cloud.asked("GET", "/compute/servers")} == {"1"}


def test_a_server_that_vanishes_between_pages_is_no_end(cloud: FakeCloud, nova: Nova) -> None:
    cloud.page = 3
    cloud.add(*(server(guest) for guest in GUESTS))
    seen: list[NovaServer] = []
    for page in nova.servers():
        seen += page
        cloud.servers.pop(str(page[-1].guest), None)
    assert [found.guest for found in seen] == GUESTS


def test_a_page_that_vanishes_altogether_is_an_error_and_not_the_end(cloud: FakeCloud, nova: Nova) -> None:
    cloud.page = 3
    cloud.add(*(server(guest) for guest in GUESTS))
    pages = nova.servers()
    next(pages)
    for guest in GUESTS[:3]:
        del cloud.servers[str(guest)]
    with pytest.raises(UnavailableError, match="own page"):
        next(pages)


def test_changes_are_asked_for_since_a_moment_and_hosts_by_name(cloud: FakeCloud, nova: Nova) -> None:
    cloud.add(server(GUESTS[0]), server(GUESTS[1], "compute-2", updated="2026-01-01T00:00:00Z"))
    assert [found.guest for found in all_of(nova, changed_since=1_700_000_000)] == [GUESTS[1]]
    assert cloud.requests[-1].query["changes-since"] == "2023-11-14T22:13:20Z"
    assert [found.guest for found in all_of(nova, host="compute-1")] == [GUESTS[0]]


def test_a_server_is_read_as_nova_shows_it(cloud: FakeCloud, nova: Nova) -> None:
    cloud.add(server(GUESTS[0], None, **{"OS-EXT-STS:task_state": "spawning", "status": "BUILD"}))
    assert nova.server(GUESTS[0]) == NovaServer(
        GUESTS[0], "project-a", "web", "", "BUILD", "active", "spawning", 1, 1_577_836_800
    )
    with pytest.raises(NotFoundError):
        nova.server(GUESTS[1])


def test_a_server_in_a_cell_that_is_down_is_not_gone(cloud: FakeCloud, nova: Nova) -> None:
    cloud.add({"id": str(GUESTS[0]), "status": "UNKNOWN", "tenant_id": "project-a"})
    assert nova.server(GUESTS[0]) is None
    cloud.before = lambda request: (
        Answer(body={"servers": list(cloud.servers.values())}) if "detail" in request.path else None
    )
    assert all_of(nova) == []


def test_a_user_without_rights_is_named_as_the_cause(cloud: FakeCloud, nova: Nova) -> None:
    shown = server(GUESTS[0])
    del shown["OS-EXT-SRV-ATTR:host"]
    cloud.add(shown)
    with pytest.raises(UnavailableError, match="role admin"):
        all_of(nova)


@pytest.mark.parametrize(
    ("status", "kind", "host", "other"),
    [
        ("running", "live-migration", "compute-1", "compute-2"),
        ("post-migrating", "live-migration", "compute-2", "compute-1"),
        ("finished", "resize", "compute-2", "compute-1"),
        ("reverting", "resize", "compute-1", "compute-2"),
        ("completed", "live-migration", "compute-2", ""),
        ("confirmed", "resize", "compute-2", ""),
        ("error", "migration", "compute-1", ""),
        ("accepted", "evacuation", "compute-1", "compute-2"),
        ("pre-migrating", "evacuation", "compute-2", ""),
        ("done", "evacuation", "compute-2", ""),
    ],
)
def test_the_other_host_is_the_one_that_may_show_the_server_too(
    cloud: FakeCloud, nova: Nova, status: str, kind: str, host: str, other: str
) -> None:
    cloud.migrations = [moving(GUESTS[1], "running"), moving(GUESTS[0], status, kind)]
    assert nova.other_host(GUESTS[0], host) == other


def test_an_ended_migration_does_not_hide_the_one_under_way(cloud: FakeCloud, nova: Nova) -> None:
    cloud.migrations = [moving(GUESTS[0], "error"), moving(GUESTS[0], "running")]
    assert nova.other_host(GUESTS[0], "compute-1") == "compute-2"


def test_compute_nodes_come_with_the_host_of_their_service(cloud: FakeCloud, nova: Nova) -> None:
    cloud.page = 2
    cloud.nodes = {str(guest): f"host-{number % 2}" for number, guest in enumerate(GUESTS)}
    found = nova.compute_nodes()
    assert [node.provider for node in found] == GUESTS
    assert {node.host for node in found} == {"host-0", "host-1"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ("servers", "server", "migrations", "hypervisors", "resource_providers", "traits")


def _damaged() -> st.SearchStrategy[Any]:
    """A well-formed server with one member replaced."""
    whole = server(GUESTS[0])
    return st.tuples(st.sampled_from(sorted(whole)), _JSON).map(lambda pair: {**whole, pair[0]: pair[1]})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=_JSON
    | st.tuples(st.sampled_from(_KEYS), _JSON).map(lambda pair: {pair[0]: pair[1]})
    | _damaged().map(lambda item: {"servers": [item], "server": item})
)
def test_no_answer_raises_what_a_caller_does_not_expect(cloud: FakeCloud, nova: Nova, body: Any) -> None:
    providers = Providers(nova._openstack)

    def answered(request: Request) -> Answer | None:
        return None if request.path.startswith("/identity") else Answer(body=body)

    cloud.before = answered
    questions = [
        lambda: all_of(nova),
        lambda: nova.server(GUESTS[0]),
        lambda: nova.other_host(GUESTS[0], "compute-1"),
        nova.compute_nodes,
        lambda: providers.having("CUSTOM_X"),
        lambda: providers.traits(GUESTS[0]),
    ]
    answers = []
    for question in questions:
        try:
            answers.append(question())
        except OpenStackError as error:
            answers.append(error)
    assert len(answers) == len(questions)


def test_a_list_that_is_too_long_is_refused(cloud: FakeCloud, nova: Nova) -> None:
    body = {"servers": [{}] * 20_001}
    cloud.before = lambda request: Answer(body=body) if "detail" in request.path else None
    with pytest.raises(UnavailableError, match="too long"):
        all_of(nova)


def test_a_trait_is_made_when_placement_has_none(cloud: FakeCloud) -> None:
    providers = Providers(cloud.openstack())
    assert providers.having("CUSTOM_X") == frozenset()
    assert "CUSTOM_X" in cloud.known_traits
    assert providers.having("CUSTOM_X") == frozenset()
    assert len(cloud.asked("PUT", "/placement/traits")) == 1


def test_traits_are_replaced_only_as_they_were_read(cloud: FakeCloud) -> None:
    providers, node = Providers(cloud.openstack()), GUESTS[0]
    cloud.traits[str(node)] = {"HW_CPU_X86_VMX"}
    read = providers.traits(node)
    assert read == ProviderTraits(0, frozenset({"HW_CPU_X86_VMX"}))
    providers.replace_traits(node, ProviderTraits(0, read.traits | {"CUSTOM_X"}))
    assert cloud.traits[str(node)] == {"HW_CPU_X86_VMX", "CUSTOM_X"}
    with pytest.raises(ConflictError):
        providers.replace_traits(node, read)
    with pytest.raises(NotFoundError):
        providers.traits(GUESTS[1])
