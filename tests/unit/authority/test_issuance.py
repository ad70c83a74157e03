# SPDX-License-Identifier: Apache-2.0
"""Certificates go to the registered TPM that proves it holds the key, and to nobody else; all is recorded."""

from __future__ import annotations

import base64
import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from nova_vmi_attest.authority.issuance import ENROLMENT_LIFETIME, IssuanceError
from nova_vmi_attest.db.models import AkCertificate
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.records.audit import RefusalLog
from nova_vmi_attest.records.pending import PendingHosts
from nova_vmi_attest.records.registry import RegistryError
from nova_vmi_attest.tpm.credential import CredentialError
from nova_vmi_attest.tpm.endorsement import EndorsementError
from nova_vmi_attest.verifier.hosts import Hosts
from tests.unit.authority.scene import LIFETIME, Scene, request
from tests.unit.tpm.maker import Chip, Maker


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def enrol(scene: Scene, chip: Chip, host: str) -> str:
    offer = scene.issuance.begin(request(chip, host))
    certificate = scene.issuance.complete(
        offer.enrolment, chip.activate(offer.credential, offer.encrypted_secret)
    )
    return f"{certificate.serial_number:x}"


def test_a_registered_host_gets_a_certificate_that_is_recorded(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    serial = enrol(scene, chip, "compute-0")
    with scene.database.reader() as session:
        row = session.scalars(select(AkCertificate)).one()
        assert (row.serial, row.host_name, row.revoked_at) == (serial, "compute-0", None)
        assert row.ak_name == chip.provision_ak(0).name.hex()
        assert row.not_after - int(scene.now) == 86400
    assert scene.audit()[-1] == ("issue", "compute-0", "issued")
    assert serial in scene.last_detail()


def test_a_host_that_is_not_registered(scene: Scene) -> None:
    with pytest.raises(RegistryError, match="not registered") as caught:
        enrol(scene, scene.chip(), "compute-0")
    assert "host register" in caught.value.remedy
    assert scene.audit() == [("begin enrolment", "compute-0", "refused")]


def test_a_host_that_waits_for_approval_enrols_after_it(scene: Scene) -> None:
    chip, pending = scene.chip(), PendingHosts(scene.database)
    with pytest.raises(RegistryError, match="not registered"):
        enrol(scene, chip, "compute-0")
    (waiting,) = pending.page(("", ""), 10)
    assert waiting.host == "compute-0"
    assert pending.approve("compute-0", waiting.ek_digest, int(scene.now))
    assert enrol(scene, chip, "compute-0")


def test_a_tpm_of_an_unknown_maker_does_not_even_wait(scene: Scene) -> None:
    with pytest.raises(EndorsementError, match="does not chain"):
        enrol(scene, Chip(Maker()), "compute-0")
    assert PendingHosts(scene.database).page(("", ""), 10) == ()


def test_the_tpm_of_another_host(scene: Scene) -> None:
    scene.chip("compute-0")
    relay = scene.chip("compute-1")
    with pytest.raises(RegistryError, match="registered to host compute-1, not to compute-0"):
        enrol(scene, relay, "compute-0")
    assert scene.audit()[-1] == ("begin enrolment", "compute-0", "refused")
    assert "compute-1" in scene.last_detail()


def test_a_genuine_but_unregistered_tpm_for_a_registered_host(scene: Scene) -> None:
    scene.chip("compute-0")
    with pytest.raises(RegistryError, match="is registered with the EK"):
        enrol(scene, scene.chip(), "compute-0")


def test_an_unknown_maker(scene: Scene) -> None:
    with pytest.raises(EndorsementError, match="does not chain"):
        enrol(scene, Chip(Maker()), "compute-0")


def test_an_ek_certificate_with_somebody_elses_ek(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    forged = request(chip, "compute-0") | {"ek_public": request(scene.chip(), "x")["ek_public"]}
    with pytest.raises(CredentialError, match="another key"):
        scene.issuance.begin(forged)


def test_a_tpm_without_the_claimed_ak_cannot_answer(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    claim = request(chip, "compute-0") | {"ak_public": request(scene.chip(), "x")["ak_public"]}
    offer = scene.issuance.begin(claim)
    with pytest.raises(ValueError, match="INTEGRITY"):
        chip.activate(offer.credential, offer.encrypted_secret)
    with pytest.raises(IssuanceError, match="the secret is wrong"):
        scene.issuance.complete(offer.enrolment, bytes(32))
    assert scene.audit()[-1] == ("complete enrolment", "compute-0", "refused")


def test_an_enrolment_is_good_once(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    secret = chip.activate(offer.credential, offer.encrypted_secret)
    scene.issuance.complete(offer.enrolment, secret)
    with pytest.raises(IssuanceError, match="used before"):
        scene.issuance.complete(offer.enrolment, secret)


def test_an_enrolment_is_good_once_even_at_the_same_moment(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    secret = chip.activate(offer.credential, offer.encrypted_secret)

    def attempt(_: int) -> bool:
        try:
            scene.issuance.complete(offer.enrolment, secret)
        except IssuanceError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_an_enrolment_expires(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    scene.now += ENROLMENT_LIFETIME + 1
    with pytest.raises(IssuanceError, match="expired"):
        scene.issuance.complete(offer.enrolment, chip.activate(offer.credential, offer.encrypted_secret))


def test_a_secret_of_another_enrolment_is_wrong(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    first, second = (scene.issuance.begin(request(chip, "compute-0")) for _ in range(2))
    with pytest.raises(IssuanceError, match="the secret is wrong"):
        scene.issuance.complete(second.enrolment, chip.activate(first.credential, first.encrypted_secret))


def test_another_process_of_the_authority_can_complete(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    secret = chip.activate(offer.credential, offer.encrypted_secret)
    assert scene.another_process().complete(offer.enrolment, secret).public_key() == chip.ak.public_key()


def test_a_host_unregistered_in_between_gets_nothing(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    scene.registry.unregister("compute-0")
    with pytest.raises(RegistryError, match="not registered"):
        scene.issuance.complete(offer.enrolment, chip.activate(offer.credential, offer.encrypted_secret))


def test_unregistering_an_enrolled_host_frees_its_tpm(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    enrol(scene, chip, "compute-0")
    scene.registry.unregister("compute-0")
    scene.registry.register("compute-1", chip.ek_certificate())
    assert enrol(scene, chip, "compute-1")


def test_trust_on_first_use_registers_after_the_proof_and_only_then(tmp_path: Path) -> None:
    scene = Scene(tmp_path, trust_on_first_use=True)
    chip = scene.chip()
    offer = scene.issuance.begin(request(chip, "compute-0"))
    assert scene.registry.hosts() == ()
    scene.issuance.complete(offer.enrolment, chip.activate(offer.credential, offer.encrypted_secret))
    assert [host.name for host in scene.registry.hosts()] == ["compute-0"]
    assert scene.audit() == [("register", "compute-0", "done"), ("issue", "compute-0", "issued")]
    with pytest.raises(RegistryError, match="is registered with the EK"):
        enrol(scene, scene.chip(), "compute-0")
    with pytest.raises(RegistryError, match="registered to host compute-0"):
        enrol(scene, chip, "compute-1")


def test_refusals_recorded_are_bounded_and_counted(scene: Scene) -> None:
    log = RefusalLog(scene.database, lambda: scene.now)
    for _ in range(150):
        log.refused("begin enrolment", "x\0" * 400, "why\n" * 2000)
    assert len(scene.audit()) == 120
    scene.now += 60
    log.refused("begin enrolment", "x", "again")
    assert len(scene.audit()) == 121
    assert scene.last_detail() == "again [30 earlier refusals were not recorded]"


MEMBERS = ("host", "ek_certificate", "ek_public", "ak_public")
VALUES = st.one_of(
    st.text(max_size=40), st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claim=st.dictionaries(st.sampled_from([*MEMBERS, "more"]), VALUES), enrolment=st.text(max_size=80))
def test_arbitrary_requests_give_typed_errors(scene: Scene, claim: dict[str, str], enrolment: str) -> None:
    with pytest.raises(AttestError):
        scene.issuance.begin(claim)
    with pytest.raises(IssuanceError):
        scene.issuance.complete(enrolment, b"")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(member=st.sampled_from(MEMBERS[1:]), position=st.integers(0, 5000), change=st.integers(1, 255))
def test_a_mutated_request_proves_nothing_about_another_key(
    scene: Scene, member: str, position: int, change: int
) -> None:
    chip = scene.chip()
    scene.registry.register(
        host := f"host-{chip.ek.public_key().public_numbers().n % 10**12}", chip.ek_certificate()
    )
    claim = request(chip, host)
    data = bytearray(base64.b64decode(claim[member]))
    data[position % len(data)] ^= change
    opened = None
    try:
        offer = scene.issuance.begin(claim | {member: base64.b64encode(data).decode()})
        secret = chip.activate(offer.credential, offer.encrypted_secret)
        opened = scene.issuance.complete(offer.enrolment, secret)
    except (AttestError, ValueError):
        return
    assert opened.public_key() == chip.ak.public_key()


def test_the_certificate_is_valid_from_now_for_the_configured_time(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    offer = scene.issuance.begin(request(chip, "compute-0"))
    certificate = scene.issuance.complete(
        offer.enrolment, chip.activate(offer.credential, offer.encrypted_secret)
    )
    end = datetime.datetime.fromtimestamp(scene.now, datetime.UTC) + datetime.timedelta(hours=24)
    assert abs(certificate.not_valid_after_utc - end) < datetime.timedelta(seconds=1)


def certificates(scene: Scene) -> list[AkCertificate]:
    with scene.database.reader() as session:
        return list(session.scalars(select(AkCertificate)))


def test_who_asks_again_gets_the_same_certificate_until_renewal_is_due(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    first = enrol(scene, chip, "compute-0")
    assert enrol(scene, chip, "compute-0") == first
    assert len(certificates(scene)) == 1
    scene.now += 0.7 * LIFETIME.total_seconds()
    renewed = enrol(scene, chip, "compute-0")
    assert renewed != first
    scene.now += 0.7 * LIFETIME.total_seconds()
    enrol(scene, chip, "compute-0")
    assert len(certificates(scene)) == 2, "what has ended is dropped"


def test_a_host_gets_a_bounded_number_of_certificates(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova_vmi_attest.authority.issuance._MOST_CERTIFICATES", 1)
    chip = scene.chip("compute-0")
    enrol(scene, chip, "compute-0")
    scene.now += 0.7 * LIFETIME.total_seconds()
    with pytest.raises(IssuanceError, match="have not ended"):
        enrol(scene, chip, "compute-0")
    scene.registry.unregister("compute-0")
    scene.registry.register("compute-0", chip.ek_certificate())
    assert enrol(scene, chip, "compute-0")


def test_unregistering_revokes_what_was_issued(scene: Scene) -> None:
    chip = scene.chip("compute-0")
    certificate = enrol(scene, chip, "compute-0")
    scene.registry.unregister("compute-0")
    assert [row.revoked_at for row in certificates(scene)] == [int(scene.now)]
    scene.registry.register("compute-0", chip.ek_certificate())
    assert enrol(scene, chip, "compute-0") != certificate
    revoked = Hosts(scene.database).revoked("compute-0", int(scene.now))
    assert revoked == {int(certificate, 16)}
    assert Hosts(scene.database).revoked("compute-0", int(scene.now + 2 * LIFETIME.total_seconds())) == set()
