# SPDX-License-Identifier: Apache-2.0
"""The Merkle tree of RFC 9162 section 2.1 over SHA-256: one root for all guests of a host.

A leaf and a node are hashed with different first octets, so neither can be passed off as the other. The
functions take leaf hashes, not leaves: a leaf hash is ``SHA-256(0x00 ‖ leaf)``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from nova_vmi_attest.errors import AttestError

HASH_SIZE = 32
# Enough for 2^32 leaves; a longer path is refused before it is hashed.
MAX_PATH = 32


class MerkleError(AttestError):
    """An index, a path or a hash that cannot belong to a tree, or a path that leads to another root."""


def leaf_hash(data: bytes) -> bytes:
    """``SHA-256(0x00 ‖ data)``."""
    return hashlib.sha256(b"\x00" + data).digest()


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root over the leaf hashes in the order given; SHA-256 of nothing for no leaves."""
    if not leaf_hashes:
        return hashlib.sha256(b"").digest()
    return _levels(leaf_hashes)[-1][0]


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The sibling hashes from leaf ``index`` up to the root, the lowest first.

    :raises MerkleError: if there is no such leaf.
    """
    if not 0 <= index < len(leaf_hashes):
        raise MerkleError(f"no leaf {index} among {len(leaf_hashes)}")
    path = []
    for level in _levels(leaf_hashes)[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index >>= 1
    return tuple(path)


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of ``size`` leaves in which ``leaf`` has that index and path.

    The caller compares it with a root that it trusts; any well-formed path leads to some root.

    :raises MerkleError: if the path has not the one length that this index and size give it.
    """
    if not 0 <= index < size or size > 1 << MAX_PATH or len(path) > MAX_PATH:
        raise MerkleError(f"leaf {index} of {size} with a path of {len(path)} hashes is impossible")
    node, last = _hash(leaf), size - 1
    remaining = iter(path)
    while last:
        if index & 1 or index < last:
            sibling = _hash(next(remaining, b""))
            node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index, last = index >> 1, last >> 1
    if next(remaining, None) is not None:
        raise MerkleError("the inclusion path is too long")
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that ``leaf`` is leaf ``index`` of the tree of ``size`` leaves under ``root``.

    :raises MerkleError: if it is not.
    """
    if not hmac.compare_digest(root_from_path(leaf, index, size, path), root):
        raise MerkleError(f"the inclusion path of leaf {index} does not lead to the root")


def _levels(leaf_hashes: Sequence[bytes]) -> list[list[bytes]]:
    # Pairing from the left and carrying an odd last node up gives RFC 9162's tree (its left half is the
    # largest power of two), without recursion.
    levels = [[_hash(leaf) for leaf in leaf_hashes]]
    while len(level := levels[-1]) > 1:
        above = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        levels.append([*above, level[-1]] if len(level) & 1 else above)
    return levels


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _hash(value: bytes) -> bytes:
    if len(value) != HASH_SIZE:
        raise MerkleError(f"{len(value)} bytes where a hash of {HASH_SIZE} is needed")
    return value
