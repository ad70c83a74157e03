# SPDX-License-Identifier: Apache-2.0
"""Filter and weigher as Nova loads them, with Nova's own databases to say what a request is about."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nova.conf
import nova.config
import nova.context
import oslo_messaging
import pytest
from nova import objects
from nova.compute import task_states, vm_states
from nova.db import migration
from nova.scheduler import filters, host_manager, weights

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.relying import requests, servers
from nova_vmi_attest.relying.demand import GUEST, HOST, NEIGHBOURS, Operation
from nova_vmi_attest.relying.refusals import Refusal
from nova_vmi_attest.relying.scheduler_filter import VMIAttestationFilter
from nova_vmi_attest.relying.scheduler_weigher import VMIAttestationWeigher
from nova_vmi_attest.relying.shared import SharedTrust
from nova_vmi_attest.relying.trust import TrustCache
from tests.unit.relying.results import cache, signed

objects.register_all()

NOW = int(time.time()) - 3600
HOSTS = [host_manager.HostState(name, name, uuid.uuid4()) for name in ("good", "bad", "unknown", "crowded")]
NEIGHBOUR = uuid.UUID(int=77)


@pytest.fixture(autouse=True)
def at_the_time_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end after some minutes, and other tests may take longer."""
    monkeypatch.setattr(requests, "time", SimpleNamespace(time=lambda: float(NOW)))


class FixedTrust(SharedTrust):
    """A cache that the test fills, and refusals that it reads."""

    def __init__(self, trust: TrustCache) -> None:
        super().__init__()
        self.cache = trust
        self.told: list[dict[str, Any]] = []

    def get(self, conf: object, program: str = "nova", patience: float = 0.0) -> TrustCache:
        return self.cache

    def report(self, conf: object, refusal: Refusal) -> None:
        self.told.append(refusal.message())


class Nova:
    """Nova's databases, with one cell."""

    def __init__(self, directory: Path) -> None:
        conf = nova.conf.CONF
        self.context = nova.context.get_admin_context()
        cell = f"sqlite:///{directory}/cell.sqlite"
        conf.set_override("connection", f"sqlite:///{directory}/api.sqlite", "api_database")
        conf.set_override("connection", cell, "database")
        # Nova's names of cells may refer to the bus of this process, which needs its option.
        oslo_messaging.get_rpc_transport(conf, url="fake:///")
        nova.config.parse_args(["nova-scheduler"], default_config_files=[], configure_db=True, init_rpc=False)
        for name in ("api", "main"):
            migration.db_sync(database=name)
        self.cell = objects.CellMapping(
            self.context, uuid=str(uuid.uuid4()), name="cell1", database_connection=cell, transport_url="none:///"
        )  # fmt: skip
        self.cell.create()

    def building(self, image: dict[str, str]) -> str:
        """A server that was asked for and is in no cell yet."""
        server = str(uuid.uuid4())
        instance = objects.Instance(
            self.context, uuid=server, project_id="p", user_id="u", vm_state="building"
        )
        instance.system_metadata = {f"image_{name}": value for name, value in image.items()}
        objects.BuildRequest(
            self.context, instance_uuid=server, project_id="p", instance=instance, tags=objects.TagList(),
            block_device_mappings=objects.BlockDeviceMappingList(),
        ).create()  # fmt: skip
        objects.InstanceMapping(
            self.context, instance_uuid=server, cell_mapping=None, project_id="p", user_id="u"
        ).create()
        return server

    def server(
        self, task: str | None, image: dict[str, str] | None = None, state: str = vm_states.ACTIVE
    ) -> str:
        """A server in the cell, on the host ``source``."""
        server = str(uuid.uuid4())
        kept = {f"image_{name}": value for name, value in (image or {}).items()}
        objects.InstanceMapping(
            self.context, instance_uuid=server, cell_mapping=self.cell, project_id="p", user_id="u"
        ).create()
        with nova.context.target_cell(self.context, self.cell) as context:
            objects.Instance(
                context, uuid=server, project_id="p", user_id="u", host="source", vm_state=state,
                task_state=task, system_metadata=kept,
            ).create()  # fmt: skip
        return server


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nova]:
    yield Nova(tmp_path_factory.mktemp("nova"))
    for group in ("api_database", "database"):
        nova.conf.CONF.clear_override("connection", group)


@pytest.fixture
def shared() -> Iterator[FixedTrust]:
    shared = FixedTrust(
        cache(
            signed("good", issued=NOW),
            signed("bad", Verdict.UNTRUSTED, issued=NOW),
            signed("crowded", Verdict.TRUSTED, {NEIGHBOUR: Verdict.UNTRUSTED}, issued=NOW),
            now=NOW,
        )
    )
    VMIAttestationFilter(shared)
    yield shared
    for name in ("trust_host", "trust_guest", "trust_neighbours", "unsafe_stale_grace", "weight_multiplier"):
        nova.conf.CONF.clear_override(name, "relying")


def request(server: str, flavor: dict[str, str] | None = None, **other: Any) -> objects.RequestSpec:
    context = nova.context.RequestContext("u", "p", request_id="req-1")
    return objects.RequestSpec(
        context,
        instance_uuid=server,
        project_id="p",
        flavor=objects.Flavor(extra_specs=flavor or {}),
        **other,
    )


def passing(shared: SharedTrust, spec: objects.RequestSpec) -> list[str]:
    kept = filters.HostFilterHandler().get_filtered_objects([VMIAttestationFilter(shared)], HOSTS, spec)
    return [host.host for host in kept or ()]


@pytest.mark.parametrize(
    ("task", "state", "ignored", "operation", "running"),
    [
        (task_states.MIGRATING, vm_states.ACTIVE, ["source"], Operation.LIVE_MIGRATE, True),
        (task_states.RESIZE_PREP, vm_states.ACTIVE, [], Operation.MIGRATE, True),
        (task_states.RESIZE_PREP, vm_states.STOPPED, ["source"], Operation.MIGRATE, False),
        (task_states.UNSHELVING, vm_states.SHELVED_OFFLOADED, [], Operation.UNSHELVE, False),
        (task_states.REBUILDING, vm_states.ACTIVE, ["source"], Operation.EVACUATE, False),
        (task_states.REBUILDING, vm_states.ERROR, ["source"], Operation.EVACUATE, False),
        (task_states.REBUILDING, vm_states.ACTIVE, None, Operation.REBUILD, False),
        (None, vm_states.ACTIVE, [], Operation.OTHER, True),
        (task_states.POWERING_OFF, vm_states.ACTIVE, [], Operation.OTHER, True),
    ],
)
def test_nova_says_what_a_request_is_for(
    databases: Nova,
    task: str | None,
    state: str,
    ignored: list[str] | None,
    operation: Operation,
    running: bool,
) -> None:
    spec = request(databases.server(task, {HOST: "required"}, state), ignore_hosts=ignored)
    spec.scheduler_hints = {"_nova_check_type": ["rebuild"]}
    found = servers.look_up(spec)
    assert (found.operation, found.running, found.properties) == (operation, running, {HOST: "required"})
    assert str(found.uuid) == spec.instance_uuid


def test_a_server_that_is_built_has_the_properties_of_its_image(databases: Nova) -> None:
    image = {HOST: "required", NEIGHBOURS: "preferred", "trust:other": "x", "os_type": "linux"}
    found = servers.look_up(request(databases.building(image)))
    assert (found.operation, found.running) == (Operation.BUILD, False)
    assert found.properties == {HOST: "required", NEIGHBOURS: "preferred"}


def test_images_raise_what_flavors_and_options_ask(databases: Nova, shared: FixedTrust) -> None:
    nova.conf.CONF.set_override("trust_host", "ignored", "relying")
    everywhere = ["good", "bad", "unknown", "crowded"]
    assert passing(shared, request(databases.building({}))) == everywhere
    assert passing(shared, request(databases.building({HOST: "preferred"}))) == ["good", "unknown", "crowded"]
    assert passing(shared, request(databases.building({HOST: "required"}))) == ["good", "crowded"]
    assert passing(shared, request(databases.building({HOST: "yes"}))) == ["good", "crowded"]
    assert passing(shared, request(databases.building({NEIGHBOURS: "required"}))) == ["good"]
    strict = {HOST: "required", NEIGHBOURS: "required"}
    assert passing(shared, request(databases.building({HOST: "ignored", NEIGHBOURS: "ignored"}), strict)) == [
        "good"
    ]


def test_a_server_keeps_what_its_image_asked_when_it_moves(databases: Nova, shared: FixedTrust) -> None:
    nova.conf.CONF.set_override("trust_host", "ignored", "relying")
    for task in (task_states.UNSHELVING, task_states.RESIZE_PREP, task_states.REBUILDING):
        server = databases.server(task, {HOST: "required"}, vm_states.STOPPED)
        assert passing(shared, request(server, ignore_hosts=["source"])) == ["good", "crowded"]


def test_an_altered_server_moves_nowhere_and_is_rebuilt_where_it_is(
    databases: Nova, shared: FixedTrust
) -> None:
    for task in (
        task_states.MIGRATING, task_states.RESIZE_PREP, task_states.UNSHELVING, task_states.REBUILDING, None,
    ):  # fmt: skip
        server = databases.server(task)
        altered = {uuid.UUID(server): Verdict.UNTRUSTED}
        shared.cache = cache(
            signed("source", Verdict.TRUSTED, altered, issued=NOW), signed("good", issued=NOW), now=NOW
        )
        assert passing(shared, request(server, ignore_hosts=["source"])) == []
        assert passing(shared, request(server, {GUEST: "ignored"}, ignore_hosts=["source"])) == ["good"]
        if task == task_states.REBUILDING:
            assert passing(shared, request(server, force_hosts=["good"])) == ["good"]


def test_a_server_on_a_dead_host_is_evacuated_if_it_was_trusted_last(
    databases: Nova, shared: FixedTrust
) -> None:
    for last, hosts in ((Verdict.TRUSTED, ["good"]), (Verdict.UNTRUSTED, []), (Verdict.UNKNOWN, [])):
        server = databases.server(task_states.REBUILDING)
        shown = {uuid.UUID(server): last}
        dead = signed("source", Verdict.TRUSTED, shown, issued=NOW - 400)
        shared.cache = cache(dead, now=NOW - 400)
        shared.cache.ingest(signed("good", issued=NOW), NOW)
        assert passing(shared, request(server, ignore_hosts=["source"])) == hosts
        moved = databases.server(task_states.MIGRATING)
        assert passing(shared, request(moved, ignore_hosts=["source"])) == []


def test_when_nova_cannot_say_everything_is_required(databases: Nova, shared: FixedTrust) -> None:
    nova.conf.CONF.set_override("trust_host", "ignored", "relying")
    stranger = str(uuid.uuid4())
    found = servers.look_up(request(stranger))
    assert (found.operation, found.running, found.properties) == (Operation.OTHER, True, None)
    assert passing(shared, request(stranger, {HOST: "ignored", GUEST: "ignored"})) == []
    assert "what its image asks could not be read" in shared.told[-1]["hosts"][0]["reason"]


def test_a_cell_that_is_away_is_no_way_around(databases: Nova, shared: FixedTrust, tmp_path: Path) -> None:
    nova.conf.CONF.set_override("max_retries", 0, "database")
    away = objects.CellMapping(
        databases.context, uuid=str(uuid.uuid4()), name="away", transport_url="none:///",
        database_connection=f"sqlite:///{tmp_path}/none/cell.sqlite",
    )  # fmt: skip
    away.create()
    server = str(uuid.uuid4())
    objects.InstanceMapping(
        databases.context, instance_uuid=server, cell_mapping=away, project_id="p", user_id="u"
    ).create()
    assert servers.look_up(request(server)).properties is None
    assert passing(shared, request(server, {HOST: "ignored"})) == []
    nova.conf.CONF.clear_override("max_retries", "database")


def test_the_verifiers_are_told_who_was_refused_and_why(databases: Nova, shared: FixedTrust) -> None:
    server = databases.building({})
    assert passing(shared, request(server)) == ["good", "crowded"]
    (told,) = shared.told
    assert told["hosts"] == [
        {"host": "bad", "reason": "it is untrusted"},
        {"host": "unknown", "reason": "it is unknown: never_seen  no result speaks of it"},
    ]
    assert (told["server"], told["project"], told["level"], told["total"]) == (server, "p", "required", 2)
    assert told["request"] == "build req-1"
    nova.conf.CONF.set_override("trust_host", "ignored", "relying")
    assert len(passing(shared, request(server))) == 4
    assert len(shared.told) == 1


def best(shared: SharedTrust, spec: objects.RequestSpec) -> dict[str, float]:
    """What Nova's weight handler makes of the hosts, the best first."""
    weighers = [VMIAttestationWeigher(shared)]
    found = weights.HostWeightHandler().get_weighed_objects(weighers, HOSTS, spec)
    return {weighed.obj.host: weighed.weight for weighed in found}


def test_trusted_hosts_come_first_when_they_are_preferred(databases: Nova, shared: FixedTrust) -> None:
    server = databases.building({})
    assert best(shared, request(server, {HOST: "preferred"})) == {
        "good": 10.0, "crowded": 10.0, "unknown": 5.0, "bad": 0.0,
    }  # fmt: skip
    wanted = {HOST: "preferred", NEIGHBOURS: "preferred"}
    assert best(shared, request(server, wanted)) == {"good": 10.0, "unknown": 5.0, "crowded": 5.0, "bad": 2.5}
    assert set(best(shared, request(server)).values()) == {0.0}
    nova.conf.CONF.set_override("weight_multiplier", 0.0, "relying")
    assert set(best(shared, request(server, wanted)).values()) == {0.0}


def test_nova_is_asked_once_for_filter_and_weigher(databases: Nova, shared: FixedTrust) -> None:
    asked = []

    def look_up(spec: Any) -> servers.Server:
        asked.append(spec)
        return servers.look_up(spec)

    spec = request(databases.building({}), {HOST: "preferred"})
    kept = VMIAttestationFilter(shared, look_up).filter_all(HOSTS, spec)
    weigher = VMIAttestationWeigher(shared, look_up)
    weights.HostWeightHandler().get_weighed_objects([weigher], kept, spec)
    assert asked == [spec]


def test_a_weigher_that_understands_nothing_weighs_nothing(shared: FixedTrust) -> None:
    assert set(best(shared, objects.RequestSpec()).values()) == {0.0}


def test_nova_loads_both_by_their_names() -> None:
    package = "nova_vmi_attest.relying"
    found = filters.HostFilterHandler().get_matching_classes(
        [f"{package}.scheduler_filter.VMIAttestationFilter"]
    )
    assert found == [VMIAttestationFilter]
    name = f"{package}.scheduler_weigher.VMIAttestationWeigher"
    assert weights.HostWeightHandler().get_matching_classes([name]) == [VMIAttestationWeigher]
    assert VMIAttestationWeigher().weight_multiplier(HOSTS[0]) == 10.0


def test_an_unsafe_grace_is_told_at_start(shared: FixedTrust, caplog: pytest.LogCaptureFixture) -> None:
    nova.conf.CONF.set_override("unsafe_stale_grace", 60, "relying")
    VMIAttestationFilter(shared)
    assert "expired results count for 60 s more" in caplog.text
