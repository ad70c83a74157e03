# SPDX-License-Identifier: Apache-2.0
"""Enrolment of real software TPMs with the authority in process, and every relay that must not pass."""

from __future__ import annotations

import base64
import datetime
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from lab.tpm import SoftwareTpm
from sqlalchemy import select

from nova_vmi_attest.attester.enrolment import Enrolment, EnrolmentError
from nova_vmi_attest.authority.ca import CertificateAuthority, create_ca
from nova_vmi_attest.authority.issuance import Endorsers, Issuance
from nova_vmi_attest.authority.service import AuthorityEndpoint
from nova_vmi_attest.db.models import AuditRecord
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.registry import HostRegistry
from nova_vmi_attest.tpm.ak_certificate import verify_ak_certificate
from nova_vmi_attest.tpm.device import Tpm, TpmError
from nova_vmi_attest.tpm.quote import verify_quote

HANDLE = 0x81010030
HOUR = datetime.timedelta(hours=1)


class Authority:
    """The authority's parts on an SQLite file, called without a bus; it keeps the answers that it got."""

    def __init__(self, directory: Path, maker: SoftwareTpm) -> None:
        self.certificate = directory / "ca.pem"
        create_ca(directory / "ca.key", self.certificate)
        self.database = Database(f"sqlite:///{directory / 'attest.sqlite'}")
        self.database.upgrade()
        self.registry = HostRegistry(self.database)
        self._ca = CertificateAuthority.load(directory / "ca.key", self.certificate)
        self.trust(maker)
        self.answers: list[tuple[str, str]] = []

    def trust(self, maker: SoftwareTpm) -> None:
        endorsers = Endorsers(
            x509.load_pem_x509_certificates(maker.roots.read_bytes()),
            x509.load_pem_x509_certificates(maker.intermediates.read_bytes()),
        )
        self._endpoint = AuthorityEndpoint(Issuance(self.database, self._ca, endorsers, HOUR))

    def begin_enrolment(self, request: Mapping[str, str]) -> dict[str, str]:
        return self._endpoint.begin_enrolment({}, dict(request))

    def complete_enrolment(self, enrolment: str, proof: str) -> dict[str, str]:
        self.answers.append((enrolment, proof))
        return self._endpoint.complete_enrolment({}, enrolment, proof)

    def outcomes(self) -> list[str]:
        with self.database.reader() as session:
            return list(session.scalars(select(AuditRecord.outcome).order_by(AuditRecord.id)))


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SoftwareTpm, SoftwareTpm, SoftwareTpm]]:
    """Two chips of one maker, and one of another."""
    directory = tmp_path_factory.mktemp("chips")
    with (
        SoftwareTpm(directory / "0", name="chip0", ca=directory / "maker") as first,
        SoftwareTpm(directory / "1", name="chip1", ca=directory / "maker") as second,
        SoftwareTpm(directory / "2", name="chip2") as stranger,
    ):
        yield first, second, stranger


@pytest.fixture
def authority(tmp_path: Path, chips: tuple[SoftwareTpm, ...]) -> Authority:
    return Authority(tmp_path, chips[0])


def enrolment(tpm: Tpm, authority: Authority, host: str, directory: Path) -> Enrolment:
    return Enrolment(tpm, authority, host, directory / f"{host}.pem", authority.certificate, HANDLE)


def claim(tpm: Tpm, host: str, ak: bytes) -> dict[str, str]:
    octets = {"ek_certificate": tpm.ek_certificate(), "ek_public": tpm.ek_public(), "ak_public": ak}
    return {"host": host} | {name: base64.b64encode(data).decode() for name, data in octets.items()}


def test_enrolment_end_to_end(authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path) -> None:
    with Tpm(chips[0].tcti) as tpm:
        authority.registry.register("compute-0", tpm.ek_certificate())
        der = enrolment(tpm, authority, "compute-0", tmp_path).ensure(int(time.time()))
        authorities = x509.load_pem_x509_certificates(authority.certificate.read_bytes())
        certificate = verify_ak_certificate(der, authorities, "compute-0", time.time())
        registered = authority.registry.host("compute-0")
        assert registered is not None
        assert certificate.ek_digest == registered.ek_digest
        attest, signature, values = tpm.quote_with_values([0, 7, 13], b"q" * 32)
        assert verify_quote(certificate.key, attest, signature, b"q" * 32, values).pcrs == values
    assert authority.outcomes() == ["done", "issued"]


def test_a_host_with_the_tpm_of_another(
    authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path
) -> None:
    for number in (0, 1):
        with Tpm(chips[number].tcti) as tpm:
            authority.registry.register(f"compute-{number}", tpm.ek_certificate())
    with Tpm(chips[1].tcti) as relay, pytest.raises(EnrolmentError, match="registered to host compute-1"):
        enrolment(relay, authority, "compute-0", tmp_path).ensure(int(time.time()))
    assert authority.outcomes() == ["done", "done", "refused"]
    assert not (tmp_path / "compute-0.pem").exists()


def test_a_host_that_the_operator_did_not_register(
    authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path
) -> None:
    with Tpm(chips[0].tcti) as tpm, pytest.raises(EnrolmentError, match="not registered") as caught:
        enrolment(tpm, authority, "compute-0", tmp_path).ensure(int(time.time()))
    assert "host register" in caught.value.remedy


def test_a_tpm_of_an_unknown_maker(
    authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path
) -> None:
    with Tpm(chips[2].tcti) as tpm:
        authority.registry.register("compute-0", tpm.ek_certificate())
        with pytest.raises(EnrolmentError, match="does not chain to a configured root") as caught:
            enrolment(tpm, authority, "compute-0", tmp_path).ensure(int(time.time()))
        assert "ek_roots" in caught.value.remedy
        authority.trust(chips[2])
        assert enrolment(tpm, authority, "compute-0", tmp_path).ensure(int(time.time()))


def test_a_replayed_secret(authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path) -> None:
    with Tpm(chips[0].tcti) as tpm:
        authority.registry.register("compute-0", tpm.ek_certificate())
        enrolment(tpm, authority, "compute-0", tmp_path).ensure(int(time.time()))
        used, proof = authority.answers[0]
        assert "used before" in authority.complete_enrolment(used, proof)["refused"]
        again = authority.begin_enrolment(claim(tpm, "compute-0", tpm.ak_public().public))
        assert "secret is wrong" in authority.complete_enrolment(again["enrolment"], proof)["refused"]
    assert authority.outcomes() == ["done", "issued", "refused", "refused"]


def test_an_ak_of_another_tpm(authority: Authority, chips: tuple[SoftwareTpm, ...]) -> None:
    with Tpm(chips[1].tcti) as other:
        foreign = other.provision_ak(HANDLE).public
    with Tpm(chips[0].tcti) as tpm:
        tpm.provision_ak(HANDLE)
        authority.registry.register("compute-0", tpm.ek_certificate())
        offer = authority.begin_enrolment(claim(tpm, "compute-0", foreign))
        with pytest.raises(TpmError, match="activate the credential"):
            tpm.activate(base64.b64decode(offer["credential"]), base64.b64decode(offer["secret"]))


def test_a_secret_meant_for_another_tpm(authority: Authority, chips: tuple[SoftwareTpm, ...]) -> None:
    with Tpm(chips[0].tcti) as tpm:
        authority.registry.register("compute-0", tpm.ek_certificate())
        offer = authority.begin_enrolment(claim(tpm, "compute-0", tpm.provision_ak(HANDLE).public))
    with Tpm(chips[1].tcti) as other:
        other.provision_ak(HANDLE)
        with pytest.raises(TpmError, match="activate the credential"):
            other.activate(base64.b64decode(offer["credential"]), base64.b64decode(offer["secret"]))


def test_the_certificate_is_used_on_after_a_restart_of_the_host(
    authority: Authority, chips: tuple[SoftwareTpm, ...], tmp_path: Path
) -> None:
    now = int(time.time())
    with Tpm(chips[0].tcti) as tpm:
        authority.registry.register("compute-0", tpm.ek_certificate())
        first = enrolment(tpm, authority, "compute-0", tmp_path).ensure(now)
    chips[0].restart()
    with Tpm(chips[0].tcti) as tpm:
        again = enrolment(tpm, authority, "compute-0", tmp_path)
        assert again.ensure(now) == first
        # A host whose clock runs ahead asks again and again, and gets the same certificate.
        assert again.ensure(now + 3000) == first
