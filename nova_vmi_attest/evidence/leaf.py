# SPDX-License-Identifier: Apache-2.0
"""The leaf of one guest: what ties a measurement to a guest, a moment and a host.

The salt hides the measurement from those who hold the path of another guest: without it a tenant could guess
a neighbour's measurement and confirm the guess. The binding (see :mod:`.challenge`) carries the host, the
verifier and the nonces, so a leaf of one round or host is worth nothing in another.
"""

from __future__ import annotations

import uuid

from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence import merkle

SALT_SIZE = 32


class LeafError(AttestError):
    """A part of a leaf has the wrong size."""


def guest_leaf(salt: bytes, guest: uuid.UUID, measurement_digest: bytes, binding: bytes) -> bytes:
    """``SHA-256(0x00 ‖ salt(32) ‖ guest(16) ‖ measurement digest(32) ‖ binding(32))``.

    This is the RFC 9162 leaf hash of the 112 bytes after the 0x00: it goes into the tree as it is. Every part
    has a fixed size, so the concatenation can be read in one way only.

    :param guest: big-endian bytes of the UUID are used (``UUID.bytes``).
    :raises LeafError: if a part has another size.
    """
    for name, part in (("salt", salt), ("measurement digest", measurement_digest), ("binding", binding)):
        if len(part) != 32:
            raise LeafError(f"the {name} of guest {guest} has {len(part)} bytes instead of 32")
    return merkle.leaf_hash(salt + guest.bytes + measurement_digest + binding)
