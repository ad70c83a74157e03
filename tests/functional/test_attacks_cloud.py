# SPDX-License-Identifier: Apache-2.0
"""A compromised host, with a TPM that is its own and the run of the bus, against a verifier with a cloud."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.messaging import RefusedError
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.records.registry import HostRegistry
from nova_vmi_attest.records.responses import ResponseReader
from nova_vmi_attest.verifier.marks import Marks
from tests.functional.test_verifier import Cloud, guest, wait_until
from tests.functional.test_verifier_cloud import CREDENTIALS, NODE, verdicts, wait_round
from tests.unit.tpm.maker import Chip, Maker
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, Request, server
from tests.unit.verifier.scenario import GUESTS, HOST

TRAIT = "CUSTOM_VMI_ATTESTED"


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    fake = FakeCloud(nodes={NODE: HOST}, traits={NODE: {"HW_CPU_X86_VMX"}})
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def cloud(tmp_path: Path, fake: FakeCloud) -> Iterator[Cloud]:
    """A verifier that locks whatever it finds altered, at once and the first time, too."""
    cloud = Cloud(tmp_path)
    credentials = {**CREDENTIALS, "auth_url": f"{fake.url}/identity/v3"}
    lines = "".join(f"{name} = {value}\n" for name, value in credentials.items())
    path = tmp_path / "test.conf"
    responses = "on_guest_untrusted = lock, pause\nfirst_verdicts = true\nconfirm_after = 0\n"
    path.write_text(f"{path.read_text()}[openstack]\n{lines}[responses]\n{responses}")
    cloud.conf.reload_config_files()
    cloud.start()
    # Verdicts from before the first look are history.
    wait_until(lambda: Marks(cloud.database).get("responses") is not None, "the first look")
    yield cloud
    cloud.stop()


def actions(fake: FakeCloud) -> list[Request]:
    return [item for item in fake.asked("POST", "/compute") if item.path.endswith("/action")]


def demands(cloud: Cloud, count: int) -> int:
    """How many of so many demands for a challenge are met."""
    met = 0
    for _ in range(count):
        with contextlib.suppress(RefusedError):
            cloud.client.challenge(HOST, "")
            met += 1
    return met


def test_decoys_of_others_guests_bring_them_neither_verdicts_nor_locks(cloud: Cloud, fake: FakeCloud) -> None:
    """Altered and under the name of a server that Nova has elsewhere; beside it one of the host's own."""
    fake.add(server(GUESTS[0], HOST, locked=False), server(GUESTS[1], "compute-2", locked=False))
    cloud.agent.guests = [guest(0, healthy=False), guest(1, healthy=False)]
    cloud.announce()
    result = wait_round(cloud, lambda result: len(result.guests) == 1)
    assert verdicts(result)[GUESTS[0]][0] is Verdict.UNTRUSTED
    wait_until(lambda: len(actions(fake)) >= 1, "the lock of the host's own guest")
    assert {item.path for item in actions(fake)} == {f"/compute/servers/{GUESTS[0]}/action"}
    subjects = {item.subject for item in ResponseReader(cloud.database).newest()}
    assert str(GUESTS[1]) not in subjects


def test_a_flood_over_the_bus_keeps_no_evidence_out(cloud: Cloud, fake: FakeCloud) -> None:
    fake.add(server(GUESTS[0], HOST), server(GUESTS[1], HOST))
    cloud.announce()
    wait_round(cloud, lambda result: all(item.verdict is Verdict.TRUSTED for item in result.guests))
    forged: dict[str, Any] = {
        "at": 0, "project": "p", "request": "build req-1", "level": "required", "total": 0, "hosts": [],
    }  # fmt: skip
    challenged = len(cloud.agent.sent)
    for number in range(600):
        cloud.client.event(HOST, "appeared")
        cloud.client.event(f"compute-{number}", "appeared")
        cloud.client.refused({**forged, "server": str(uuid.uuid4())})
    assert cloud.round().host.verdict is Verdict.TRUSTED
    assert len(Refusals(cloud.database).list(limit=1000)) < 400
    assert len(cloud.agent.sent) - challenged < 60
    assert 1 <= demands(cloud, 30) < 30


def test_who_was_withdrawn_keeps_neither_word_nor_trait(cloud: Cloud, fake: FakeCloud) -> None:
    registry = HostRegistry(cloud.database)
    registry.register(HOST, Chip(Maker()).ek_certificate())
    overrides, now = Overrides(cloud.database), int(time.time())
    overrides.set(HOST, "known to be good", "alice", 3600, now)
    wait_until(lambda: TRAIT in fake.traits[NODE], "the trait on the operator's word")
    registry.unregister(HOST)
    wait_until(lambda: TRAIT not in fake.traits[NODE], "the end of the trait")
    assert overrides.active(HOST, int(time.time())) is None


def test_a_nova_that_hangs_with_errors_keeps_no_trait(cloud: Cloud, fake: FakeCloud) -> None:
    overrides, now = Overrides(cloud.database), int(time.time())
    overrides.set(HOST, "known to be good", "alice", 3600, now)
    wait_until(lambda: TRAIT in fake.traits[NODE], "the trait on the operator's word")
    fake.before = lambda request: Answer(500, {}) if request.path.startswith("/compute") else None
    overrides.lift(HOST, "bob", int(time.time()))
    wait_until(lambda: TRAIT not in fake.traits[NODE], "the end of the trait")
