# SPDX-License-Identifier: Apache-2.0
"""The approved references as the verifier uses them: to appraise, and to serve to agents.

A kernel is approved by being in the store, which only the operator fills. The index of the store is signed;
the files are not, because an agent asks for them by digest.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.reference_index import IndexEntry, ReferenceIndex, sign_index
from nova_vmi_attest.messaging import BLOB_PIECE
from nova_vmi_attest.references.manifest import Manifest
from nova_vmi_attest.references.store import ReferenceStore
from nova_vmi_attest.verifier.policy import ApprovedReference

# Seconds for which the manifests that were read last stand for the store: for known kernels, and for others.
_FRESH = 10.0
_FRESH_UNKNOWN = 1.0

# Files are read piece by piece by agents; a boot image has about 14 MB.
_KEPT_FILES = 4


class PieceError(AttestError):
    """A piece of a file was asked for that does not exist."""


class ApprovedReferences:
    """Thread-safe view of a :class:`ReferenceStore` that notices what the operator imports and deletes."""

    def __init__(self, store: ReferenceStore, key: EllipticCurvePrivateKey) -> None:
        self._store = store
        self._key = key
        self._lock = threading.Lock()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._approved: Mapping[str, ApprovedReference] = {}
        self._read_at = -math.inf

    def approved(self, wanted: Iterable[str] = ()) -> Mapping[str, ApprovedReference]:
        """The approved kernels by the digest of their manifest.

        A deleted reference counts for ten seconds more; one that was just imported counts within a second.

        :param wanted: digests that the caller is about to look up.
        :raises AttestError: when the store cannot be read; nothing may be appraised then.
        """
        with self._lock:
            known = self._approved.keys() >= set(wanted)
            if time.monotonic() - self._read_at > (_FRESH if known else _FRESH_UNKNOWN):
                self._approved = {item.digest: _approved(item) for item in self._store.manifests()}
                self._read_at = time.monotonic()
            return self._approved

    def index(self, now: int) -> str:
        """The signed index of what is approved now."""
        entries = tuple(
            IndexEntry(manifest.banner_digest, manifest.release, manifest.digest)
            for manifest in self._store.manifests()
        )
        return sign_index(ReferenceIndex(now, entries), self._key)

    def piece(self, digest: str, offset: int) -> dict[str, Any]:
        """``{size, data}`` with at most 512 KiB of a file or manifest from ``offset`` on, in base64.

        :raises StoreError: no such file.
        :raises PieceError: ``offset`` is not within the file.
        """
        if not isinstance(digest, str) or type(offset) is not int:
            raise PieceError("a digest and an offset are needed")
        data = self._file(digest)
        if not 0 <= offset < len(data):
            raise PieceError(f"the file {digest[:16]} has no byte {offset}")
        piece = data[offset : offset + BLOB_PIECE]
        return {"size": len(data), "data": base64.b64encode(piece).decode()}

    def _file(self, digest: str) -> bytes:
        with self._lock:
            data = self._files.get(digest)
            if data is None:
                data = self._files[digest] = self._store.blob(digest)
            self._files.move_to_end(digest)
            while len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)
            return data


def _approved(manifest: Manifest) -> ApprovedReference:
    modules = {module.name: module.digest for module in manifest.modules}
    return ApprovedReference(manifest.release, manifest.build_id, modules)
