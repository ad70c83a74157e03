# SPDX-License-Identifier: Apache-2.0
"""Proofs of the example batch, one guest sound and one altered."""

from __future__ import annotations

import uuid
from dataclasses import replace

import evidence_examples as example
from cryptography.hazmat.primitives.serialization import Encoding

from nova_vmi_attest.evidence.batch import GuestEvidence
from nova_vmi_attest.evidence.log import replay
from nova_vmi_attest.evidence.measurement import Outcome
from nova_vmi_attest.evidence.proof import make_proof

SOUND, ALTERED = example.HEALTHY, example.ALTERED
NONCE, NOW = example.TENANT_NONCE, example.NOW
CA_PEM = example.ca_certificate().public_bytes(Encoding.PEM)


def proof(guest: uuid.UUID) -> bytes:
    """An encoded proof that answers :data:`NONCE` at :data:`NOW`; every check of the sound guest passed."""
    evidence = tuple(_sound(item) if item.guest == SOUND else item for item in example.guests())
    batch = example.batch(evidence)
    return make_proof(batch, guest, replay(bytes(32), batch.entries[:2])).encode()


def _sound(item: GuestEvidence) -> GuestEvidence:
    integrity = item.measurement.integrity
    passed = tuple(replace(check, outcome=Outcome.PASSED, detail="") for check in integrity.checks)
    measurement = replace(item.measurement, integrity=replace(integrity, checks=passed))
    return replace(item, measurement=measurement)
