# SPDX-License-Identifier: Apache-2.0
"""What the operator imported is what counts and what is served, piece by piece and under a signed index."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import evidence_examples as examples
import pytest

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.reference_index import verify_index
from nova_vmi_attest.messaging import BLOB_PIECE
from nova_vmi_attest.references.manifest import Blob, Manifest, ModuleBlob, Source
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.verifier import references as module
from nova_vmi_attest.verifier.references import ApprovedReferences, PieceError

KEY = examples.key("verifier")


def manifest(release: str = "6.1.0-1-amd64") -> Manifest:
    digest = "ab" * 32
    return Manifest(
        release, "cd" * 20, hashlib.sha256(release.encode()).hexdigest(), Blob(digest, 1),
        (ModuleBlob("virtio_net", digest, 1),), Source("linux-image", "1", digest),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references")


@pytest.fixture
def references(store: ReferenceStore) -> ApprovedReferences:
    return ApprovedReferences(store, KEY)


def test_an_empty_store_approves_nothing(references: ApprovedReferences) -> None:
    assert references.approved() == {}
    assert verify_index(references.index(5), [KEY.public_key()]).entries == ()


def test_what_is_in_the_store_is_approved(store: ReferenceStore, references: ApprovedReferences) -> None:
    store.put_manifest(manifest().encode())
    approved = references.approved()[manifest().digest]
    assert (approved.release, approved.build_id) == ("6.1.0-1-amd64", "cd" * 20)
    assert approved.modules == {"virtio_net": "ab" * 32}
    index = verify_index(references.index(5), [KEY.public_key()])
    assert [(entry.release, entry.manifest) for entry in index.entries] == [
        ("6.1.0-1-amd64", manifest().digest)
    ]


def test_imports_and_deletions_are_noticed(
    store: ReferenceStore, references: ApprovedReferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    wanted = [manifest().digest]
    assert references.approved(wanted) == {}
    store.put_manifest(manifest().encode())
    now[0] += 1.5
    assert references.approved(wanted).keys() == set(wanted)
    store.delete(manifest().digest)
    now[0] += 1.5
    assert references.approved(wanted).keys() == set(wanted)
    now[0] += 10
    assert references.approved(wanted) == {}


def test_files_and_manifests_are_served_in_pieces(
    store: ReferenceStore, references: ApprovedReferences
) -> None:
    data = bytes(range(256)) * 4096 + b"end"
    digest = store.put_blob(data)
    pieces, offset = [], 0
    while offset < len(data):
        piece = references.piece(digest, offset)
        assert piece["size"] == len(data)
        pieces.append(base64.b64decode(piece["data"]))
        assert 0 < len(pieces[-1]) <= BLOB_PIECE
        offset += len(pieces[-1])
    assert b"".join(pieces) == data
    store.put_manifest(manifest().encode())
    assert base64.b64decode(references.piece(manifest().digest, 0)["data"]) == manifest().encode()


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "00" * 32, "AB" * 32, 5, None])
def test_what_is_no_digest_of_a_file_is_refused(references: ApprovedReferences, digest: str) -> None:
    with pytest.raises(AttestError):
        references.piece(digest, 0)


@pytest.mark.parametrize("offset", [-1, 3, 2**70, 1.5, "0", True, None])
def test_an_offset_outside_of_the_file_is_refused(
    store: ReferenceStore, references: ApprovedReferences, offset: int
) -> None:
    digest = store.put_blob(b"abc")
    with pytest.raises(PieceError):
        references.piece(digest, offset)
