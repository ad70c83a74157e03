# SPDX-License-Identifier: Apache-2.0
"""A credential opens for the keys it was made for, and is made only for keys that a TPM holds."""

from __future__ import annotations

import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm2_pytss.constants import TPMA_OBJECT

from nova_vmi_attest.tpm.credential import SECRET_SIZE, CredentialError, make_challenge
from tests.unit.tpm.maker import AK_ATTRIBUTES, EK_ATTRIBUTES, Chip, Maker, public_area

MAKER = Maker()
CHIP = Chip(MAKER)
EK, AK = CHIP.ek_public(), CHIP.ak_public()


def test_the_chip_with_both_keys_opens_it() -> None:
    made = make_challenge(CHIP.certificate, EK, AK)
    assert CHIP.activate(made.credential, made.encrypted_secret) == made.secret
    assert len(made.secret) == SECRET_SIZE
    assert made.ak.key == CHIP.ak.public_key()


def test_the_chip_with_another_ak_does_not() -> None:
    made = make_challenge(CHIP.certificate, EK, Chip(MAKER).ak_public())
    with pytest.raises(ValueError, match="INTEGRITY"):
        CHIP.activate(made.credential, made.encrypted_secret)


def test_every_secret_is_new() -> None:
    assert make_challenge(CHIP.certificate, EK, AK).secret != make_challenge(CHIP.certificate, EK, AK).secret


def test_an_ek_that_is_not_the_certified_one_is_refused() -> None:
    with pytest.raises(CredentialError, match="another key than its certificate"):
        make_challenge(CHIP.certificate, Chip(MAKER).ek_public(), AK)


@pytest.mark.parametrize(
    "attributes",
    [
        AK_ATTRIBUTES & ~TPMA_OBJECT.FIXEDTPM,
        AK_ATTRIBUTES & ~TPMA_OBJECT.FIXEDPARENT,
        AK_ATTRIBUTES & ~TPMA_OBJECT.SENSITIVEDATAORIGIN,
        AK_ATTRIBUTES & ~TPMA_OBJECT.RESTRICTED,
        AK_ATTRIBUTES & ~TPMA_OBJECT.SIGN_ENCRYPT,
        AK_ATTRIBUTES | TPMA_OBJECT.DECRYPT,
    ],
)
def test_an_ak_that_could_leave_its_tpm_or_sign_anything_is_refused(attributes: int) -> None:
    with pytest.raises(CredentialError, match="the AK has the attributes"):
        make_challenge(CHIP.certificate, EK, public_area(CHIP.ak, attributes))


@pytest.mark.parametrize(
    "attributes", [EK_ATTRIBUTES & ~TPMA_OBJECT.FIXEDTPM, EK_ATTRIBUTES & ~TPMA_OBJECT.RESTRICTED]
)
def test_an_ek_that_is_no_storage_key_is_refused(attributes: int) -> None:
    with pytest.raises(CredentialError, match="the EK has the attributes"):
        make_challenge(CHIP.certificate, public_area(CHIP.ek, attributes), AK)


def test_rsa_aks_are_accepted() -> None:
    key = rsa.generate_private_key(65537, 2048)
    assert make_challenge(CHIP.certificate, EK, public_area(key, AK_ATTRIBUTES)).ak.key == key.public_key()


def test_elliptic_curve_eks_are_accepted() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made = make_challenge(MAKER.certify(key.public_key()), public_area(key, EK_ATTRIBUTES), AK)
    assert made.encrypted_secret


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_public_areas_are_refused(data: bytes) -> None:
    with pytest.raises(CredentialError):
        make_challenge(CHIP.certificate, data, AK)
    with pytest.raises(CredentialError):
        make_challenge(CHIP.certificate, EK, data)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(EK) - 1), st.integers(1, 255))
def test_a_mutated_ek_gives_a_typed_error_or_a_credential_that_names_the_certified_key(
    position: int, change: int
) -> None:
    data = bytearray(EK)
    data[position] ^= change
    made = None
    with contextlib.suppress(CredentialError):
        made = make_challenge(CHIP.certificate, bytes(data), AK)
    assert made is None or made.ak.key == CHIP.ak.public_key()
