# SPDX-License-Identifier: Apache-2.0
"""The authority's key stays its own, and its certificates say what they must and nothing else."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.authority.ca import AuthorityError, CertificateAuthority, create_ca
from nova_vmi_attest.tpm.ak_certificate import AkCertificateError, is_host_name, verify_ak_certificate

HOUR = datetime.timedelta(hours=1)
EK = "ab" * 32


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    create_ca(tmp_path / "ca.key", tmp_path / "ca.pem")
    return CertificateAuthority.load(tmp_path / "ca.key", tmp_path / "ca.pem")


@pytest.fixture
def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("host", ["compute-0.example.org", "compute_1", "C3", "a" * 250])
def test_a_certificate_names_host_and_tpm(
    ca: CertificateAuthority, now: datetime.datetime, host: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = ca.issue(key, host, EK, HOUR, now)
    read = verify_ak_certificate(der(certificate), [ca.certificate], host, now.timestamp())
    assert (read.host, read.ek_digest, read.key, read.serial) == (host, EK, key, certificate.serial_number)
    assert read.not_after == int((now + HOUR).timestamp())
    assert certificate.subject.rfc4514_string() == f"CN={host[:64]}"


def test_the_profile_of_a_certificate(ca: CertificateAuthority, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    extensions = ca.issue(key, "compute-0", EK, HOUR, now).extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert [oid.dotted_string for oid in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == [
        "2.23.133.8.3"
    ]
    identifier = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert identifier == own
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "urn:nova-vmi-attest:host:compute-0",
        f"urn:nova-vmi-attest:ek:sha256:{EK}",
    ]


def test_the_authority_signs_no_authority(ca: CertificateAuthority) -> None:
    constraints = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_a_certificate_outlives_neither_itself_nor_its_authority(
    ca: CertificateAuthority, now: datetime.datetime
) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = ca.issue(key, "host", EK, HOUR, now)
    with pytest.raises(AkCertificateError, match="not valid at"):
        verify_ak_certificate(der(certificate), [ca.certificate], "host", (now + 2 * HOUR).timestamp())
    end = ca.certificate.not_valid_after_utc
    assert ca.issue(key, "host", EK, HOUR, end - HOUR / 2).not_valid_after_utc == end
    with pytest.raises(AuthorityError, match="has ended"):
        ca.issue(key, "host", EK, HOUR, end)


def test_another_authority_counts_for_nothing(
    ca: CertificateAuthority, tmp_path: Path, now: datetime.datetime
) -> None:
    other = create_ca(tmp_path / "other.key", tmp_path / "other.pem")
    certificate = ca.issue(ec.generate_private_key(ec.SECP256R1()).public_key(), "host", EK, HOUR, now)
    for authorities in ([other], []):
        with pytest.raises(AkCertificateError, match="not issued by a configured authority"):
            verify_ak_certificate(der(certificate), authorities, "host", now.timestamp())
    verify_ak_certificate(der(certificate), [other, ca.certificate], "host", now.timestamp())


@pytest.mark.parametrize("host", ["", "-a", "a.", "a b", "a\0", "a/b", "höst", "a" * 254, "a\n", "*.example"])
def test_no_certificate_for_a_malformed_host_name(
    ca: CertificateAuthority, now: datetime.datetime, host: str
) -> None:
    assert not is_host_name(host)
    with pytest.raises(AuthorityError, match="host name"):
        ca.issue(ec.generate_private_key(ec.SECP256R1()).public_key(), host, EK, HOUR, now)


def test_files(ca: CertificateAuthority, tmp_path: Path) -> None:
    key, certificate = tmp_path / "ca.key", tmp_path / "ca.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuthorityError, match="exists"):
        create_ca(key, certificate)
    with pytest.raises(AuthorityError, match="exists"):
        create_ca(key, tmp_path / "new.pem")
    key.chmod(0o640)
    with pytest.raises(AuthorityError, match="open to other users"):
        CertificateAuthority.load(key, certificate)
    create_ca(tmp_path / "other.key", tmp_path / "other.pem")
    with pytest.raises(AuthorityError, match="not the certificate of the key"):
        CertificateAuthority.load(tmp_path / "other.key", certificate)
    with pytest.raises(AuthorityError, match="no readable certificate"):
        CertificateAuthority.load(tmp_path / "other.key", tmp_path / "missing.pem")


def test_secrets_are_derived_by_purpose(ca: CertificateAuthority, tmp_path: Path) -> None:
    again = CertificateAuthority.load(tmp_path / "ca.key", tmp_path / "ca.pem")
    assert ca.derive(b"one") == again.derive(b"one") != ca.derive(b"two")
