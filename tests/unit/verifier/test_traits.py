# SPDX-License-Identifier: Apache-2.0
"""The trait follows the verdicts: given to hosts with a valid trusted result, taken from all others."""

from __future__ import annotations

import uuid

import pytest

from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.verifier import traits as module
from nova_vmi_attest.verifier.nova import Nova
from nova_vmi_attest.verifier.providers import Providers
from nova_vmi_attest.verifier.traits import Traits
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, Request

NOW = 1_800_000_000
TRAIT = "CUSTOM_VMI_ATTESTED"
NODES = [str(uuid.UUID(int=number)) for number in range(1, 5)]


class Scene:
    """Two hosts of one node each, and one with two nodes."""

    def __init__(self, database: Database, cloud: FakeCloud) -> None:
        self.database = database
        self.cloud = cloud
        cloud.nodes = dict(zip(NODES, ("compute-1", "compute-2", "ironic", "ironic"), strict=True))
        cloud.traits = {node: {"HW_CPU_X86_VMX"} for node in NODES}
        self.traits = self.another()

    def another(self) -> Traits:
        openstack = self.cloud.openstack()
        return Traits(self.database, Nova(openstack), Providers(openstack), TRAIT, 5)

    def result(self, host: str, verdict: str = "trusted", expires: int = NOW + 300) -> None:
        row = models.ResultRow(host=host, sequence=1, verdict=verdict, reasons="[]", token="t")
        row.issued, row.expires = NOW, expires
        with self.database.writer() as session:
            session.merge(row)

    def having(self) -> set[str]:
        return {node for node, traits in self.cloud.traits.items() if TRAIT in traits}

    def writes(self) -> int:
        return len(self.cloud.asked("PUT", "/placement/resource_providers"))


@pytest.fixture
def scene(database: Database, cloud: FakeCloud) -> Scene:
    return Scene(database, cloud)


def test_trusted_hosts_get_it_on_all_their_nodes_beside_their_other_traits(scene: Scene) -> None:
    scene.result("compute-1")
    scene.result("compute-2", "untrusted")
    scene.result("ironic")
    assert scene.traits.run_once(NOW) == 3
    assert scene.having() == {NODES[0], NODES[2], NODES[3]}
    assert all("HW_CPU_X86_VMX" in traits for traits in scene.cloud.traits.values())


def test_nothing_is_written_when_nothing_changed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.result("compute-1")
    scene.traits.run_once(NOW)
    before = len(scene.cloud.requests)
    assert [scene.traits.run_once(NOW + second) for second in range(5)] == [0] * 5
    assert len(scene.cloud.requests) == before
    monkeypatch.setattr(module, "_ASK_EVERY", 0.0)
    assert scene.traits.run_once(NOW) == 0
    assert scene.writes() == 1
    assert len(scene.cloud.requests) == before + 1


@pytest.mark.parametrize("verdict", ["untrusted", "unknown", "stale"])
def test_a_host_that_is_not_trusted_any_more_loses_it(scene: Scene, verdict: str) -> None:
    scene.result("compute-1")
    scene.traits.run_once(NOW)
    scene.result("compute-1", verdict)
    assert scene.traits.run_once(NOW) == 1
    assert scene.having() == set()
    assert scene.cloud.traits[NODES[0]] == {"HW_CPU_X86_VMX"}


def test_a_result_that_ended_takes_it_without_any_agent(scene: Scene) -> None:
    scene.result("compute-1", expires=NOW + 10)
    scene.traits.run_once(NOW)
    scene.traits.run_once(NOW + 9)
    assert scene.having() == {NODES[0]}
    scene.traits.run_once(NOW + 10)
    assert scene.having() == set()


def test_who_was_given_it_by_somebody_else_loses_it(scene: Scene) -> None:
    scene.cloud.known_traits.add(TRAIT)
    scene.cloud.traits[NODES[1]].add(TRAIT)
    assert scene.traits.run_once(NOW) == 1
    assert scene.having() == set()


def test_a_host_whose_trait_was_lost_gets_it_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.result("compute-1")
    scene.traits.run_once(NOW)
    scene.cloud.traits[NODES[0]].discard(TRAIT)
    monkeypatch.setattr(module, "_ASK_EVERY", 0.0)
    assert scene.traits.run_once(NOW) == 1
    assert scene.having() == {NODES[0]}


def test_a_write_that_somebody_else_overtook_is_made_the_next_time(scene: Scene) -> None:
    def overtake(request: Request) -> Answer | None:
        if request.method == "PUT" and "resource_providers" in request.path:
            scene.cloud.traits[NODES[0]].add("CUSTOM_OTHER")
            scene.cloud.generations[NODES[0]] = scene.cloud.generations.get(NODES[0], 0) + 1
            scene.cloud.before = lambda request: None
        return None

    scene.result("compute-1")
    scene.cloud.before = overtake
    assert scene.traits.run_once(NOW) == 0
    assert scene.traits.run_once(NOW) == 1
    assert scene.cloud.traits[NODES[0]] == {"HW_CPU_X86_VMX", "CUSTOM_OTHER", TRAIT}


def test_verifiers_do_each_others_work_no_harm(scene: Scene) -> None:
    scene.result("compute-1")
    other = scene.another()
    assert [scene.traits.run_once(NOW), other.run_once(NOW)] == [1, 0]
    scene.result("compute-1", "untrusted")
    assert [other.run_once(NOW), scene.traits.run_once(NOW)] == [1, 0]


def test_a_node_that_is_gone_stops_nobody_elses_trait(scene: Scene) -> None:
    scene.result("compute-1")
    scene.result("compute-2")
    del scene.cloud.traits[NODES[0]]
    assert scene.traits.run_once(NOW) == 1
    assert scene.having() == {NODES[1]}


def test_a_compute_node_that_was_made_anew_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ASK_EVERY", 0.0)
    scene.result("compute-1")
    scene.traits.run_once(NOW)
    new = str(uuid.uuid4())
    for table in (scene.cloud.nodes, scene.cloud.traits):
        del table[NODES[0]]  # type: ignore[attr-defined]
    scene.cloud.nodes[new], scene.cloud.traits[new] = "compute-1", set()
    scene.traits.run_once(NOW)
    scene.traits.run_once(NOW)
    assert scene.having() == {new}


@pytest.mark.parametrize("away", ["/compute", "/placement", "/identity"])
def test_a_service_that_is_away_is_an_error_and_healed_later(scene: Scene, away: str) -> None:
    scene.result("compute-1")
    scene.cloud.before = lambda request: Answer(500, {}) if request.path.startswith(away) else None
    with pytest.raises(AttestError):
        scene.traits.run_once(NOW)
    scene.cloud.before = lambda request: None
    assert scene.traits.run_once(NOW) == 1


def test_removals_come_first_and_writing_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.result("compute-1")
    scene.traits.run_once(NOW)
    scene.result("compute-1", "untrusted")
    scene.result("compute-2")
    scene.cloud.requests.clear()
    scene.traits.run_once(NOW)
    written = [item.path for item in scene.cloud.asked("PUT", "/placement/resource_providers")]
    assert [NODES[0] in written[0], NODES[1] in written[1]] == [True, True]
    monkeypatch.setattr(module, "_WRITING", -1.0)
    scene.result("compute-2", "untrusted")
    assert scene.traits.run_once(NOW) == 0
    monkeypatch.undo()
    assert scene.traits.run_once(NOW) == 1
    assert scene.having() == set()


def test_a_result_from_the_future_gives_no_trait(scene: Scene) -> None:
    """A verifier's clock was ahead: what it issued must not count for as long as it was ahead."""
    scene.result("compute-1", expires=NOW + 300)
    assert scene.traits.run_once(NOW - 3600) == 0
    assert scene.having() == set()
    scene.traits.run_once(NOW)
    assert scene.having() == {NODES[0]}
    scene.traits.run_once(NOW - 3600)
    assert scene.having() == set()


def test_a_nova_that_is_away_keeps_nobody_from_losing_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.result("compute-1")
    scene.result("compute-2")
    scene.traits.run_once(NOW)
    monkeypatch.setattr(module, "_NODES_EVERY", -1.0)
    monkeypatch.setattr(module, "_NODES_SOONEST", -1.0)
    scene.cloud.before = lambda request: Answer(500, {}) if request.path.startswith("/compute") else None
    scene.result("compute-1", "untrusted")
    with pytest.raises(AttestError):
        scene.traits.run_once(NOW)
    assert scene.having() == {NODES[1]}


@pytest.mark.parametrize("way", ["refuse", "too many traits"])
def test_a_provider_that_cannot_be_written_shields_no_other(scene: Scene, way: str) -> None:
    """Whoever writes to Placement could otherwise keep the trait of every host with a higher id."""

    def refuse(request: Request) -> Answer | None:
        if not request.path.endswith(f"{NODES[0]}/traits"):
            return None
        if way == "refuse":
            return Answer(400, {"errors": []})
        many = [f"CUSTOM_{number}" for number in range(10_001)] + [TRAIT]
        return Answer(body={"traits": many, "resource_provider_generation": 1})

    scene.result("compute-1")
    scene.result("compute-2")
    scene.traits.run_once(NOW)
    scene.cloud.before = refuse
    scene.result("compute-1", "untrusted")
    scene.result("compute-2", "untrusted")
    with pytest.raises(AttestError):
        scene.traits.run_once(NOW)
    assert scene.having() == {NODES[0]}, "and it is tried again"
    scene.cloud.before = lambda request: None
    assert scene.traits.run_once(NOW) == 1


def test_many_providers_that_refuse_come_last_the_next_time(scene: Scene) -> None:
    mine = [str(uuid.UUID(int=number)) for number in range(100, 110)]
    scene.cloud.nodes |= dict.fromkeys(mine, "compute-9")
    scene.cloud.traits |= {node: {TRAIT} for node in mine}
    scene.cloud.known_traits.add(TRAIT)
    victim = str(uuid.UUID(int=200))
    scene.cloud.nodes[victim], scene.cloud.traits[victim] = "compute-8", {TRAIT}
    scene.cloud.before = lambda request: (
        Answer(400, {}) if request.method == "PUT" and request.path.split("/")[-2] in mine else None
    )
    for _ in range(3):
        with pytest.raises(AttestError):
            scene.traits.run_once(NOW)
    assert scene.having() == set(mine)


def test_compute_nodes_lose_it_before_providers_that_somebody_made_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = [str(uuid.UUID(int=0)), str(uuid.UUID(int=1 << 127))]
    scene.result("compute-2")
    scene.traits.run_once(NOW)
    scene.result("compute-2", "untrusted")
    scene.cloud.traits |= {provider: {TRAIT} for provider in made_up}
    monkeypatch.setattr(module, "_ASK_EVERY", 0.0)
    scene.cloud.requests.clear()
    scene.traits.run_once(NOW)
    written = [item.path for item in scene.cloud.asked("PUT", "/placement/resource_providers")]
    assert NODES[1] in written[0]
    assert scene.having() == set()
