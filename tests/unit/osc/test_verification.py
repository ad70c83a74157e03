# SPDX-License-Identifier: Apache-2.0
"""A tenant's own check, with an API that carries the proof, is slow, or lies."""

from __future__ import annotations

import evidence_examples as example
import pytest

from nova_vmi_attest.evidence.challenge import NONCE_SIZE
from nova_vmi_attest.evidence.proof import ProofError
from nova_vmi_attest.osc.client import ClientError
from nova_vmi_attest.osc.verification import VerificationError, ask, new_nonce, verify
from tests.unit.osc import proofs
from tests.unit.osc.http_api import PlayedApi

CA = [example.ca_certificate()]


def test_nonces_differ() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100
    assert len(new_nonce()) == NONCE_SIZE


def test_the_nonce_is_asked_and_its_answer_awaited(api: PlayedApi) -> None:
    waiting = iter([404, 409, 200])

    def answer(method: str, path: str) -> tuple[int, bytes]:
        return (202, b"{}") if method == "POST" else (next(waiting), b"proof")

    api.answer = answer
    pauses: list[float] = []
    assert ask(api.client, proofs.SOUND, proofs.NONCE, 60, pauses.append) == b"proof"
    assert len(pauses) == 2
    method, path, body = api.requests[0]
    assert (method, path) == ("POST", f"/v1/servers/{proofs.SOUND}/challenges")
    assert proofs.NONCE.hex().encode() in body


def test_a_host_that_does_not_answer_ends_in_an_error_and_not_in_waiting(api: PlayedApi) -> None:
    api.answer = lambda method, path: (202 if method == "POST" else 404, {"detail": "not yet"})
    with pytest.raises(VerificationError, match="no proof of server"):
        ask(api.client, proofs.SOUND, proofs.NONCE, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
def test_a_refusal_is_no_reason_to_wait(api: PlayedApi, status: int) -> None:
    api.answer = lambda method, path: (202, {}) if method == "POST" else (status, {"detail": "no"})
    with pytest.raises(ClientError) as caught:
        ask(api.client, proofs.SOUND, proofs.NONCE, 60)
    assert caught.value.status == status


def test_a_good_proof_shows_what_was_found() -> None:
    sound = verify(proofs.proof(proofs.SOUND), CA, proofs.NONCE, proofs.NOW)
    altered = verify(proofs.proof(proofs.ALTERED), CA, proofs.NONCE, proofs.NOW)
    assert sound.summary.sound
    assert not altered.summary.sound
    assert altered.summary.findings
    assert (sound.guest, sound.host) == (proofs.SOUND, example.HOST)


def test_an_answer_to_another_nonce_is_refused() -> None:
    with pytest.raises(ProofError, match="nonce"):
        verify(proofs.proof(proofs.SOUND), CA, new_nonce(), proofs.NOW)


def test_the_api_cannot_vouch_with_an_authority_of_its_own() -> None:
    with pytest.raises(ProofError, match="certificate"):
        verify(
            proofs.proof(proofs.SOUND), [example.ca_certificate("stranger")], proofs.NONCE,
            proofs.NOW,
        )  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, b"[" * 100_000])
def test_what_is_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(ProofError):
        verify(data, CA, proofs.NONCE, proofs.NOW)
