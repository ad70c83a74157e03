# SPDX-License-Identifier: Apache-2.0
"""The API of a test: empty, or with the small cloud of :mod:`tests.unit.api.rows` behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.api.cloud import Api, running
from tests.unit.api.rows import fill


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as found:
        fill(found.database)
        yield found


@pytest.fixture
def empty_api(tmp_path: Path) -> Iterator[Api]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The challenges that reach a verifier, which takes every one of them."""
    asked: list[tuple[str, str]] = []

    def challenge(client: object, host: str, nonce: str) -> str:
        asked.append((host, nonce))
        return nonce or "f" * 64

    monkeypatch.setattr("nova_vmi_attest.messaging.VerifierClient.challenge", challenge)
    return asked
