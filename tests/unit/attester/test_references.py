# SPDX-License-Identifier: Apache-2.0
"""The agent's cache of references fetches what a guest needs, and believes digests and signatures only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from nova_vmi_attest.attester import references as module
from nova_vmi_attest.attester.references import ReferenceCache
from nova_vmi_attest.evidence.reference_index import IndexEntry, ReferenceIndex, sign_index
from nova_vmi_attest.references.store import ReferenceStore
from tests.unit.references.packages import kernel_deb

KEY, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
PIECE = 1000


class Verifier:
    """Serves a store as a verifier does; ``spoil`` alters the answers for files."""

    def __init__(self, store: ReferenceStore) -> None:
        self.store = store
        self.key = KEY
        self.asked = 0
        self.spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda piece: piece

    def reference_index(self) -> str:
        self.asked += 1
        entries = [
            IndexEntry(item.banner_digest, item.release, item.digest) for item in self.store.manifests()
        ]
        return sign_index(ReferenceIndex(1, tuple(entries)), self.key)

    def blob(self, digest: str, offset: int) -> dict[str, Any]:
        data = self.store.blob(digest)
        piece = base64.b64encode(data[offset : offset + PIECE]).decode()
        return self.spoil({"size": len(data), "data": piece})


@pytest.fixture
def verifier(tmp_path: Path) -> Verifier:
    package = tmp_path / "kernel.deb"
    package.write_bytes(kernel_deb())
    store = ReferenceStore(tmp_path / "verifier")
    store.import_package(package)
    return Verifier(store)


@pytest.fixture
def banner(verifier: Verifier) -> bytes:
    manifest = verifier.store.manifests()[0]
    return verifier.store.open(manifest.digest).vmlinux.banner


def cache(verifier: Verifier, tmp_path: Path) -> ReferenceCache:
    return ReferenceCache(ReferenceStore(tmp_path / "agent"), verifier, [KEY.public_key()])  # type: ignore[arg-type]


def test_a_kernel_that_a_guest_needs_is_fetched(verifier: Verifier, banner: bytes, tmp_path: Path) -> None:
    references = cache(verifier, tmp_path)
    assert references.candidates() == ()
    references.missing(banner)
    assert references.fetch_missing()
    (reference,) = references.candidates()
    assert reference.manifest_digest == verifier.store.manifests()[0].digest
    assert hashlib.sha256(reference.vmlinux.banner).hexdigest() == verifier.store.manifests()[0].banner_digest
    names = list(reference.module_digests)
    assert names
    assert all(reference.module(name) is not None for name in names)


def test_nothing_is_fetched_when_nothing_is_missing(verifier: Verifier, tmp_path: Path) -> None:
    assert not cache(verifier, tmp_path).fetch_missing()
    assert verifier.asked == 0


def test_a_kernel_that_nobody_approved_is_asked_for_once_in_a_while(
    verifier: Verifier, tmp_path: Path
) -> None:
    references = cache(verifier, tmp_path)
    references.missing(b"Linux version 9.9.9 (somebody)\n")
    assert not references.fetch_missing()
    assert not references.fetch_missing()
    assert verifier.asked == 1


def test_guests_cannot_fill_the_list_of_missing_kernels(
    verifier: Verifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BANNER_LIMIT", 2)
    references = cache(verifier, tmp_path)
    for number in range(5):
        references.missing(f"Linux version {number}".encode())
    assert len(references._wanted) == 2


def test_an_index_that_no_verifier_signed_is_refused(
    verifier: Verifier, banner: bytes, tmp_path: Path
) -> None:
    verifier.key = STRANGER
    references = cache(verifier, tmp_path)
    references.missing(banner)
    assert not references.fetch_missing()
    assert references.candidates() == ()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"size": 10, "data": base64.b64encode(b"0123456789").decode()}, id="another file"),
        pytest.param({"size": 1 << 40, "data": "AAAA"}, id="a size without end"),
        pytest.param({"size": 10, "data": ""}, id="no data, for ever"),
        pytest.param({"size": 2, "data": "AAAA"}, id="more than announced"),
        pytest.param({"size": "many", "data": "AAAA"}, id="no number"),
        pytest.param({"data": "AAAA"}, id="no size"),
        pytest.param({"size": 10, "data": "*"}, id="not base64"),
    ],
)
def test_a_file_that_is_not_what_was_asked_for_is_refused(
    verifier: Verifier, banner: bytes, tmp_path: Path, answer: dict[str, Any]
) -> None:
    verifier.spoil = lambda piece: answer
    references = cache(verifier, tmp_path)
    references.missing(banner)
    assert not references.fetch_missing()
    assert references.candidates() == ()


def test_a_verifier_that_does_not_answer_stops_nothing(
    verifier: Verifier, banner: bytes, tmp_path: Path
) -> None:
    def silent(piece: dict[str, Any]) -> dict[str, Any]:
        raise oslo_messaging.MessagingTimeout

    verifier.spoil = silent
    references = cache(verifier, tmp_path)
    references.missing(banner)
    assert not references.fetch_missing()


def test_a_verifier_that_was_away_is_asked_again_sooner_than_one_that_does_not_know(
    verifier: Verifier, banner: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> str:
        raise oslo_messaging.MessagingTimeout

    references = cache(verifier, tmp_path)
    monkeypatch.setattr(module, "_UNANSWERED", 0.0)
    references.missing(banner)
    with monkeypatch.context() as outage:
        outage.setattr(verifier, "reference_index", away)
        assert not references.fetch_missing()
    assert references.fetch_missing()
