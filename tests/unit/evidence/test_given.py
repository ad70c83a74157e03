# SPDX-License-Identifier: Apache-2.0
"""Text that people type or paste: understood, or refused with a message."""

from __future__ import annotations

import contextlib
import time

import evidence_examples as example
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from nova_vmi_attest.evidence import given
from nova_vmi_attest.evidence.given import GivenError


def test_what_is_right_is_understood() -> None:
    assert given.nonce("ab" * 32) == b"\xab" * 32
    assert given.moment("1970-01-01T00:01:00Z") == given.moment("1970-01-01T00:01:00") == 60
    assert given.moment("1970-01-01T01:01:00+01:00") == 60
    assert abs(given.moment(None) - time.time()) < 60
    certificate = example.ca_certificate()
    pem = certificate.public_bytes(Encoding.PEM)
    assert given.certificates(pem + b"text\n" + pem, "x") == [certificate] * 2


@pytest.mark.parametrize("text", ["", "ab", "ab" * 33, "zz" * 32, "0x" + "a" * 62])
def test_what_is_no_nonce_is_refused(text: str) -> None:
    with pytest.raises(GivenError, match="64 hex digits"):
        given.nonce(text)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_names_its_file(data: bytes) -> None:
    with pytest.raises(GivenError, match=r"ca\.pem holds no"):
        given.certificates(data, "ca.pem")


@settings(max_examples=100, deadline=None)
@examples(st.text() | st.datetimes().map(str) | st.just("0001-01-01T00:00:00+23:00"))
def test_no_text_is_more_than_refused(text: str) -> None:
    result: object = "refused"
    with contextlib.suppress(GivenError):
        result = given.moment(text)
    assert result == "refused" or isinstance(result, float)
