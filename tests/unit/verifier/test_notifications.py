# SPDX-License-Identifier: Apache-2.0
"""Changes are sent in order, once for all verifiers, and again rather than never."""

from __future__ import annotations

import uuid
from pathlib import Path

import evidence_examples as examples
import jsonschema
import oslo_messaging
import pytest
from oslo_messaging.notify import _impl_test

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.db import models
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.evidence.result import GuestResult, HostResult, Reason, Verdict
from nova_vmi_attest.records.changes import Changes, NumberedChange
from nova_vmi_attest.verifier.appraisal import Appraisal
from nova_vmi_attest.verifier.notifications import SCHEMAS, Notifications, Notifier, payload
from nova_vmi_attest.verifier.results import Results

NOW = 1_000_000
GUEST = uuid.UUID(int=1)


class Recorder:
    """Stands for the bus; ``broken`` is the bus that is away."""

    def __init__(self) -> None:
        self.sent: list[NumberedChange] = []
        self.broken = False

    def changed(self, item: NumberedChange) -> None:
        if self.broken:
            raise oslo_messaging.MessagingException
        self.sent.append(item)

    @property
    def numbers(self) -> list[int]:
        return [item.number for item in self.sent]


class Scene:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.results = Results(database, examples.key("verifier"), "cloud", 300, 1)
        self.bus = Recorder()

    def verifier(self) -> Notifications:
        return Notifications(self.database, self.bus)  # type: ignore[arg-type]

    def change(self, verdict: Verdict, guests: tuple[GuestResult, ...] = ()) -> None:
        with self.database.writer() as session:
            self.results.record(session, Appraisal(True, HostResult("h", verdict), guests), NOW)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_changes_are_sent_once_in_order(scene: Scene) -> None:
    verifier = scene.verifier()
    assert verifier.send(NOW) == 0
    scene.change(Verdict.TRUSTED, (GuestResult(GUEST, Verdict.TRUSTED),))
    scene.change(Verdict.UNTRUSTED, (GuestResult(GUEST, Verdict.UNKNOWN),))
    assert verifier.send(NOW) == 4
    assert verifier.send(NOW) == 0
    assert scene.bus.numbers == [1, 2, 3, 4]


def test_what_was_before_is_history(scene: Scene) -> None:
    scene.change(Verdict.TRUSTED)
    assert scene.verifier().send(NOW) == 0
    assert scene.bus.sent == []


def test_one_verifier_sends_at_a_time(scene: Scene) -> None:
    first, second = scene.verifier(), scene.verifier()
    first.send(NOW)
    scene.change(Verdict.TRUSTED)
    assert second.send(NOW + 59) == 0
    assert first.send(NOW + 59) == 1
    scene.change(Verdict.UNTRUSTED)
    assert second.send(NOW + 100) == 0
    assert second.send(NOW + 59 + 61) == 1
    assert scene.bus.numbers == [1, 2]
    scene.change(Verdict.TRUSTED)
    assert first.send(NOW + 121) == 0, "it notices that its turn was taken over"
    assert second.send(NOW + 121) == 1


def test_what_was_cut_off_is_sent_again(scene: Scene) -> None:
    verifier = scene.verifier()
    verifier.send(NOW)
    scene.change(Verdict.TRUSTED)
    scene.bus.broken = True
    with pytest.raises(oslo_messaging.MessagingException):
        verifier.send(NOW)
    scene.bus.broken = False
    assert verifier.send(NOW + 1) == 1
    assert scene.verifier().send(NOW + 62) == 0
    assert scene.bus.numbers == [1]


def test_a_clock_that_was_ahead_does_not_silence_the_others(scene: Scene) -> None:
    scene.verifier().send(NOW + 86400)
    scene.change(Verdict.TRUSTED)
    assert scene.verifier().send(NOW) == 1


def test_many_changes_go_in_pieces(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.verifier.notifications._AT_ONCE", 2)
    verifier = scene.verifier()
    verifier.send(NOW)
    guests = tuple(GuestResult(uuid.UUID(int=number), Verdict.TRUSTED) for number in range(1, 5))
    scene.change(Verdict.TRUSTED, guests)
    assert [verifier.send(NOW) for _ in range(4)] == [2, 2, 1, 0]
    assert scene.bus.numbers == [1, 2, 3, 4, 5]


@pytest.fixture
def notifier(tmp_path: Path) -> Notifier:
    path = tmp_path / "test.conf"
    path.write_text("[DEFAULT]\ntransport_url = fake:/\n[oslo_messaging_notifications]\ndriver = test\n")
    _impl_test.reset()
    return Notifier(configuration.load(["--config-file", str(path)], "test"), "verifier-1")


def items(scene: Scene) -> tuple[NumberedChange, ...]:
    many = tuple(Reason("text", f"f{number}", -4, 2, "wo\u0301 <b>") for number in range(40))
    with scene.database.writer() as session:
        session.add(
            models.ServerRow(
                guest=str(GUEST), project="p1", name="n", host="h", allowed_host="", required=True,
                status="ACTIVE", task_state="", seen_at=1,
            )
        )  # fmt: skip
    scene.change(Verdict.TRUSTED, (GuestResult(GUEST, Verdict.UNTRUSTED, many),))
    scene.change(Verdict.UNTRUSTED)
    return Changes(scene.database).after(0, 10)


def test_payloads_are_as_their_schemas_say(scene: Scene, notifier: Notifier) -> None:
    for item in items(scene):
        notifier.changed(item)
        notifier.alert(item)
        for outcome in ("done", "failed", "limit_reached"):
            notifier.responded(item, "lock", outcome, "because")
    sent = [message for _, message, _, _ in _impl_test.NOTIFICATIONS]
    assert {message["event_type"] for message in sent} == set(SCHEMAS)
    for message in sent:
        jsonschema.validate(message["payload"], SCHEMAS[message["event_type"]])
        assert message["publisher_id"] == "nova-vmi-attest-verifier.verifier-1"


def test_a_guest_comes_with_its_project_and_the_first_reasons(scene: Scene) -> None:
    guest = next(item for item in items(scene) if item.change.kind == "guest")
    said = payload(guest, guest=guest.change.subject, project=guest.project)
    assert (said["guest"], said["project"], said["host"]) == (str(GUEST), "p1", "h")
    assert (said["verdict"], said["previous"]) == ("untrusted", None)
    assert (len(said["reasons"]), said["reasons_total"]) == (16, 40)


def test_without_a_driver_nothing_is_sent(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "none.conf"
    path.write_text("[DEFAULT]\ntransport_url = fake:/\n")
    _impl_test.reset()
    silent = Notifier(configuration.load(["--config-file", str(path)], "test"), "verifier-1")
    verifier = Notifications(scene.database, silent)
    verifier.send(NOW)
    scene.change(Verdict.TRUSTED)
    assert verifier.send(NOW) == 1
    assert _impl_test.NOTIFICATIONS == []
