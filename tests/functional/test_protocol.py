# SPDX-License-Identifier: Apache-2.0
"""The protocol under attack: strangers on the bus, a TPM that is reset or misused, a host that is withdrawn.

Authority, verifier and agent are the real ones, over the bus of this process, with a real software TPM and a
libvirtd without guests: what is in their memory is none of the protocol's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from lab.deployment import Deployment
from lab.hypervisor import Hypervisor
from lab.tpm import SoftwareTpm

from nova_vmi_attest import messaging
from nova_vmi_attest.attester import service as attester_service
from nova_vmi_attest.attester.guests import GuestRegistry
from nova_vmi_attest.attester.lifecycle import HypervisorError, Lifecycle
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.tpm.device import Tpm
from nova_vmi_attest.verifier.service import VerifierError

LOG_PCR = 13


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


JUNK: tuple[Any, ...] = (
    None, True, 7, -1, 2**70, 1.5, "", "\0", "../../etc/passwd", "a.b.c", "x" * 1_000_000, "\u202e", "\ud800",
    [], {}, ["x"] * 1000, {"host": {"host": {}}}, nested(500),
)  # fmt: skip

# Topic, method and arguments of everything that the bus may call.
METHODS = (
    (messaging.ATTESTER_TOPIC, "attest", ("challenge",)),
    (messaging.AUTHORITY_TOPIC, "begin_enrolment", ("request",)),
    (messaging.AUTHORITY_TOPIC, "complete_enrolment", ("enrolment", "proof")),
    (messaging.VERIFIER_TOPIC, "announce", ("host", "certificate")),
    (messaging.VERIFIER_TOPIC, "submit", ("batch",)),
    (messaging.VERIFIER_TOPIC, "reference_index", ()),
    (messaging.VERIFIER_TOPIC, "blob", ("digest", "offset")),
    (messaging.VERIFIER_TOPIC, "results", ("after",)),
)


class SharedTpm(Tpm):
    """The agent's connection, which tests use too: a software TPM serves one client at a time."""

    opened: list[Tpm] = []  # noqa: RUF012

    def __enter__(self) -> SharedTpm:
        super().__enter__()
        self.opened.append(self)
        return self


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path_factory.mktemp("libvirt")) as hypervisor:
        yield hypervisor


@pytest.fixture
def cloud(
    tmp_path: Path, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Deployment, SoftwareTpm]]:
    monkeypatch.setattr(attester_service, "Tpm", SharedTpm)
    with (
        SoftwareTpm(tmp_path / "tpm") as tpm,
        Deployment(tmp_path / "cloud", tpm, hypervisor.uri) as deployment,
    ):
        deployment.prepare()
        deployment.register_host()
        deployment.start()
        deployment.wait_ready()
        yield deployment, tpm


def logged(deployment: Deployment) -> str:
    return deployment.log_file.read_text(errors="replace")


def wait_until(condition: Callable[[], bool], what: str, deployment: Deployment) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}: {deployment.last_words()}"
        time.sleep(0.1)


def test_no_argument_of_any_call_breaks_a_service(cloud: tuple[Deployment, SoftwareTpm]) -> None:
    deployment, _ = cloud
    transport = messaging.get_transport(deployment.conf)
    # The bus of this process refuses what is not JSON, as the driver of a real one does before it sends.
    for topic, method, names in METHODS:
        target = oslo_messaging.Target(
            exchange=messaging.EXCHANGE, topic=topic, version=messaging.VERSION,
            server=deployment.host if topic == messaging.ATTESTER_TOPIC else None,
        )  # fmt: skip
        client = oslo_messaging.get_rpc_client(transport, target, timeout=30)
        calls = [dict.fromkeys(names, value) for value in JUNK]
        calls += [{}, {"unknown": 1}, {**dict.fromkeys(names, "x"), "unknown": 1}]
        for arguments in calls:
            answer = client.call({}, method, **arguments)
            text = str(answer)
            assert "Traceback" not in text
            assert ".py" not in text
            if names and not (method == "results" and arguments.get("after") in ("", "x", "a.b.c")):
                assert "refused" in answer, (method, arguments)
                assert len(text) < 4096, (method, text[:300])
    assert deployment.round().host.verdict is Verdict.TRUSTED
    assert "Traceback" not in logged(deployment)
    for line in logged(deployment).splitlines():
        assert line.isprintable(), ascii(line)[:500]


def test_a_tpm_that_was_reset_while_the_agent_runs(cloud: tuple[Deployment, SoftwareTpm]) -> None:
    deployment, tpm = cloud
    before = deployment.round()
    tpm.restart()
    deployment.verifier.challenge(deployment.host)

    def recovered() -> bool:
        try:
            return deployment.round(5).sequence > before.sequence
        except VerifierError:
            return False

    wait_until(recovered, "a round after the reset", deployment)
    assert deployment.round().host.verdict is Verdict.TRUSTED


def test_a_foreign_extend_is_an_alarm_and_ends_the_trust(cloud: tuple[Deployment, SoftwareTpm]) -> None:
    deployment, _ = cloud
    newest = deployment.verifier.sequence(deployment.host)
    SharedTpm.opened[-1].extend(LOG_PCR, bytes(32))
    deployment.verifier.challenge(deployment.host)
    with pytest.raises(VerifierError, match="no new result"):
        deployment.verifier.wait_for_result(deployment.host, newest, 3)
    assert f"PCR {LOG_PCR} was extended by something else" in logged(deployment)


def test_a_host_that_was_unregistered_is_refused_at_once(cloud: tuple[Deployment, SoftwareTpm]) -> None:
    deployment, _ = cloud
    newest = deployment.verifier.sequence(deployment.host)
    pem = deployment.directory / f"{deployment.host}.ek.pem"
    deployment.manage("host", "unregister", deployment.host)
    with pytest.raises(VerifierError, match="never announced"):
        deployment.verifier.challenge(deployment.host)
    # The agent goes on to announce itself with its certificate, which has not ended.
    wait_until(lambda: "withdrew" in logged(deployment), "a refused announcement", deployment)
    with pytest.raises(VerifierError, match="never announced"):
        deployment.verifier.challenge(deployment.host)
    assert deployment.verifier.sequence(deployment.host) == newest
    deployment.manage("host", "register", deployment.host, str(pem))
    wait_until(lambda: logged(deployment).count("withdrew") > 2, "refusal after registration", deployment)


def test_the_agent_finds_libvirt_again_after_a_crash(tmp_path: Path) -> None:
    with Hypervisor(tmp_path / "libvirt") as hypervisor:
        lifecycle = Lifecycle(hypervisor.uri, GuestRegistry(lambda guest: None), 1)
        lifecycle.start()
        try:
            hypervisor.kill_daemon()
            with pytest.raises(HypervisorError, match="is libvirtd running"):
                lifecycle.reconcile()
            hypervisor._socket.unlink()
            hypervisor._daemon("libvirtd", hypervisor._socket)
            lifecycle.reconcile()
        finally:
            lifecycle.stop()
