# SPDX-License-Identifier: Apache-2.0
"""A tenant's own check of one guest: his nonce, the proof that answers it, and the authority's certificate.

The API only carries the proof. It cannot make one up, because the nonce is in a quote that the host's TPM
signed, and the key that signed it is certified by the enrolment authority, whose certificate the tenant has
from somewhere else.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.challenge import NONCE_SIZE
from nova_vmi_attest.evidence.proof import GuestProof, verify_proof
from nova_vmi_attest.evidence.summary import Summary, summarize
from nova_vmi_attest.osc.client import AttestationClient, ClientError

# Seconds between two looks whether the proof is there.
_PAUSE = 1.0
# What the API answers until the proof is there, and when it cannot ask the host just now.
_NOT_YET = (404, 409)


class VerificationError(AttestError):
    """A proof could not be had, or is not about what it should be."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A proof that holds. ``log_record`` is the number of its record in the host's log."""

    guest: uuid.UUID
    host: str
    nonce: bytes
    log_record: int
    summary: Summary


def new_nonce() -> bytes:
    """32 octets that nobody can have foreseen."""
    return secrets.token_bytes(NONCE_SIZE)


def ask(
    client: AttestationClient,
    guest: uuid.UUID,
    nonce: bytes,
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Have the guest's host answer ``nonce`` and return the encoded proof; nothing is verified.

    :param timeout: seconds to wait for the host's answer.
    :raises VerificationError: no proof came in time.
    :raises ClientError: the API refused.
    """
    client.create("servers", str(guest), "challenges", body={"nonce": nonce.hex()})
    deadline = time.monotonic() + timeout
    while True:
        try:
            return client.download("servers", str(guest), "proof", nonce=nonce.hex())
        except ClientError as error:
            if error.status not in _NOT_YET:
                raise
            if time.monotonic() >= deadline:
                raise VerificationError(
                    f"no proof of server {guest} came within {timeout:.0f} s: {error.message}",
                    "ask again, or raise --timeout; a server that does not run has no proof",
                ) from error
        sleep(_PAUSE)


def verify(data: bytes, authorities: list[x509.Certificate], nonce: bytes, now: float) -> Verified:
    """Verify an encoded proof offline. Which server it is about is in the answer, for the caller to compare.

    :param authorities: the enrolment authority's certificates, from a source that the tenant trusts.
    :param now: the moment at which the certificates must be valid, seconds since 1970.
    :raises ProofError: naming the step that failed.
    """
    proof = GuestProof.decode(data)
    measurement = verify_proof(proof, authorities, nonce, now)
    return Verified(measurement.guest, proof.host, nonce, proof.entry.recnum, summarize(measurement))
