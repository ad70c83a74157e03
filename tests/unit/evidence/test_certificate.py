# SPDX-License-Identifier: Apache-2.0
"""AK certificates: the right authority, host, use and time."""

from __future__ import annotations

from typing import Any

import evidence_examples as example
import pytest
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
        ({"host": "compute-2"}, "names compute-2, not compute-1.example.org"),
        ({"authority": "stranger"}, "not issued by a configured authority"),
        ({"usage": "2.23.133.8.1"}, "extended key usage"),
        ({"begins": 10}, "not valid at"),
        ({"ends": -10}, "not valid at"),
    ],
)
def test_wrong_certificates(profile: dict[str, Any], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        verify_ak_certificate(example.ak_certificate(**profile), [CA], example.HOST, example.NOW)


def test_same_name_and_another_key() -> None:
    forged = example.ca_certificate("authority", key_label="stranger")
    with pytest.raises(CertificateError, match="not issued by a configured authority"):
        verify_ak_certificate(CERTIFICATE, [forged], example.HOST, example.NOW)


def test_issuer_must_be_an_authority() -> None:
    no_ca = example.ca_certificate(ca=False)
    with pytest.raises(CertificateError, match="not issued by a configured authority"):
        verify_ak_certificate(CERTIFICATE, [no_ca], example.HOST, example.NOW)


@pytest.mark.parametrize("now", [example.NOW + 365 * 86400, 0, -1e18, 1e300, float("nan"), float("inf")])
def test_other_moments(now: float) -> None:
    with pytest.raises(CertificateError, match=r"not valid at|is no moment"):
        verify_ak_certificate(CERTIFICATE, [CA], example.HOST, now)


@bounded
@given(st.binary(max_size=80) | damaged(CERTIFICATE))
def test_damaged_certificates_are_refused(data: bytes) -> None:
    try:
        key = verify_ak_certificate(data, [CA], example.HOST, example.NOW)
    except CertificateError:
        return
    # The signature's encoding may vary, but whatever is accepted was signed by the authority.
    assert key == example.key("attestation key").public_key()
