# SPDX-License-Identifier: Apache-2.0
"""EK certificates in the shapes that chips have, up to a configured root and to no other."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_vmi_attest.tpm.endorsement import (
    MAX_CERTIFICATE,
    EndorsementError,
    certificate_from_nv,
    certified_key,
    ek_digest,
    load_certificate,
    load_trusted,
    verify_ek_chain,
)
from tests.unit.tpm.maker import NOW, Maker

KEY = rsa.generate_private_key(65537, 2048)
MAKER = Maker()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def chain(leaf: bytes, maker: Maker = MAKER, now: datetime.datetime = NOW) -> x509.Certificate:
    return verify_ek_chain(leaf, [maker.intermediate], [maker.root], now)


@pytest.mark.parametrize(("subject", "critical"), [("", True), ("", False), ("chip", True), ("chip", False)])
def test_makers_shapes_are_accepted(subject: str, critical: bool) -> None:
    leaf = MAKER.certify(KEY.public_key(), subject=subject, critical_names=critical)
    assert chain(der(leaf)) == leaf


def test_elliptic_curve_ek_is_accepted() -> None:
    leaf = MAKER.certify(ec.generate_private_key(ec.SECP384R1()).public_key())
    assert chain(der(leaf)) == leaf


def test_another_makers_root_is_refused() -> None:
    leaf = der(MAKER.certify(KEY.public_key()))
    with pytest.raises(EndorsementError, match="does not chain") as caught:
        verify_ek_chain(leaf, [MAKER.intermediate], [Maker().root], NOW)
    assert "ek_roots" in caught.value.remedy


def test_an_intermediate_is_not_trusted_by_itself() -> None:
    other = Maker()
    leaf = der(other.certify(KEY.public_key()))
    with pytest.raises(EndorsementError, match="does not chain"):
        verify_ek_chain(leaf, [other.intermediate], [MAKER.root], NOW)


def test_a_chip_is_no_ca_for_another() -> None:
    signer = Maker()
    signer.key = ec.generate_private_key(ec.SECP256R1())
    chip = MAKER.certify(signer.key.public_key(), subject="maker CA")
    leaf = der(signer.certify(KEY.public_key()))
    with pytest.raises(EndorsementError, match="does not chain"):
        verify_ek_chain(leaf, [chip, MAKER.intermediate], [MAKER.root], NOW)


def test_without_roots_nothing_is_trusted() -> None:
    with pytest.raises(EndorsementError, match="no root"):
        verify_ek_chain(der(MAKER.certify(KEY.public_key())), [MAKER.intermediate], [], NOW)


@pytest.mark.parametrize("usage", [None, x509.ObjectIdentifier("2.23.133.8.3")])
def test_a_certificate_for_another_use_is_no_ek_certificate(usage: x509.ObjectIdentifier | None) -> None:
    with pytest.raises(EndorsementError):
        chain(der(MAKER.certify(KEY.public_key(), usage=usage)))


def test_validity_is_checked() -> None:
    leaf = der(MAKER.certify(KEY.public_key(), not_after=NOW + datetime.timedelta(days=1)))
    assert chain(leaf)
    with pytest.raises(EndorsementError):
        chain(leaf, now=NOW + datetime.timedelta(days=2))


def test_a_changed_signature_is_refused() -> None:
    leaf = bytearray(der(MAKER.certify(KEY.public_key())))
    leaf[-1] ^= 1
    with pytest.raises(EndorsementError):
        chain(bytes(leaf))


def test_an_oaep_key_is_named_as_such() -> None:
    plain, oaep = bytes.fromhex("06092a864886f70d0101010500"), bytes.fromhex("06092a864886f70d0101070500")
    leaf = der(MAKER.certify(KEY.public_key())).replace(plain, oaep, 1)
    with pytest.raises(EndorsementError) as caught:
        chain(leaf)
    assert "OAEP" in caught.value.remedy


def test_other_kinds_of_key_are_refused() -> None:
    leaf = MAKER.certify(ed25519.Ed25519PrivateKey.generate().public_key())  # type: ignore[arg-type]
    with pytest.raises(EndorsementError, match="neither RSA"):
        certified_key(leaf)


@pytest.mark.parametrize("padding", [b"", b"\0" * 300, b"\xff" * 300])
@pytest.mark.parametrize("wrapped", [False, True])
def test_padding_and_wrapping_in_nv_are_removed(padding: bytes, wrapped: bool) -> None:
    leaf = der(MAKER.certify(KEY.public_key()))
    stored = b"\x04\x82" + len(leaf).to_bytes(2, "big") + leaf if wrapped else leaf
    assert certificate_from_nv(stored + padding) == leaf


@pytest.mark.parametrize(
    "data", [b"", b"\x30", b"\x30\x84\1\1\1\1", b"\x30\x80", b"\x30\x10abc", b"\xff" * 64, b"\x04\x02"]
)
def test_what_is_no_certificate_in_nv_is_an_error(data: bytes) -> None:
    with pytest.raises(EndorsementError):
        certificate_from_nv(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_typed_errors(data: bytes) -> None:
    for read in (certificate_from_nv, load_certificate, chain):
        result: object = b"refused"
        with contextlib.suppress(EndorsementError):
            result = read(data)
        assert result


_LEAF = der(MAKER.certify(KEY.public_key()))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(_LEAF) - 1), st.integers(1, 255), st.booleans())
def test_mutated_certificates_give_typed_errors(position: int, change: int, cut: bool) -> None:
    data = bytearray(_LEAF)
    data[position] ^= change
    with pytest.raises(EndorsementError):
        chain(bytes(data[:position] if cut else data))


def test_size_is_bounded() -> None:
    with pytest.raises(EndorsementError, match="limit"):
        load_certificate(b"\x30" * (MAX_CERTIFICATE + 1))


def test_the_digest_names_the_key_and_not_the_certificate() -> None:
    one, two = MAKER.certify(KEY.public_key()), Maker().certify(KEY.public_key())
    assert ek_digest(certified_key(one)) == ek_digest(certified_key(two))
    assert len(ek_digest(certified_key(one))) == 64


def test_trusted_directory(tmp_path: Path) -> None:
    bundle = MAKER.root.public_bytes(Encoding.PEM) + MAKER.intermediate.public_bytes(Encoding.PEM)
    (tmp_path / "maker.pem").write_bytes(bundle)
    (tmp_path / "README").write_text("not a certificate")
    assert load_trusted(tmp_path) == (MAKER.root, MAKER.intermediate)
    (tmp_path / "other.crt").write_text("not a certificate either")
    with pytest.raises(EndorsementError, match="PEM"):
        load_trusted(tmp_path)
    with pytest.raises(EndorsementError, match="cannot be read"):
        load_trusted(tmp_path / "missing")
