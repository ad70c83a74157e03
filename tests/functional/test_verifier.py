# SPDX-License-Identifier: Apache-2.0
"""The verifier as a service on a bus, with a host that answers from memory and a relying party that
listens.
"""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence_examples as examples
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from oslo_config import cfg

from nova_vmi_attest import conf as configuration
from nova_vmi_attest import messaging
from nova_vmi_attest.authority.ca import CertificateAuthority, create_ca
from nova_vmi_attest.db.session import BusyError, Database, DatabaseError, DuplicateError
from nova_vmi_attest.evidence import keys
from nova_vmi_attest.evidence.batch import Batch
from nova_vmi_attest.evidence.challenge import Challenge, verify_challenge
from nova_vmi_attest.evidence.reference_index import verify_index
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.references.manifest import Blob, Manifest, ModuleBlob, Source
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.relying.listener import ResultListener
from nova_vmi_attest.relying.trust import TrustCache
from nova_vmi_attest.verifier import challenges
from nova_vmi_attest.verifier.service import VerifierError, VerifierService
from tests.unit.verifier import scenario
from tests.unit.verifier.scenario import GUESTS, HOST, SimulatedHost

KEY = examples.key("verifier")
THUMBPRINT = keys.thumbprint(KEY.public_key())


def manifest() -> Manifest:
    """The kernel that the healthy guests of this test run."""
    digest = examples.octets("virtio_net").hex()
    return Manifest(
        "6.1.0-56-cloud-amd64", "ab" * 20, "cd" * 32, Blob(digest, 1), (ModuleBlob("virtio_net", digest, 1),),
        Source("linux-image", "1", digest),
    )  # fmt: skip


def guest(number: int, *, healthy: bool = True) -> Any:
    measurement = (scenario.healthy if healthy else scenario.altered)(GUESTS[number])
    kernel = measurement.integrity.kernel
    assert kernel is not None
    kernel = replace(kernel, reference=manifest().digest, build_id=manifest().build_id)
    return replace(measurement, integrity=replace(measurement.integrity, kernel=kernel))


class Agent:
    """Answers challenges on the bus with the evidence of a simulated host."""

    def __init__(self, host: SimulatedHost, client: messaging.VerifierClient) -> None:
        self.host = host
        self.client = client
        self.guests = [guest(0), guest(1)]
        self.change: Callable[[Batch], Batch] = lambda batch: batch
        self.sent: list[bytes] = []
        self.challenges: list[Challenge] = []
        self._round = threading.Lock()

    @messaging.exposed
    def attest(self, ctxt: Mapping[str, Any], challenge: str) -> None:
        asked, _ = verify_challenge(challenge, [KEY.public_key()], HOST, time.time())
        self.challenges.append(asked)
        # One round after the other, as a real agent, whose pause lets each be appraised before the next.
        with self._round:
            batch = self.host.answer(self.guests, nonces=[asked.nonce], since=asked.since)
            batch = replace(batch, verifier=THUMBPRINT)
            data = self.change(batch).encode()
            self.sent.append(data)
            self.client._client.call({}, "submit", batch=base64.b64encode(data).decode())


class Cloud:
    """One verifier, one host and one relying party on a bus of this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = self._configure()
        self.database = Database(self.conf.database.connection)
        self.transport = messaging.get_transport(self.conf)
        self.client = messaging.VerifierClient(self.transport, timeout=10)
        self.store = ReferenceStore(directory / "references")
        self.store.put_manifest(manifest().encode())
        create_ca(directory / "ca.key", directory / "ca.pem")
        self.authority = CertificateAuthority.load(directory / "ca.key", directory / "ca.pem")
        certificate = scenario.certificate(authority=self.authority, issued=int(time.time()))
        self.agent = Agent(SimulatedHost(certificate=certificate), self.client)
        self.cache = TrustCache([KEY.public_key()], "nova-vmi-attest")
        self.service = VerifierService(self.conf, self.transport, self.database, KEY)

    def start(self) -> None:
        self.database.upgrade()
        self.service.start()
        self.server = messaging.get_server(self.transport, messaging.ATTESTER_TOPIC, HOST, self.agent)
        self.server.start()

    def stop(self) -> None:
        self.service.stop()
        self.server.stop()
        self.server.wait()

    def announce(self, host: str = HOST, certificate: bytes | None = None) -> None:
        der = self.agent.host.certificate if certificate is None else certificate
        pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
        self.client.announce(host, pem)

    def round(self) -> Any:
        before = self.service.sequence(HOST)
        self.service.challenge(HOST)
        return self.service.wait_for_result(HOST, before, 20)

    def _configure(self) -> cfg.ConfigOpts:
        path = self.directory / "test.conf"
        path.write_text(
            f"""[DEFAULT]
transport_url = fake:/
[database]
connection = sqlite:///{self.directory}/attest.sqlite
[verifier]
host = verifier-1
authority_certificates = {self.directory}/ca.pem
interval = 3600
result_lifetime = 7200
[policy]
required_checks = text, modules
[references]
path = {self.directory}/references
"""
        )
        return configuration.load(["--config-file", str(path)], "test")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.stop()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def test_a_host_that_announces_itself_is_challenged_and_appraised(cloud: Cloud) -> None:
    cloud.announce()
    result = cloud.service.wait_for_result(HOST, 0, 20)
    assert (result.host.verdict, result.sequence) == (Verdict.TRUSTED, 1)
    assert [item.verdict for item in result.guests] == [Verdict.TRUSTED, Verdict.TRUSTED]
    cloud.agent.guests = [guest(0), guest(1, healthy=False)]
    result = cloud.round()
    assert [item.verdict for item in result.guests] == [Verdict.TRUSTED, Verdict.UNTRUSTED]
    assert result.guests[1].reasons[0].symbol == "__x64_sys_getdents64"
    assert [item.since for item in cloud.agent.challenges] == [0, 2]


def test_a_second_announcement_is_no_second_challenge(cloud: Cloud) -> None:
    for _ in range(3):
        cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    cloud.announce()
    assert cloud.round().sequence == 2
    assert len(cloud.agent.challenges) == 2


def test_forged_announcements_bring_nothing_about(cloud: Cloud) -> None:
    cloud.announce("compute-9")
    cloud.announce(certificate=scenario.certificate(issued=int(time.time())))
    cloud.client.announce(HOST, "no certificate")
    cloud.client.announce(HOST, None)  # type: ignore[arg-type]
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    with pytest.raises(VerifierError, match="never announced"):
        cloud.service.challenge("compute-9")
    assert len(cloud.agent.challenges) == 1


def test_bad_batches_change_no_verdict_and_do_not_stop_the_next(cloud: Cloud) -> None:
    cloud.announce()
    assert cloud.service.wait_for_result(HOST, 0, 20).host.verdict is Verdict.TRUSTED
    cloud.client.submit(b"no batch")
    cloud.client.submit(b"")
    cloud.client._client.cast({}, "submit", batch=17)
    cloud.client._client.cast({}, "submit", batch="not base64!")
    cloud.client.submit(cloud.agent.sent[0])
    stranger = SimulatedHost(key=examples.key("stranger"), certificate=cloud.agent.host.certificate)
    cloud.client.submit(replace(stranger.answer(cloud.agent.guests), verifier=THUMBPRINT).encode())
    result = cloud.round()
    assert (result.host.verdict, result.sequence) == (Verdict.TRUSTED, 2)


def test_evidence_forged_with_the_open_nonce_does_not_use_it_up(cloud: Cloud) -> None:
    """Who reads the bus sees the nonce; an answer that the TPM did not sign must not close the challenge."""
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    stranger = SimulatedHost(key=examples.key("stranger"), certificate=cloud.agent.host.certificate)

    def forge_first(batch: Batch) -> Batch:
        forged = stranger.answer(cloud.agent.guests, nonces=batch.nonces)
        cloud.client.submit(replace(forged, verifier=THUMBPRINT).encode())
        return batch

    cloud.agent.change = forge_first
    assert cloud.round().host.verdict is Verdict.TRUSTED


def test_a_host_that_fails_is_untrusted_and_recovers(cloud: Cloud) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    pcrs = dict(cloud.agent.host.pcrs)
    del cloud.agent.host.pcrs[7]
    result = cloud.round()
    assert result.host.verdict is Verdict.UNTRUSTED
    assert [item.verdict for item in result.guests] == [Verdict.UNKNOWN, Verdict.UNKNOWN]
    cloud.agent.host.pcrs[7] = pcrs[7]
    assert cloud.round().host.verdict is Verdict.TRUSTED


def test_a_genuine_quote_relayed_with_other_parts_changes_nothing(cloud: Cloud) -> None:
    """Who intercepts an answer can neither turn the host untrusted with it nor use up the challenge."""
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    relayed = [
        lambda batch: replace(batch, guests=batch.guests[:1]),
        lambda batch: replace(batch, entries=batch.entries[:-1]),
        lambda batch: replace(batch, ak_certificate=scenario.certificate(issued=int(time.time()))),
    ]
    for change in relayed:

        def both(batch: Batch, change: Callable[[Batch], Batch] = change) -> Batch:
            cloud.client.submit(change(batch).encode())
            return batch

        cloud.agent.change = both
        assert cloud.round().host.verdict is Verdict.TRUSTED
    assert cloud.service.sequence(HOST) == 4


def test_a_silent_host_gives_no_result(cloud: Cloud) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    cloud.agent.change = lambda batch: replace(batch, ak_certificate=b"none")
    cloud.service.challenge(HOST)
    wait_until(lambda: len(cloud.agent.sent) == 2, "the answer")
    with pytest.raises(VerifierError, match="certificate"):
        cloud.service.wait_for_result(HOST, 1, 1)


def test_two_open_challenges_are_no_harm(cloud: Cloud) -> None:
    """Two challenges at once, as two verifiers may send them: the host stays trusted whichever answer is
    first.
    """
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    cloud.service.challenge(HOST)
    assert cloud.round().host.verdict is Verdict.TRUSTED
    assert cloud.round().host.verdict is Verdict.TRUSTED


def test_references_are_served(cloud: Cloud) -> None:
    index = verify_index(cloud.client.reference_index(), [KEY.public_key()])
    assert [entry.manifest for entry in index.entries] == [manifest().digest]
    piece = cloud.client.blob(manifest().digest, 0)
    assert base64.b64decode(piece["data"]) == manifest().encode()
    with pytest.raises(messaging.RefusedError, match="no file"):
        cloud.client.blob("00" * 32, 0)


def test_relying_parties_get_results_at_start_and_as_they_come(cloud: Cloud) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    listener = ResultListener(cloud.transport, cloud.cache, "relying")
    listener.start()
    try:
        wait_until(lambda: cloud.cache.host(HOST, time.time()).seen, "the bulk fill")
        assert cloud.cache.host(HOST, time.time()).verdict is Verdict.TRUSTED
        cloud.agent.guests = [guest(0, healthy=False)]
        cloud.round()
        wait_until(
            lambda: cloud.cache.guest(GUESTS[0], time.time()).verdict is Verdict.UNTRUSTED,
            "the published result",
        )
        assert cloud.cache.guest(uuid.UUID(int=77), time.time()).verdict is Verdict.UNKNOWN
    finally:
        listener.stop()


def test_hosts_are_challenged_in_their_turn(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.conf.set_override("interval", 1, "verifier")
    cloud.start()
    try:
        cloud.announce()
        wait_until(lambda: len(cloud.agent.challenges) >= 3, "three turns")
        assert cloud.service.wait_for_result(HOST, 1, 20).host.verdict is Verdict.TRUSTED
    finally:
        cloud.stop()


def test_a_verifier_does_not_start_on_what_it_cannot_use(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    with pytest.raises(DatabaseError, match="db upgrade"):
        cloud.service.start()
    cloud.database.upgrade()
    cloud.conf.set_override("result_lifetime", 3600, "verifier")
    with pytest.raises(VerifierError, match="result_lifetime"):
        cloud.service.start()
    cloud.conf.set_override("result_lifetime", 7200, "verifier")
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(VerifierError, match="authority_certificates"):
        cloud.service.start()
    cloud.service.stop()


def test_a_host_that_falls_silent_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cloud = Cloud(tmp_path)
    cloud.conf.set_override("interval", 1, "verifier")
    cloud.conf.set_override("result_lifetime", 2, "verifier")
    cloud.start()
    try:
        cloud.announce()
        cloud.service.wait_for_result(HOST, 0, 20)
        cloud.agent.change = lambda batch: replace(batch, ak_certificate=b"none")
        wait_until(lambda: "has not answered" in caplog.text, "the alarm")
        cloud.agent.change = lambda batch: batch
        wait_until(lambda: "answers again" in caplog.text, "the end of the alarm")
        assert caplog.text.count("has not answered") == 1
    finally:
        cloud.stop()


def test_evidence_survives_a_database_that_is_busy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    close, failures = challenges.close, [BusyError("deadlock"), BusyError("locked"), DuplicateError("twice")]

    def busy(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return close(*arguments)

    monkeypatch.setattr(challenges, "close", busy)
    assert cloud.round().host.verdict is Verdict.TRUSTED
    assert not failures


def test_two_verifiers_with_one_key_share_the_work(cloud: Cloud) -> None:
    """Either may get the answer to the other's challenge: what is asked and known is in the database."""
    cloud.announce()
    cloud.service.wait_for_result(HOST, 0, 20)
    cloud.conf.set_override("host", "verifier-2", "verifier")
    second = VerifierService(cloud.conf, cloud.transport, Database(cloud.conf.database.connection), KEY)
    second.start()
    try:
        for number in range(2, 8):
            service = (cloud.service, second)[number % 2]
            before = service.sequence(HOST)
            service.challenge(HOST)
            assert service.wait_for_result(HOST, before, 20).host.verdict is Verdict.TRUSTED
        assert cloud.service.sequence(HOST) == second.sequence(HOST) == 7
    finally:
        second.stop()
