# SPDX-License-Identifier: Apache-2.0
"""Of two hosts that may show a guest, the one that has it speaks: the other one may be what it fled from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest

from nova_vmi_attest.api import proofs
from nova_vmi_attest.api.problems import Problem

GUEST = uuid.UUID(int=1)
MINE, OLDER = "aa" * 32, "bb" * 32


@dataclass(frozen=True)
class Proof:
    """What a host's newest evidence answers."""

    host: str
    nonces: tuple[bytes, ...]

    def encode(self) -> bytes:
        return self.host.encode()


def find(monkeypatch: pytest.MonkeyPatch, evidence: dict[str, str], nonce: str | None) -> bytes:
    def newest(session: Any, guest: uuid.UUID, host: str) -> Proof | None:
        return Proof(host, (bytes.fromhex(evidence[host]),)) if host in evidence else None

    monkeypatch.setattr(proofs, "_proof", newest)
    return proofs.find_proof(None, GUEST, ["target", "source"], nonce)  # type: ignore[arg-type]


def test_the_host_that_has_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, {"target": MINE, "source": MINE}, MINE) == b"target"
    assert find(monkeypatch, {"target": OLDER, "source": MINE}, None) == b"target"


def test_a_host_that_it_left_cannot_be_quicker_with_a_decoy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonces travel over the bus, and a host may add any nonce to those that its evidence answers."""
    with pytest.raises(Problem) as caught:
        find(monkeypatch, {"target": OLDER, "source": MINE}, MINE)
    assert caught.value.status == HTTPStatus.CONFLICT


def test_where_it_is_not_yet_the_other_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, {"source": MINE}, MINE) == b"source"
    with pytest.raises(Problem) as caught:
        find(monkeypatch, {}, MINE)
    assert caught.value.status == HTTPStatus.NOT_FOUND
