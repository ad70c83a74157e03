# SPDX-License-Identifier: Apache-2.0
"""AK certificates: the right authority, host, use and time."""

from __future__ import annotations

from typing import Any

import evidence_examples as example
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence.certificate import CertificateError, verify_ak_certificate

from .hostile import bounded, damaged

CA = example.ca_certificate()
CERTIFICATE = example.ak_certificate()


def test_gives_the_certified_key() -> None:
    strangers = example.ca_certificate("stranger")
    key = verify_ak_certificate(CERTIFICATE, [strangers, CA], example.HOST, example.NOW)
    assert key == example.key("attestation key").public_key()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"host": "compute-2"}, "names \\['compute-2'\\]"),
        ({"authority": "stranger"}, "not signed by a trusted authority"),
        ({"usage": "2.23.133.8.1"}, "extended key usage"),
        ({"begins": 10}, "AK certificate is valid from"),
        ({"ends": -10}, "AK certificate is valid from"),
        ({"public": ed25519.Ed25519PrivateKey.generate().public_key()}, "neither an RSA nor an ECC key"),
    ],
)
def test_wrong_certificates(profile: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        verify_ak_certificate(example.ak_certificate(**profile), [CA], example.HOST, example.NOW)


def test_ca_must_be_one_and_valid() -> None:
    no_ca = example.ca_certificate(ca=False)
    with pytest.raises(CertificateError, match="not one of a CA"):
        verify_ak_certificate(CERTIFICATE, [no_ca], example.HOST, example.NOW)
    with pytest.raises(CertificateError, match="CA certificate is valid from"):
        verify_ak_certificate(CERTIFICATE, [CA], example.HOST, example.NOW + 365 * 86400)
    with pytest.raises(CertificateError, match="trusted authority"):
        verify_ak_certificate(CERTIFICATE, [], example.HOST, example.NOW)


def test_same_name_and_another_key() -> None:
    forged = example.ca_certificate("authority", key_label="stranger")
    with pytest.raises(CertificateError, match="trusted authority"):
        verify_ak_certificate(CERTIFICATE, [forged], example.HOST, example.NOW)


def test_ca_certificate_is_no_ak_certificate() -> None:
    data = CA.public_bytes(example.serialization.Encoding.DER)
    with pytest.raises(CertificateError, match="lacks"):
        verify_ak_certificate(data, [CA], example.HOST, example.NOW)


@bounded
@given(st.binary(max_size=80) | damaged(CERTIFICATE))
def test_damaged_certificates_are_refused(data: bytes) -> None:
    try:
        key = verify_ak_certificate(data, [CA], example.HOST, example.NOW)
    except CertificateError:
        return
    # An ECDSA signature is not unique, but whatever is accepted was signed by the authority.
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key == example.key("attestation key").public_key()
