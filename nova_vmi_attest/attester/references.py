# SPDX-License-Identifier: Apache-2.0
"""The kernel references of this host: a local store, filled from a verifier when a guest needs one.

The agent believes nothing about a reference but its digest: the index that says which manifest belongs to a
kernel's banner is signed by a verifier, and every blob is checked against the digest by which it was asked
for. Whether a reference is approved is decided again by the verifier that appraises the measurement.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Sequence

import oslo_messaging
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from oslo_log import log

from nova_vmi_attest import messaging
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.reference_index import verify_index
from nova_vmi_attest.kernel.reference import Reference
from nova_vmi_attest.references.store import ReferenceStore

LOG = log.getLogger(__name__)

# The largest blob that is fetched; a boot image is about 14 MB, the largest module about 10 MB.
_BLOB_LIMIT = 256 << 20

# How many different unknown banners are remembered at a time: they come from guests.
_BANNER_LIMIT = 256

# Seconds before a kernel is asked for again that no verifier knew, or that none answered for: one that sends
# a challenge is there again.
_RETRY, _UNANSWERED = 60.0, 1.0


class FetchError(AttestError):
    """A reference could not be fetched."""


class ReferenceCache:
    """Gives the measurer its candidates (:class:`.measure.ReferenceProvider`). Thread-safe."""

    def __init__(
        self,
        store: ReferenceStore,
        client: messaging.VerifierClient,
        keys: Sequence[EllipticCurvePublicKey],
    ) -> None:
        self._store = store
        self._client = client
        self._keys = keys
        self._lock = threading.Lock()
        self._fetching = threading.Lock()
        self._loaded: dict[str, Reference] = {}
        self._wanted: dict[str, float] = {}  # banner digest -> when it may be asked for (again)

    def candidates(self) -> Sequence[Reference]:
        """Every reference that some guest of this host has needed so far."""
        with self._lock:
            return tuple(self._loaded.values())

    def missing(self, banner: bytes) -> None:
        """A guest runs a Linux kernel with this banner, and no candidate has it."""
        digest = hashlib.sha256(banner).hexdigest()
        with self._lock:
            if len(self._wanted) < _BANNER_LIMIT:
                self._wanted.setdefault(digest, 0.0)

    def fetch_missing(self) -> bool:
        """Get the references that were found missing. Returns whether there are new candidates.

        What cannot be had is logged and asked for again later; the guests concerned stay unmeasured.
        """
        before = len(self.candidates())
        with self._fetching:
            now = time.monotonic()
            with self._lock:
                due = {digest for digest, when in self._wanted.items() if when <= now}
            if due:
                pause = _RETRY
                try:
                    self._fetch(due)
                except AttestError as error:
                    LOG.warning("kernel references cannot be fetched: %s", error)
                except oslo_messaging.MessagingException as error:
                    LOG.warning("no verifier could be asked for kernel references: %s", error)
                    pause = _UNANSWERED
                with self._lock:
                    for digest in due & self._wanted.keys():
                        self._wanted[digest] = time.monotonic() + pause
        return len(self.candidates()) > before

    def _fetch(self, banners: set[str]) -> None:
        index = verify_index(self._client.reference_index(), self._keys)
        for entry in index.entries:
            if entry.banner_digest not in banners:
                continue
            self._ensure_blob(entry.manifest)
            self._store.put_manifest(self._store.blob(entry.manifest))
            reference = self._store.open(entry.manifest, fetch=self._ensure_blob)
            with self._lock:
                self._loaded[entry.manifest] = reference
                self._wanted.pop(entry.banner_digest, None)
            LOG.info("kernel reference %s (%s) is ready", entry.release, entry.manifest[:16])

    def _ensure_blob(self, digest: str) -> None:
        """Fetch a blob unless the store has it.

        :raises FetchError: the verifier does not have it, or sent something else.
        """
        if self._store.has(digest):
            return
        data = bytearray()
        size = -1
        while len(data) != size:
            piece = self._client.blob(digest, len(data))
            try:
                size = int(piece["size"])
                more = base64.b64decode(piece["data"], validate=True)
            except (KeyError, TypeError, ValueError, binascii.Error) as error:
                raise FetchError(f"blob {digest[:16]}: malformed answer from the verifier") from error
            if not more or not 0 < size <= _BLOB_LIMIT or len(data) + len(more) > size:
                raise FetchError(
                    f"blob {digest[:16]}: the verifier sent {len(data) + len(more)} of {size} bytes"
                )
            data += more
        if hashlib.sha256(data).hexdigest() != digest:
            raise FetchError(f"blob {digest[:16]}: what the verifier sent has another digest")
        self._store.put_blob(bytes(data))
