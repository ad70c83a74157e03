# SPDX-License-Identifier: Apache-2.0
"""The table of servers follows Nova, with one verifier asking, whatever is lost, forged or away."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.records.servers import Servers
from nova_vmi_attest.verifier import reconcile
from nova_vmi_attest.verifier.marks import Marks
from nova_vmi_attest.verifier.nova_events import server_of
from nova_vmi_attest.verifier.placement import LEARNT
from nova_vmi_attest.verifier.rate import Ration
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, server
from tests.unit.verifier.test_placement import NOW, ONE, THREE, TWO, Scene

LATER = "2027-01-15T08:00:10Z"


@pytest.fixture
def scene(database: Database, cloud: FakeCloud) -> Scene:
    return Scene(database, cloud)


def known(scene: Scene) -> set[uuid.UUID]:
    return {item.guest for item in Servers(scene.database).all(None, 1000)}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lists(scene: Scene) -> list[dict[str, str]]:
    return [request.query for request in scene.cloud.asked("GET", "/compute/servers/detail")]


def test_all_are_listed_once_and_then_what_changed(scene: Scene) -> None:
    scene.cloud.add(server(ONE), server(TWO))
    scene.reconcile()
    scene.now += 30
    scene.reconcile()
    assert len(lists(scene)) == 1
    scene.cloud.add(server(THREE, updated=LATER), server(ONE, None, status="DELETED", updated=LATER))
    scene.now += 30
    scene.reconcile()
    assert [query.get("changes-since") for query in lists(scene)] == [None, "2027-01-15T07:57:45Z"]
    assert known(scene) == {TWO, THREE}


def test_a_day_later_all_are_listed_again_and_what_is_missing_is_asked_for(scene: Scene) -> None:
    scene.cloud.add(server(ONE), server(TWO), server(THREE))
    scene.reconcile()
    scene.now += 86400
    scene.cloud.servers.pop(str(ONE))
    scene.cloud.add({"id": str(TWO), "status": "UNKNOWN", "tenant_id": "project-a"})
    scene.reconcile()
    assert known(scene) == {TWO, THREE}


def test_a_server_in_a_cell_that_is_down_stays_as_it_was(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    scene.cloud.add({"id": str(ONE), "status": "UNKNOWN", "tenant_id": "project-a"})
    scene.now += 86400
    scene.reconcile()
    found = Servers(scene.database).get(ONE)
    assert found is not None
    assert (found.host, found.deleted_at) == ("compute-1", None)


def test_a_list_that_breaks_off_is_no_list(scene: Scene) -> None:
    scene.cloud.page = 1
    scene.cloud.add(server(ONE), server(TWO))
    scene.cloud.before = lambda request: Answer(500, {}) if "marker" in request.query else None
    with pytest.raises(AttestError):
        scene.reconcile()
    assert Marks(scene.database).get(LEARNT) is None
    assert not scene.on(ONE).checked
    scene.cloud.before = lambda request: None
    scene.now += 60
    scene.reconcile()
    assert scene.on(ONE).checked
    assert known(scene) == {ONE, TWO}


def test_what_was_missed_while_nova_was_away_is_asked_for_afterwards(scene: Scene) -> None:
    scene.cloud.add(server(ONE))
    scene.reconcile()
    scene.cloud.before = lambda request: Answer(503, {})
    scene.now += 60
    with pytest.raises(AttestError):
        scene.reconcile()
    scene.cloud.add(server(TWO, updated=LATER))
    scene.cloud.before = lambda request: None
    scene.now += 3600
    scene.reconcile()
    assert known(scene) == {ONE, TWO}
    assert lists(scene)[-1]["changes-since"] == "2027-01-15T07:57:45Z"


def test_one_verifier_asks_at_a_time(scene: Scene) -> None:
    others = [Scene(scene.database, scene.cloud) for _ in range(3)]
    for one in (scene, *others):
        one.reconcile()
    assert len(lists(scene)) == 1


def test_hints_are_followed_one_by_one(scene: Scene) -> None:
    scene.reconcile()
    scene.cloud.add(server(ONE))
    scene.reconciler.hint(ONE)
    scene.reconciler.hint(ONE)
    scene.reconciler.hint(TWO)
    scene.now += 1
    scene.reconcile()
    assert known(scene) == {ONE}
    asked = scene.cloud.asked("GET", "/compute/servers/0")
    assert len(asked) == 2


def test_a_flood_of_forged_hints_is_one_question(scene: Scene) -> None:
    scene.reconcile()
    scene.cloud.add(server(ONE, updated=LATER))
    for _ in range(5):
        for _ in range(5000):
            scene.reconciler.hint(uuid.uuid4())
        scene.reconcile()
    assert scene.cloud.asked("GET", "/compute/servers/0") == []
    assert len(lists(scene)) == 2
    assert known(scene) == {ONE}
    assert len(scene.reconciler._hints) <= 256


def test_the_thread_survives_a_cloud_that_is_away(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.cloud.before = lambda request: Answer(500, {})
    scene.reconciler.start()
    try:
        wait_until(lambda: "not known" in caplog.text)
    finally:
        scene.reconciler.stop()
    assert not [record for record in caplog.records if record.name == reconcile.__name__ and record.exc_info]


def test_a_turn_is_taken_once_and_survives_a_clock_that_was_ahead(database: Database) -> None:
    marks = Marks(database)
    assert marks.take_turn("turn", 60, NOW)
    assert not marks.take_turn("turn", 60, NOW + 59)
    assert marks.take_turn("turn", 60, NOW + 60)
    assert marks.take_turn("turn", 60, NOW - 86400)
    assert marks.get("never") is None
    marks.set("mark", 5, NOW)
    marks.set("mark", 4, NOW + 1)
    found = marks.get("mark")
    assert found is not None
    assert (found.position, found.updated) == (4, NOW + 1)


def test_a_ration_is_a_burst_and_then_a_trickle() -> None:
    now = [0.0]
    ration = Ration(3, 10.0, lambda: now[0])
    assert [ration.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert ration.take("b")
    now[0] = 10.0
    assert [ration.take("a") for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [ration.take("a") for _ in range(4)] == [True, True, True, False]


def test_names_that_are_made_up_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.verifier.rate._MOST_NAMES", 10)
    now = [0.0]
    ration = Ration(1, 10.0, lambda: now[0])
    assert sum(ration.take(str(number)) for number in range(100)) == 10
    now[0] = 11.0
    assert ration.take("new")


_anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=40) | st.uuids().map(str),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["uuid", "nova_object.data"]) | st.text(max_size=4), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(_anything)
def test_a_notification_of_any_shape_names_a_server_or_none(payload: Any) -> None:
    found = server_of(payload)
    assert found is None or str(found) == payload["nova_object.data"]["uuid"].lower()


def test_a_notification_of_nova_names_its_server() -> None:
    assert server_of({"nova_object.data": {"uuid": str(ONE)}}) == ONE
