# SPDX-License-Identifier: Apache-2.0
"""One tenant's proof: what it proves, at which step it fails, and that it reveals nothing of other guests."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import evidence_examples as example
import pytest
from hypothesis import given

from nova_vmi_attest.evidence import proof as module
from nova_vmi_attest.evidence.log import EntryKind, replay
from nova_vmi_attest.evidence.proof import GuestProof, ProofError, make_proof, verify_proof

from .hostile import bounded, damaged, json_values, mutated
from .test_batch import encode

BATCH = example.batch()
BEFORE = replay(bytes(32), BATCH.entries[:2])
CA = [example.ca_certificate()]
PROOF = make_proof(BATCH, example.ALTERED, BEFORE)
WIRE = json.loads(PROOF.encode())


def verify(proof: GuestProof, **other: Any) -> Any:
    arguments = {"ca_certificates": CA, "nonce": example.TENANT_NONCE, "now": example.NOW} | other
    return verify_proof(proof, **arguments)


@pytest.mark.parametrize("guest", [example.HEALTHY, example.ALTERED, example.BOOTING])
def test_every_guest_can_be_proven_from_a_file(guest: uuid.UUID) -> None:
    data = make_proof(BATCH, guest, BEFORE).encode()
    measurement = verify(GuestProof.decode(data))
    assert measurement == next(item.measurement for item in BATCH.guests if item.guest == guest)
    assert GuestProof.decode(data).guest == guest


def test_verifiers_nonce_serves_too() -> None:
    assert verify(PROOF, nonce=example.VERIFIER_NONCE) == example.altered()


def test_reveals_nothing_of_other_guests() -> None:
    text = PROOF.encode().decode()
    for item in BATCH.guests:
        if item.guest != example.ALTERED:
            assert str(item.guest) not in text
            assert item.salt.hex() not in text
    assert "virtio_net" not in text
    assert "systemd" not in text


def test_the_only_guest_of_a_host() -> None:
    batch = example.batch(BATCH.guests[:1])
    before = replay(bytes(32), batch.entries[:2])
    proof = make_proof(batch, example.HEALTHY, before)
    assert proof.path == ()
    assert verify(proof) == example.healthy()


ENTRY = PROOF.entry
STEPS = {
    "step 1, certificate": [
        {"host": "compute-2"},
        {"ak_certificate": b""},
        {"ak_certificate": example.ak_certificate(authority="stranger")},
        {"ak_certificate": example.ak_certificate(usage="2.23.133.8.1")},
        {"ak_certificate": example.ak_certificate(ends=-1)},
        {"ak_certificate": example.ak_certificate(host="compute-2")},
    ],
    "step 2, nonce": [
        {"nonces": (example.VERIFIER_NONCE,)},
        {"nonces": (example.TENANT_NONCE,) * 2},
        {"nonces": (example.TENANT_NONCE, b"short")},
    ],
    "step 3, quote": [
        {"verifier": bytes(32)},
        {"nonces": (example.TENANT_NONCE,)},
        {"ak_certificate": example.ak_certificate(public=example.key("stranger").public_key())},
        {"quote": dataclasses.replace(PROOF.quote, signature=b"")},
        {"quote": dataclasses.replace(PROOF.quote, attest=PROOF.quote.attest[:-1])},
        {"quote": dataclasses.replace(PROOF.quote, pcrs={13: bytes(32)})},
    ],
    "step 4, log": [
        {"pcr_before": bytes(32)},
        {"pcr_before": bytes(31)},
        {"entry": BATCH.entries[0]},
        {"entry": dataclasses.replace(ENTRY, root=bytes(32))},
        {"entry": dataclasses.replace(ENTRY, guests=4)},
        {"entry": dataclasses.replace(ENTRY, pcr=7)},
        {"entry": dataclasses.replace(ENTRY, pcr=9)},
        {"entry": dataclasses.replace(ENTRY, restart_count=9)},
    ],
    "step 5, leaf": [
        {"salt": bytes(32)},
        {"salt": bytes(31)},
        {"index": 0},
        {"index": 3},
        {"index": -1},
        {"path": ()},
        {"path": PROOF.path[::-1]},
        {"path": (*PROOF.path, bytes(32))},
        {"measurement": example.healthy()},
        {"measurement": example.healthy(example.ALTERED)},
    ],
}


@pytest.mark.parametrize(
    ("step", "change"), [(step, change) for step, all_ in STEPS.items() for change in all_]
)
def test_each_step_fails_by_its_name(step: str, change: dict[str, Any]) -> None:
    with pytest.raises(ProofError, match=f"^{step}: "):
        verify(dataclasses.replace(PROOF, **change))


def test_a_record_of_another_kind() -> None:
    """A host whose TPM quotes a boot record last proves no guest."""
    boot = BATCH.entries[0]
    quote = example.quote(BATCH.binding, replay(bytes(32), [boot]))
    proof = dataclasses.replace(PROOF, entry=boot, pcr_before=bytes(32), quote=quote)
    assert boot.kind is EntryKind.BOOT
    with pytest.raises(ProofError, match="step 4, log: record 0 is no batch"):
        verify(proof)


def test_time_and_authority_are_the_callers() -> None:
    with pytest.raises(
        ProofError, match="step 1, certificate: the attestation key certificate is not valid at"
    ):
        verify(PROOF, now=example.NOW + 8 * 86400)
    with pytest.raises(ProofError, match=r"step 1, certificate: .* not issued by a configured authority"):
        verify(PROOF, ca_certificates=[])
    with pytest.raises(ProofError, match=r"step 1, certificate: .* is no moment"):
        verify(PROOF, now=1e300)
    with pytest.raises(ProofError, match="step 2, nonce"):
        verify(PROOF, nonce=bytes(32))


@bounded
@given(mutated(WIRE) | json_values)
def test_no_changed_proof_proves_anything_else(value: Any) -> None:
    try:
        proof = GuestProof.decode(encode(value))
        measurement = verify(proof)
    except ProofError:
        return
    assert measurement == example.altered()


@bounded
@given(damaged(PROOF.encode()))
def test_damaged_proofs_are_refused(data: bytes) -> None:
    try:
        measurement = verify(GuestProof.decode(data))
    except ProofError:
        return
    assert measurement == example.altered()


def test_large_proofs_are_refused() -> None:
    with pytest.raises(ProofError, match="at most"):
        GuestProof.decode(bytes(module.MAX_PROOF_BYTES + 1))
    with pytest.raises(ProofError, match="cannot be written"):
        dataclasses.replace(PROOF, index=2**53).encode()


@pytest.mark.parametrize(
    ("batch", "guest", "before", "message"),
    [
        (BATCH, uuid.UUID(int=1), BEFORE, "has no guest"),
        (BATCH, example.HEALTHY, bytes(32), "does not lead to the quoted value"),
        (BATCH, example.HEALTHY, b"", "does not lead to the quoted value"),
        (
            dataclasses.replace(BATCH, guests=BATCH.guests[:2]),
            example.HEALTHY,
            BEFORE,
            "not that of its guests",
        ),
        (dataclasses.replace(BATCH, entries=()), example.HEALTHY, BEFORE, "no batch record"),
        (dataclasses.replace(BATCH, nonces=()), example.HEALTHY, BEFORE, "no proof of guest"),
    ],
)
def test_no_proof_of_what_does_not_hold_together(
    batch: Any, guest: uuid.UUID, before: bytes, message: str
) -> None:
    with pytest.raises(ProofError, match=message):
        make_proof(batch, guest, before)
