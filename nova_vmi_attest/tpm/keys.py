# SPDX-License-Identifier: Apache-2.0
"""The two keys of a host's TPM: the endorsement key (EK) and the attestation key (AK) under it.

These functions serve ``device`` and run under its lock, on its connection. Sources: TCG EK Credential Profile
for TPM Family 2.0, 2.5 (NV indices, templates, handles); TPM 2.0 Library part 1 (object attributes, qualified
names).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMT_PUBLIC
from tpm2_pytss.utils import NVReadEK, create_ek_template

from nova_vmi_attest.tpm import sessions
from nova_vmi_attest.tpm.endorsement import certificate_from_nv, certified_key, load_certificate
from nova_vmi_attest.tpm.sessions import TpmError

OWNER_HANDLES = range(0x81000000, 0x81800000)

# (template, NV index of the certificate, persistent handle), in the order in which they are looked for.
_ENDORSEMENTS = (("EK-RSA2048", 0x01C00002, 0x81010001), ("EK-ECC256", 0x01C0000A, 0x81010002))
_ENDORSEMENT_HIERARCHY = (0x4000000B).to_bytes(4, "big")
_AK_ALGORITHM = "ecc:ecdsa-sha256:null"
_AK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.NODA
)


@dataclass(frozen=True, slots=True)
class Endorsement:
    """An EK that has a certificate: its template, the handle reserved for it, and the certificate (DER)."""

    template: str
    handle: int
    certificate: bytes


def present(esys: Any, handle: int) -> bool:
    """Whether a persistent object or an NV index is defined."""
    _, capability = esys.get_capability(TPM2_CAP.HANDLES, handle, 1)
    return handle in [int(found) for found in capability.data.handles]


def find_endorsement(esys: Any) -> Endorsement:
    """The first EK with a certificate in NV: RSA 2048, then P-256.

    :raises TpmError: there is none.
    """
    for template, index, handle in _ENDORSEMENTS:
        if present(esys, index):
            return Endorsement(template, handle, certificate_from_nv(NVReadEK(esys)(index)))
    raise TpmError(
        "the TPM holds no EK certificate for RSA 2048 or P-256",
        "write the certificate that the TPM's maker offers for download to NV index 0x1c00002",
    )


@contextlib.contextmanager
def endorsement_key(esys: Any) -> Iterator[tuple[Any, Any]]:
    """The EK's handle and public area: the persistent one, or made from its template and flushed afterwards.

    Its key must be the one in the certificate: an answer altered on the bus would otherwise have the session
    salted to another key.
    """
    endorsement = find_endorsement(esys)
    certified = certified_key(load_certificate(endorsement.certificate)).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if present(esys, endorsement.handle):
        ek = esys.tr_from_tpmpublic(endorsement.handle)
        public = esys.read_public(ek)[0]
        if public.to_der() == certified:
            yield ek, public
            return
    _, area = create_ek_template(endorsement.template, NVReadEK(esys))
    ek, public, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), area, ESYS_TR.ENDORSEMENT)
    try:
        if public.to_der() != certified:
            raise TpmError(
                "the TPM's EK is not the one in its EK certificate",
                "the endorsement seed was changed or the certificate is of another chip: ask the maker",
            )
        yield ek, public
    finally:
        sessions.flush(esys, ek)


def create_ak(esys: Any, session: Any, handle: int) -> None:
    """Make a P-256 restricted signing key under the EK and keep it at a persistent handle."""
    area = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse(alg=_AK_ALGORITHM, objectAttributes=_AK_ATTRIBUTES, nameAlg="sha256")
    )
    with endorsement_key(esys) as (ek, _):
        with sessions.endorsement_policy(esys) as policy:
            private, public, *_ = esys.create(
                ek, TPM2B_SENSITIVE_CREATE(), area, session1=policy, session2=session
            )
        with sessions.endorsement_policy(esys) as policy:
            ak = esys.load(ek, private, public, session1=policy, session2=session)
    try:
        esys.evict_control(ESYS_TR.OWNER, ak, handle)
    finally:
        sessions.flush(esys, ak)


def check_ak(esys: Any, handle: int, public: Any, name: bytes, qualified: bytes) -> None:
    """Refuse a key that is not a restricted P-256 signing key made in this TPM under its EK.

    :param qualified: the qualified name that ReadPublic returned; names chain from the hierarchy's handle
        downwards.
    """
    area = public.publicArea
    if area.objectAttributes & ~TPMA_OBJECT.NODA != _AK_ATTRIBUTES & ~TPMA_OBJECT.NODA:
        raise unusable(handle, "it is not a restricted signing key fixed to this TPM")
    if area.type != TPM2_ALG.ECC or area.nameAlg != TPM2_ALG.SHA256:
        raise unusable(handle, "it is not an elliptic curve key named by SHA-256")
    with endorsement_key(esys) as (_, ek_public):
        parent = _qualified(_ENDORSEMENT_HIERARCHY, bytes(ek_public.get_name()))
    if _qualified(parent, name) != qualified:
        raise unusable(handle, "it is not a child of this TPM's EK")


def unusable(handle: int, reason: str) -> TpmError:
    """The error for a key that must be neither used nor replaced silently."""
    return TpmError(
        f"the key at handle {handle:#x} cannot be the attestation key: {reason}",
        f"set [tpm] ak_handle to a free handle, or remove the key with tpm2_evictcontrol -C o -c {handle:#x}",
    )


def _qualified(parent: bytes, name: bytes) -> bytes:
    """The qualified name of an object named by SHA-256 under a parent with that qualified name."""
    return name[:2] + hashlib.sha256(parent + name).digest()
