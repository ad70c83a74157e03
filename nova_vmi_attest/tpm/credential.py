# SPDX-License-Identifier: Apache-2.0
"""The authority's side of credential activation: a secret that only one TPM, holding one key, can open.

TPM2_MakeCredential in software (TPM 2.0 Library part 1, "Credential Protection"): whoever returns the secret
holds the EK's private key and an AK of exactly that name in one TPM. Nothing here talks to a TPM, and nothing
here says which host the TPM is in.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import TPM2B_NAME, TPM2B_PUBLIC
from tpm2_pytss.utils import make_credential

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.tpm.endorsement import certified_key
from nova_vmi_attest.tpm.structures import ALG_SHA256, Attribute, Public, StructureError

SECRET_SIZE = 32

_AK_MUST = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.SIGN
)
_EK_MUST = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)


class CredentialError(AttestError):
    """An EK or AK is not what a credential may be made for."""


@dataclass(frozen=True, slots=True)
class CredentialChallenge:
    """What the authority keeps, and what it sends.

    :param secret: 32 random bytes, kept.
    :param credential: TPM2B_ID_OBJECT, sent.
    :param encrypted_secret: TPM2B_ENCRYPTED_SECRET, sent.
    :param ak: the attestation key that the answer proves.
    """

    secret: bytes
    credential: bytes
    encrypted_secret: bytes
    ak: Public


def make_challenge(
    ek_certificate: x509.Certificate, ek_public: bytes, ak_public: bytes
) -> CredentialChallenge:
    """Check an EK and an AK and encrypt a fresh secret to both.

    Checked: the EK's public area holds the certificate's key; the EK is a restricted decryption key fixed to
    its TPM; the AK is a restricted signing key made in and fixed to its TPM, named by SHA-256. NOT checked:
    the certificate, which :func:`nova_vmi_attest.tpm.endorsement.verify_ek_chain` does.

    :param ek_public: TPM2B_PUBLIC of the EK.
    :param ak_public: TPM2B_PUBLIC of the AK.
    :raises CredentialError: naming what is wrong with which key.
    """
    ek = _public(ek_public, "EK")
    ak = _public(ak_public, "AK")
    if _spki(ek.key) != _spki(certified_key(ek_certificate)):
        raise CredentialError("the EK's public area holds another key than its certificate")
    _demand(ek, "EK", _EK_MUST, Attribute.SIGN)
    _demand(ak, "AK", _AK_MUST, Attribute.DECRYPT)
    if ak.name_algorithm != ALG_SHA256:
        raise CredentialError("the AK is not named by SHA-256")
    secret = secrets.token_bytes(SECRET_SIZE)
    try:
        area = TPM2B_PUBLIC.unmarshal(ek_public)[0]
        if area.publicArea.parameters.asymDetail.symmetric.algorithm != TPM2_ALG.AES:
            raise CredentialError("the EK does not protect credentials with AES")
        blob, encrypted = make_credential(area, secret, TPM2B_NAME(ak.name))
        return CredentialChallenge(secret, bytes(blob.marshal()), bytes(encrypted.marshal()), ak)
    except (TSS2_Exception, ValueError, TypeError) as error:
        raise CredentialError(f"no credential can be made for the EK: {error}") from error


def _public(data: bytes, which: str) -> Public:
    try:
        return Public.parse(data)
    except StructureError as error:
        raise CredentialError(f"the public area of the {which} is malformed: {error.message}") from error


def _demand(public: Public, which: str, must: Attribute, must_not: Attribute) -> None:
    if public.attributes & must != must or public.attributes & must_not:
        raise CredentialError(
            f"the {which} has the attributes {int(public.attributes):#x}; it must have {int(must):#x} and "
            f"not {int(must_not):#x}",
            "make the key with nova-vmi-attest-agent",
        )


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
