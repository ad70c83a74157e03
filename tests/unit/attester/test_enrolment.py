# SPDX-License-Identifier: Apache-2.0
"""A host believes a certificate of its authority that names it and its key, and renews it in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import oslo_messaging
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_vmi_attest.attester.enrolment import Enrolment, EnrolmentError
from nova_vmi_attest.authority.ca import create_ca
from nova_vmi_attest.tpm.ak_certificate import verify_ak_certificate
from tests.unit.authority.scene import Scene
from tests.unit.tpm.maker import NOW, Chip

HANDLE = 0x81010030
Answer = Callable[[dict[str, str]], dict[str, str]]


class Caller:
    """The authority as the host reaches it; ``alter_*`` plays whoever sits on the bus."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.calls = 0
        self.alter_offer: Answer = lambda answer: answer
        self.alter_answer: Answer = lambda answer: answer

    def begin_enrolment(self, request: Mapping[str, str]) -> dict[str, str]:
        self.calls += 1
        return self.alter_offer(self._scene.endpoint.begin_enrolment({}, dict(request)))

    def complete_enrolment(self, enrolment: str, proof: str) -> dict[str, str]:
        return self.alter_answer(self._scene.endpoint.complete_enrolment({}, enrolment, proof))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def caller(scene: Scene) -> Caller:
    return Caller(scene)


@pytest.fixture
def chip(scene: Scene) -> Chip:
    return scene.chip("compute-0")


@pytest.fixture
def enrolment(caller: Caller, chip: Chip, tmp_path: Path) -> Enrolment:
    return make(caller, chip, tmp_path)


def make(caller: Caller, chip: Chip, directory: Path, host: str = "compute-0") -> Enrolment:
    return Enrolment(chip, caller, host, directory / "ak.pem", directory / "ca.pem", HANDLE)


def now(scene: Scene) -> int:
    return int(scene.now)


def test_a_host_enrols_once_and_keeps_the_certificate(
    scene: Scene, caller: Caller, chip: Chip, enrolment: Enrolment, tmp_path: Path
) -> None:
    with pytest.raises(EnrolmentError, match="not enrolled yet"):
        enrolment.certificate_der()
    der = enrolment.ensure(now(scene))
    assert enrolment.ensure(now(scene)) == enrolment.certificate_der() == der
    assert verify_ak_certificate(der, [scene.ca.certificate], "compute-0", NOW.timestamp())
    assert (tmp_path / "ak.pem").stat().st_mode & 0o777 == 0o644
    assert make(caller, chip, tmp_path).ensure(now(scene)) == der
    assert caller.calls == 1


def test_it_renews_when_two_thirds_of_the_life_are_over(scene: Scene, enrolment: Enrolment) -> None:
    first = enrolment.ensure(now(scene))
    scene.now += 15 * 3600
    assert enrolment.ensure(now(scene)) == first
    scene.now += 2 * 3600
    assert enrolment.ensure(now(scene)) != first


def test_a_failed_renewal_is_survived_while_the_certificate_is_valid(
    scene: Scene, caller: Caller, enrolment: Enrolment
) -> None:
    first = enrolment.ensure(now(scene))
    caller.alter_offer = lambda _: {"refused": "closed for today", "remedy": "come back"}
    scene.now += 20 * 3600
    assert enrolment.ensure(now(scene)) == first
    scene.now += 5 * 3600
    with pytest.raises(EnrolmentError, match="closed for today"):
        enrolment.ensure(now(scene))
    with pytest.raises(EnrolmentError, match="not enrolled yet"):
        enrolment.certificate_der()
    caller.alter_offer = lambda answer: answer
    assert enrolment.ensure(now(scene)) != first


def test_a_refusal_comes_with_reason_and_remedy(scene: Scene, caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="refused: host compute-7 is not registered") as caught:
        make(caller, scene.chip(), tmp_path, "compute-7").ensure(now(scene))
    assert "host register" in caught.value.remedy
    assert not (tmp_path / "ak.pem").exists()


def test_an_authority_that_does_not_answer(scene: Scene, caller: Caller, enrolment: Enrolment) -> None:
    def silence(_: dict[str, str]) -> dict[str, str]:
        raise oslo_messaging.MessagingTimeout("30 seconds")

    caller.alter_offer = silence
    with pytest.raises(EnrolmentError, match="did not answer") as caught:
        enrolment.ensure(now(scene))
    assert "transport_url" in caught.value.remedy


def test_a_certificate_of_another_host_is_not_stored(
    scene: Scene, caller: Caller, enrolment: Enrolment, tmp_path: Path
) -> None:
    other = make(caller, scene.chip("compute-1"), tmp_path, "compute-1")
    other.ensure(now(scene))
    stolen = {"certificate": (tmp_path / "ak.pem").read_text()}
    (tmp_path / "ak.pem").unlink()
    caller.alter_answer = lambda _: stolen
    with pytest.raises(EnrolmentError, match="names compute-1"):
        enrolment.ensure(now(scene))
    assert not (tmp_path / "ak.pem").exists()


def test_a_certificate_for_another_key_is_not_stored(
    scene: Scene, caller: Caller, chip: Chip, enrolment: Enrolment, tmp_path: Path
) -> None:
    enrolment.ensure(now(scene))
    replayed = {"certificate": (tmp_path / "ak.pem").read_text()}
    renewed = Chip(scene.maker)
    renewed.ek, renewed.certificate = chip.ek, chip.certificate
    caller.alter_answer = lambda _: replayed
    with pytest.raises(EnrolmentError, match="another key"):
        make(caller, renewed, tmp_path).ensure(now(scene))


def test_a_certificate_of_another_authority_is_neither_stored_nor_loaded(
    scene: Scene, caller: Caller, chip: Chip, enrolment: Enrolment, tmp_path: Path
) -> None:
    enrolment.ensure(now(scene))
    (tmp_path / "ca.pem").rename(tmp_path / "old.pem")
    create_ca(tmp_path / "new.key", tmp_path / "ca.pem")
    with pytest.raises(EnrolmentError, match="not issued by a configured authority") as caught:
        make(caller, chip, tmp_path).ensure(now(scene))
    assert "authority_certificates" in caught.value.remedy
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(EnrolmentError, match="no readable certificate"):
        make(caller, chip, tmp_path).ensure(now(scene))


def test_a_damaged_store_is_replaced(scene: Scene, caller: Caller, chip: Chip, tmp_path: Path) -> None:
    (tmp_path / "ak.pem").write_bytes(b"\xff nothing")
    der = make(caller, chip, tmp_path).ensure(now(scene))
    assert verify_ak_certificate(der, [scene.ca.certificate], "compute-0", NOW.timestamp())


def test_a_store_that_cannot_be_written(scene: Scene, caller: Caller, chip: Chip, tmp_path: Path) -> None:
    lost = Enrolment(chip, caller, "compute-0", tmp_path / "gone" / "ak.pem", tmp_path / "ca.pem", HANDLE)
    with pytest.raises(EnrolmentError, match="cannot be written"):
        lost.ensure(now(scene))


JUNK = st.recursive(st.none() | st.integers() | st.text(max_size=30), st.lists, max_leaves=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=JUNK | st.dictionaries(st.sampled_from(["enrolment", "credential", "secret", "refused"]), JUNK))
def test_whatever_the_bus_answers_is_a_typed_error(
    scene: Scene, caller: Caller, enrolment: Enrolment, answer: object
) -> None:
    # Octets that are no credential are the TPM's to refuse; here only the forms around them are tried.
    caller.alter_offer = lambda _: answer  # type: ignore[assignment, return-value]
    if isinstance(answer, dict) and {"credential", "secret"} <= answer.keys():
        answer.pop("secret")
    with pytest.raises(EnrolmentError):
        enrolment.ensure(now(scene))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=JUNK | st.fixed_dictionaries({"certificate": JUNK | st.text(max_size=300)}))
def test_whatever_the_bus_certifies_is_a_typed_error(
    scene: Scene, caller: Caller, enrolment: Enrolment, answer: object
) -> None:
    caller.alter_answer = lambda _: answer  # type: ignore[assignment, return-value]
    with pytest.raises(EnrolmentError):
        enrolment.ensure(now(scene))
