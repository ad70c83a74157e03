# SPDX-License-Identifier: Apache-2.0
"""What Nova places on a host: known from the table, asked for when a host disagrees, too old at some time."""

from __future__ import annotations

import contextlib
import uuid

import pytest

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.servers import Servers
from nova_vmi_attest.verifier import placement as module
from nova_vmi_attest.verifier.marks import Marks
from nova_vmi_attest.verifier.nova import Nova
from nova_vmi_attest.verifier.placement import LEARNT, Placements
from nova_vmi_attest.verifier.reconcile import Reconciler
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, server

NOW = 1_800_000_000
ONE, TWO, THREE, STRANGER = (uuid.UUID(int=number) for number in (1, 2, 3, 99))
HOST = "compute-1"
MIGRATING = {"status": "MIGRATING", "OS-EXT-STS:task_state": "migrating"}


class Scene:
    """A verifier's view of a cloud, with a clock that stands still."""

    def __init__(self, database: Database, cloud: FakeCloud) -> None:
        self.now = NOW
        self.database = database
        self.cloud = cloud
        self.nova = Nova(cloud.openstack())
        self.placements = Placements(database, self.nova, 900, lambda: self.now)
        self.reconciler = Reconciler(database, self.nova, self.placements, 60, 90)

    def reconcile(self) -> None:
        self.reconciler.run_once(self.now)

    def on(self, *shown: uuid.UUID, host: str = HOST) -> module.Placed:
        return self.placements.on(host, shown, self.now)

    def migrate(self, guest: uuid.UUID) -> None:
        self.cloud.migrations = [
            {
                "instance_uuid": str(guest), "status": "running", "source_compute": HOST,
                "dest_compute": "compute-2", "migration_type": "live-migration",
            }
        ]  # fmt: skip


@pytest.fixture
def scene(database: Database, cloud: FakeCloud) -> Scene:
    return Scene(database, cloud)


def test_running_servers_are_required_where_nova_has_them(scene: Scene) -> None:
    scene.cloud.add(server(ONE), server(TWO, "compute-2"), server(THREE, None, status="SHELVED_OFFLOADED"))
    scene.reconcile()
    placed = scene.on(ONE, TWO, THREE)
    assert placed.required == placed.allowed == {ONE}
    assert placed.elsewhere == {TWO, THREE}
    assert placed.checked
    assert placed.doubtful([ONE]) == frozenset()


@pytest.mark.parametrize(
    ("values", "required"),
    [
        ({"OS-EXT-STS:power_state": 3, "OS-EXT-STS:vm_state": "paused", "status": "PAUSED"}, True),
        ({"OS-EXT-STS:vm_state": "rescued", "status": "RESCUE"}, True),
        ({"OS-EXT-STS:power_state": 4, "OS-EXT-STS:vm_state": "stopped", "status": "SHUTOFF"}, False),
        ({"OS-EXT-STS:power_state": 4}, False),
        ({"OS-EXT-STS:vm_state": "suspended", "status": "SUSPENDED"}, False),
        ({"OS-EXT-STS:vm_state": "building", "status": "BUILD", "OS-EXT-STS:task_state": "spawning"}, False),
        ({"OS-EXT-STS:task_state": "rebooting", "status": "REBOOT"}, False),
        ({"OS-EXT-STS:task_state": "deleting"}, False),
        ({"OS-EXT-STS:vm_state": "error", "status": "ERROR"}, False),
        ({"updated": "2027-01-15T07:59:50Z"}, False),
        ({"updated": "2027-01-15T07:59:40Z"}, True),
    ],
)
def test_who_is_in_flight_stopped_or_new_is_allowed_and_not_required(
    scene: Scene, values: dict[str, object], required: bool
) -> None:
    scene.cloud.add(server(ONE, **values))
    scene.reconcile()
    assert scene.on(ONE).allowed == {ONE}
    assert scene.on(ONE).required == ({ONE} if required else frozenset())


def test_who_was_new_is_required_once_it_settled(scene: Scene) -> None:
    scene.cloud.add(server(ONE, updated="2027-01-15T07:59:55Z"))
    scene.reconcile()
    assert scene.on().required == frozenset()
    scene.now += 60
    scene.reconcile()
    assert scene.on().required == {ONE}


def test_a_migrating_server_may_be_on_both_hosts_and_must_be_on_none(scene: Scene) -> None:
    scene.cloud.add(server(ONE, **MIGRATING))
    scene.migrate(ONE)
    scene.reconcile()
    for host in (HOST, "compute-2"):
        placed = scene.on(ONE, host=host)
        assert (placed.allowed, placed.required, placed.elsewhere) == ({ONE}, frozenset(), frozenset())
    assert scene.on(ONE, host="compute-3").elsewhere == {ONE}


def test_a_look_settles_what_moved_since(scene: Scene) -> None:
    """Both hosts agree with Nova at once, with neither a notification nor the next interval."""
    scene.cloud.add(server(ONE), server(TWO))
    scene.reconcile()
    scene.cloud.add(server(ONE, "compute-2"))
    scene.cloud.servers.pop(str(TWO))
    assert scene.on().doubtful([]) == {ONE, TWO}
    scene.now += 1
    assert scene.placements.look(HOST, [ONE, TWO])
    assert scene.on().doubtful([]) == frozenset()
    assert scene.on(ONE, host="compute-2").allowed == {ONE}
    gone = Servers(scene.database).get(TWO)
    assert gone is not None
    assert gone.deleted_at == scene.now


def test_a_new_server_is_found_by_the_look_of_its_host(scene: Scene) -> None:
    scene.reconcile()
    scene.cloud.add(server(ONE))
    assert scene.on(ONE).doubtful([ONE]) == {ONE}
    assert scene.placements.look(HOST, [ONE])
    assert scene.on(ONE).allowed == {ONE}


def test_a_domain_that_nova_does_not_know_is_asked_for_once(scene: Scene) -> None:
    scene.reconcile()
    assert scene.placements.look(HOST, [STRANGER])
    placed = scene.on(STRANGER)
    assert placed.foreign == {STRANGER}
    assert placed.doubtful([STRANGER]) == frozenset()
    scene.now += 301
    scene.reconcile()
    assert scene.on(STRANGER).doubtful([STRANGER]) == {STRANGER}


def test_a_deleted_server_that_still_runs_is_foreign(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    scene.cloud.add(server(ONE, None, status="DELETED", updated="2027-01-15T08:00:10Z"))
    scene.now += 60
    scene.reconcile()
    assert scene.on(ONE).foreign == {ONE}
    assert scene.on().required == frozenset()


def test_looks_are_rationed_per_host_and_bounded(scene: Scene) -> None:
    scene.reconcile()
    made_up = [uuid.UUID(int=number) for number in range(100, 400)]
    looks = [scene.placements.look(HOST, made_up) for _ in range(10)]
    assert looks.count(True) == 4
    assert len(scene.cloud.asked("GET", "/compute/servers/0")) <= 4 * 12
    assert scene.placements.look("compute-2", [])


def test_who_shows_made_up_guests_keeps_others_from_no_look(scene: Scene) -> None:
    scene.reconcile()
    while scene.placements.look(HOST, [STRANGER]):
        pass
    scene.cloud.add(server(ONE, "compute-2"))
    assert scene.placements.look("compute-2", [ONE])
    assert scene.on(ONE, host="compute-2").allowed == {ONE}


def test_nothing_is_checked_before_nova_was_asked_and_a_look_is_enough_for_one_host(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    assert not scene.on(ONE).checked
    assert scene.placements.look(HOST, [ONE])
    assert scene.on(ONE).checked
    assert not scene.on(host="compute-2").checked


def test_what_was_learnt_counts_for_its_lifetime_when_nova_is_away(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    scene.cloud.before = lambda request: Answer(500, {})
    assert not scene.placements.look(HOST, [TWO])
    scene.now += 900
    assert scene.on(ONE).checked
    scene.now += 1
    placed = scene.on(ONE)
    assert not placed.checked
    assert placed.allowed == {ONE}


def test_verifiers_share_what_they_learn(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    other = Scene(scene.database, scene.cloud)
    asked = len(scene.cloud.requests)
    other.reconcile()
    assert len(scene.cloud.requests) == asked
    assert other.on(ONE).required == {ONE}
    assert other.on(ONE).checked


def test_a_look_that_finds_no_place_decides_on_what_is_known(scene: Scene) -> None:
    with contextlib.ExitStack() as looking:
        for _ in range(4):
            assert scene.placements._places.acquire(blocking=False)
            looking.callback(scene.placements._places.release)
        assert not scene.placements.look(HOST, [ONE])
    assert scene.cloud.requests == []
    assert scene.placements.look(HOST, [ONE])


def test_a_clock_that_was_ahead_does_not_make_old_knowledge_last(scene: Scene) -> None:
    Marks(scene.database).set(LEARNT, NOW + 10**6, NOW)
    assert not scene.on().checked


def test_a_hidden_guest_stays_required_whatever_its_host_says(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    assert scene.placements.look(HOST, [ONE])
    assert scene.on().required == {ONE}
