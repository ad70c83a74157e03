# SPDX-License-Identifier: Apache-2.0
"""What is no attestation key certificate of the authority gives a typed error, whatever was changed in it."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.tpm.ak_certificate import (
    AK_CERTIFICATE_USAGE,
    EK_URN,
    HOST_URN,
    AkCertificateError,
    is_host_name,
    verify_ak_certificate,
)

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)
CA_KEY = ec.generate_private_key(ec.SECP256R1())
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
HOST = "compute-0"
DIGEST = "0123456789abcdef" * 4
URIS = (HOST_URN + HOST, EK_URN + DIGEST)
SIGN = x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def certificate(
    *,
    uris: tuple[str, ...] = URIS,
    usage: x509.ObjectIdentifier = AK_CERTIFICATE_USAGE,
    key_usage: x509.KeyUsage = SIGN,
    ca: bool = False,
) -> bytes:
    return (
        x509.CertificateBuilder().subject_name(ISSUER).issuer_name(ISSUER).public_key(KEY.public_key())
        .serial_number(7).not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca, None), True).add_extension(key_usage, True)
        .add_extension(x509.ExtendedKeyUsage([usage]), False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]),
        False) .sign(CA_KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    )  # fmt: skip


def authority(ca: bool = True, key: ec.EllipticCurvePrivateKey = CA_KEY) -> x509.Certificate:
    return (
        x509.CertificateBuilder().subject_name(ISSUER).issuer_name(ISSUER).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - HOUR).not_valid_after(NOW + 2 * HOUR)
        .add_extension(x509.BasicConstraints(ca, 0 if ca else None), True).sign(key, hashes.SHA256())
    )  # fmt: skip


GOOD = certificate()
CA = authority()


def test_a_good_certificate() -> None:
    read = verify_ak_certificate(GOOD, [CA], HOST, NOW.timestamp())
    assert (read.host, read.ek_digest, read.serial, read.key) == (HOST, DIGEST, 7, KEY.public_key())


@pytest.mark.parametrize(
    "bad",
    [
        certificate(uris=URIS[:1]),
        certificate(uris=URIS[1:]),
        certificate(uris=(*URIS, HOST_URN + "compute-1")),
        certificate(uris=(*URIS, EK_URN + DIGEST)),
        certificate(uris=(HOST_URN + "a%20b", URIS[1])),
        certificate(uris=(HOST_URN, URIS[1])),
        certificate(uris=(URIS[0], EK_URN + DIGEST.upper())),
        certificate(usage=x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")),
        certificate(key_usage=x509.KeyUsage(False, True, False, False, False, False, False, False, False)),
        certificate(ca=True),
    ],
)
def test_certificates_for_anything_else(bad: bytes) -> None:
    with pytest.raises(AkCertificateError, match="not an attestation key certificate"):
        verify_ak_certificate(bad, [CA], HOST, NOW.timestamp())


def test_an_issuer_that_is_no_ca() -> None:
    with pytest.raises(AkCertificateError, match="not issued by a configured authority"):
        verify_ak_certificate(GOOD, [authority(ca=False)], HOST, NOW.timestamp())


@pytest.mark.parametrize("moment", [NOW - 2 * HOUR, NOW + HOUR * 1.5, NOW + 9 * HOUR])
def test_validity(moment: datetime.datetime) -> None:
    with pytest.raises(AkCertificateError, match="not valid at"):
        verify_ak_certificate(GOOD, [CA], HOST, moment.timestamp())


@pytest.mark.parametrize("moment", [-1e18, 1e300, float("nan"), float("inf")])
def test_what_is_no_moment(moment: float) -> None:
    with pytest.raises(AkCertificateError, match=r"not valid at|is no moment"):
        verify_ak_certificate(GOOD, [CA], HOST, moment)


@pytest.mark.parametrize("host", ["compute-1", "Compute-0", "compute-0 ", "", "compute-0\n"])
def test_the_certificate_of_another_host(host: str) -> None:
    with pytest.raises(AkCertificateError, match="names compute-0, not"):
        verify_ak_certificate(GOOD, [CA], host, NOW.timestamp())


def test_an_authority_of_the_same_name_with_another_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(AkCertificateError, match="not issued by a configured authority"):
        verify_ak_certificate(GOOD, [authority(key=key)], HOST, NOW.timestamp())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.booleans())
def test_mutated_certificates(position: int, change: int, cut: bool) -> None:
    data = bytearray(GOOD)
    data[position] ^= change
    with pytest.raises(AkCertificateError):
        verify_ak_certificate(bytes(data[:position] if cut else data), [CA], HOST, NOW.timestamp())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_host_names_are_plain(name: str) -> None:
    plain = name.isascii() and all(sign.isalnum() or sign in ".-_" for sign in name)
    assert is_host_name(name) == (plain and 0 < len(name) <= 253 and name[0].isalnum() and name[-1].isalnum())
