# SPDX-License-Identifier: Apache-2.0
"""The signed list of approved kernel references, by which an agent finds the one that a guest runs.

An agent looks a kernel up by the digest of its banner, a string that every build has one of. The index only
says where to look: the manifest that it names is checked against its digest, and whether a reference is
approved is decided again when the measurement is appraised. So a withheld or outdated index costs a
verdict, and never gains one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import encoding, jws
from nova_vmi_attest.evidence.encoding import EncodingError

KIND = "nova-vmi-attest-references+jwt"
MAX_ENTRIES = 16384
_MAX_BYTES = 8 << 20
_MAX_RELEASE = 128


class ReferenceIndexError(AttestError):
    """An index that is malformed or that no verifier signed."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One approved build. ``banner_digest`` and ``manifest`` are SHA-256 digests in hex."""

    banner_digest: str
    release: str
    manifest: str


@dataclass(frozen=True, slots=True)
class ReferenceIndex:
    """``issued`` is in seconds since the epoch; it is for people, nothing is decided by it."""

    issued: int
    entries: tuple[IndexEntry, ...]


def sign_index(index: ReferenceIndex, key: EllipticCurvePrivateKey) -> str:
    """The index as a compact JWS.

    :raises ReferenceIndexError: more than 16,384 entries.
    """
    if len(index.entries) > MAX_ENTRIES:
        raise ReferenceIndexError(
            f"{len(index.entries)} references do not fit into an index", "delete old ones"
        )
    entries = [
        {"banner": entry.banner_digest, "manifest": entry.manifest, "release": entry.release}
        for entry in index.entries
    ]
    return jws.sign({"entries": entries, "issued": index.issued}, key, KIND)


def verify_index(token: str, public_keys: Iterable[EllipticCurvePublicKey]) -> ReferenceIndex:
    """The index in ``token``, when one of ``public_keys`` signed it.

    :raises ReferenceIndexError: otherwise. Not checked: its age.
    """
    try:
        claims, _ = jws.verify(token, public_keys, KIND, _MAX_BYTES)
        encoding.exact_keys(claims, ("entries", "issued"), "the reference index")
        entries = tuple(_entry(item) for item in encoding.items(claims, "entries", MAX_ENTRIES))
        return ReferenceIndex(encoding.integer(claims, "issued"), entries)
    except (EncodingError, jws.SignatureError) as error:
        raise ReferenceIndexError(f"reference index refused: {error.message}") from error


def _entry(item: object) -> IndexEntry:
    fields = encoding.exact_keys(item, ("banner", "manifest", "release"), "an entry of the reference index")
    return IndexEntry(
        banner_digest=encoding.hexdigest_text(fields["banner"], "banner"),
        release=encoding.text(fields, "release", _MAX_RELEASE),
        manifest=encoding.hexdigest_text(fields["manifest"], "manifest"),
    )
