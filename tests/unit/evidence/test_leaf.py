# SPDX-License-Identifier: Apache-2.0
"""The leaf of a guest."""

from __future__ import annotations

import hashlib
import uuid

import pytest

from nova_vmi_attest.evidence import merkle
from nova_vmi_attest.evidence.leaf import LeafError, guest_leaf

GUEST = uuid.UUID("01234567-89ab-4def-8123-456789abcdef")
SALT, DIGEST, BINDING = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32


def test_is_the_leaf_hash_of_the_concatenation() -> None:
    data = SALT + bytes.fromhex("0123456789ab4def8123456789abcdef") + DIGEST + BINDING
    assert guest_leaf(SALT, GUEST, DIGEST, BINDING) == hashlib.sha256(b"\0" + data).digest()
    assert guest_leaf(SALT, GUEST, DIGEST, BINDING) == merkle.leaf_hash(data)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("size", [0, 31, 33])
def test_parts_have_one_size(place: int, size: int) -> None:
    parts = [SALT, DIGEST, BINDING]
    parts[place] = bytes(size)
    with pytest.raises(LeafError, match=f"{size} bytes instead of 32"):
        guest_leaf(parts[0], GUEST, parts[1], parts[2])
