# SPDX-License-Identifier: Apache-2.0
"""The verifier as a service with a Nova and a Placement to ask, and what it does on events and on demand."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence_examples as examples
import pytest

from nova_vmi_attest import messaging
from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.challenge import verify_challenge
from nova_vmi_attest.evidence.result import AttestationResult, Verdict
from nova_vmi_attest.records.refusals import Refusals
from nova_vmi_attest.records.results import ResultReader
from nova_vmi_attest.records.servers import Servers
from tests.functional.test_verifier import KEY, THUMBPRINT, Cloud, guest, wait_until
from tests.unit.verifier import scenario
from tests.unit.verifier.fake_cloud import Answer, FakeCloud, server
from tests.unit.verifier.scenario import GUESTS, HOST, SimulatedHost

NONCE = "c0ffee" * 10 + "abcd"
NODE = str(uuid.uuid4())
CREDENTIALS = {
    "auth_type": "password", "username": "attest", "password": "secret", "project_name": "service",
    "user_domain_id": "default", "project_domain_id": "default", "region_name": "One",
    "notification_exchange": "", "placement_reconcile": 5, "trait_interval": 1,
}  # fmt: skip


@pytest.fixture
def fake() -> Iterator[FakeCloud]:
    fake = FakeCloud(nodes={NODE: HOST}, traits={NODE: {"HW_CPU_X86_VMX"}})
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def cloud(tmp_path: Path, fake: FakeCloud) -> Iterator[Cloud]:
    path = tmp_path / "test.conf"
    cloud = Cloud(tmp_path)
    credentials = {**CREDENTIALS, "auth_url": f"{fake.url}/identity/v3"}
    lines = "".join(f"{name} = {value}\n" for name, value in credentials.items())
    path.write_text(f"{path.read_text()}[openstack]\n{lines}")
    cloud.conf.reload_config_files()
    cloud.start()
    yield cloud
    cloud.stop()


def wait_round(cloud: Cloud, fits: Callable[[AttestationResult], bool]) -> AttestationResult:
    """Rounds until a result is as it should be; what Nova says is learnt in the background."""
    found = [cloud.service.wait_for_result(HOST, 0, 20)]

    def looked() -> bool:
        found.append(cloud.round())
        return fits(found[-1])

    wait_until(looked, "the result")
    return found[-1]


def verdicts(result: AttestationResult) -> dict[uuid.UUID, tuple[Verdict, str]]:
    return {
        item.guest: (item.verdict, item.reasons[0].check if item.reasons else "") for item in result.guests
    }


def test_only_guests_of_the_host_count_and_hidden_ones_are_missed(cloud: Cloud, fake: FakeCloud) -> None:
    fake.add(server(GUESTS[0], HOST), server(GUESTS[1], "compute-2"), server(GUESTS[2], HOST))
    cloud.announce()
    result = wait_round(cloud, lambda result: len(result.guests) == 2)
    assert verdicts(result) == {
        GUESTS[0]: (Verdict.TRUSTED, ""),
        GUESTS[2]: (Verdict.UNKNOWN, "guest_missing"),
    }
    assert [reason.symbol for reason in result.host.reasons if reason.check == "not_placed_here"] == [
        str(GUESTS[1])
    ]


def test_a_migrated_guest_is_trusted_on_its_new_host_at_once(cloud: Cloud, fake: FakeCloud) -> None:
    """A look at the host resolves what neither a notification nor the interval has told yet."""
    fake.add(server(GUESTS[0], "compute-2"))
    cloud.agent.guests = [guest(0)]
    cloud.announce()
    wait_until(lambda: bool(Servers(cloud.database).get(GUESTS[0])), "the first list")
    fake.add(server(GUESTS[0], HOST))
    assert verdicts(cloud.round()) == {GUESTS[0]: (Verdict.TRUSTED, "")}


def test_a_domain_that_nova_does_not_know_is_reported(cloud: Cloud, fake: FakeCloud) -> None:
    fake.add(server(GUESTS[0], HOST))
    cloud.announce()
    result = wait_round(cloud, lambda result: len(result.guests) == 2)
    assert verdicts(result)[GUESTS[1]] == (Verdict.UNKNOWN, "not_known_to_nova")
    assert result.host.verdict is Verdict.TRUSTED


def test_forged_evidence_makes_nobody_ask_nova(cloud: Cloud, fake: FakeCloud) -> None:
    fake.add(server(GUESTS[0], HOST), server(GUESTS[1], HOST))
    cloud.announce()
    wait_round(cloud, lambda result: all(item.verdict is Verdict.TRUSTED for item in result.guests))
    looks = [item for item in fake.requests if "host" in item.query]
    stranger = SimulatedHost(key=examples.key("stranger"), certificate=cloud.agent.host.certificate)
    for _ in range(20):
        made_up = scenario.healthy(uuid.uuid4())
        cloud.client.submit(replace(stranger.answer([made_up]), verifier=THUMBPRINT).encode())
        cloud.client.submit(cloud.agent.sent[-1])
    cloud.round()
    assert [item for item in fake.requests if "host" in item.query] == looks


def test_without_nova_nothing_is_trusted(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before = lambda request: Answer(500, {}) if request.path.startswith("/compute") else None
    cloud.announce()
    result = cloud.service.wait_for_result(HOST, 0, 20)
    assert set(verdicts(result).values()) == {(Verdict.UNKNOWN, "placement_unchecked")}
    assert result.host.verdict is Verdict.TRUSTED


def test_the_trait_follows_the_host(cloud: Cloud, fake: FakeCloud) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    wait_until(lambda: "CUSTOM_VMI_ATTESTED" in fake.traits[NODE], "the trait")
    kept = cloud.agent.host.pcrs.pop(7)
    assert cloud.round().host.verdict is Verdict.UNTRUSTED
    wait_until(lambda: fake.traits[NODE] == {"HW_CPU_X86_VMX"}, "the end of the trait")
    cloud.agent.host.pcrs[7] = kept
    cloud.round()
    wait_until(lambda: "CUSTOM_VMI_ATTESTED" in fake.traits[NODE], "the trait again")


def test_an_event_is_followed_by_a_challenge_and_a_strangers_by_none(cloud: Cloud) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    for _ in range(20):
        cloud.client.event(HOST, "guest appeared")
    cloud.client.event("compute-9", "guest appeared")
    cloud.client._client.prepare(version="1.1").cast({}, "event", host={"a": 1}, reason=None)
    assert cloud.service.wait_for_result(HOST, 1, 20).sequence == 2
    assert len(cloud.agent.challenges) == 2


def test_a_refusal_of_a_scheduler_is_kept(cloud: Cloud) -> None:
    hosts = [{"host": HOST, "reason": "stale"}]
    refusal = {
        "at": 1, "server": str(GUESTS[0]), "project": "project-a", "request": "build req-1",
        "level": "required", "total": 1, "hosts": hosts,
    }  # fmt: skip
    cloud.client.refused({**refusal, "hosts": "no list"})
    cloud.client.refused(refusal)
    wait_until(lambda: bool(Refusals(cloud.database).list()), "the refusal")
    (found,) = Refusals(cloud.database).list()
    assert found.hosts[0].host == HOST


def nonces(cloud: Cloud) -> tuple[bytes, ...]:
    stored = ResultReader(cloud.database).batch_of(GUESTS[0])
    return Batch.decode(stored.batch).nonces if stored else ()


def test_a_nonce_on_demand_is_answered_and_renews_the_result(cloud: Cloud, fake: FakeCloud) -> None:
    fake.add(server(GUESTS[0], HOST), server(GUESTS[1], HOST))
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    before = cloud.service.sequence(HOST)
    assert cloud.client.challenge(HOST, NONCE) == NONCE
    wait_until(lambda: bytes.fromhex(NONCE) in nonces(cloud), "the proof")
    wait_until(lambda: cloud.service.sequence(HOST) > before, "the result")
    assert len(cloud.client.challenge(HOST)) == 64
    for host, nonce, why in ((HOST, NONCE, "used before"), ("compute-9", "", "never"), (HOST, "x", "hex")):
        with pytest.raises(messaging.RefusedError, match=why):
            cloud.client.challenge(host, nonce)


class Hoarder:
    """An agent that answers only what it chose itself: as one does whose host is no longer what it was."""

    def __init__(self, cloud: Cloud, honest: Callable[[Mapping[str, Any], str], None]) -> None:
        self.cloud = cloud
        self.honest = honest

    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        asked, _ = verify_challenge(challenge, [KEY.public_key()], HOST, time.time())
        if asked.nonce.hex() == NONCE:
            self.honest(ctxt, challenge)


def test_an_answer_to_a_chosen_nonce_alone_keeps_no_host_trusted(
    cloud: Cloud, fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows the nonce beforehand could have made the answer while the host was still good."""
    fake.add(server(GUESTS[0], HOST), server(GUESTS[1], HOST))
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    before = cloud.service.sequence(HOST)
    hoarder = Hoarder(cloud, cloud.agent.attest)
    cloud.server.stop()
    cloud.server.wait()
    monkeypatch.setattr(
        type(cloud.agent),
        "attest",
        messaging.exposed(lambda _, ctxt, challenge: hoarder.attest(ctxt, challenge)),
    )
    cloud.server = messaging.get_server(cloud.transport, messaging.ATTESTER_TOPIC, HOST, cloud.agent)
    cloud.server.start()
    cloud.client.challenge(HOST, NONCE)
    wait_until(lambda: bytes.fromhex(NONCE) in nonces(cloud), "the proof")
    assert cloud.service.sequence(HOST) == before
