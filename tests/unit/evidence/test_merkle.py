# SPDX-License-Identifier: Apache-2.0
"""The tree against RFC 9162's recursive definitions and the known roots of Certificate Transparency."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova_vmi_attest.evidence import merkle
from nova_vmi_attest.evidence.merkle import MerkleError

from .hostile import bounded

# The leaves and roots that implementations of RFC 6962 are tested with.
LEAVES = [bytes.fromhex(x) for x in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def reference_root(hashes: list[bytes]) -> bytes:
    """RFC 9162 section 2.1.1."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = split(len(hashes))
    return hashlib.sha256(b"\1" + reference_root(hashes[:k]) + reference_root(hashes[k:])).digest()


def reference_path(index: int, hashes: list[bytes]) -> list[bytes]:
    """RFC 9162 section 2.1.3.1."""
    if len(hashes) == 1:
        return []
    k = split(len(hashes))
    if index < k:
        return [*reference_path(index, hashes[:k]), reference_root(hashes[k:])]
    return [*reference_path(index - k, hashes[k:]), reference_root(hashes[:k])]


def hashes_of(size: int) -> list[bytes]:
    return [merkle.leaf_hash(n.to_bytes(2, "big")) for n in range(size)]


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    assert merkle.tree_root([merkle.leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size - 1]


def test_no_leaves() -> None:
    assert merkle.tree_root([]) == hashlib.sha256(b"").digest()


@bounded
@given(st.data())
def test_tree_and_paths_are_those_of_the_rfc(data: st.DataObject) -> None:
    hashes = hashes_of(data.draw(st.integers(1, 70)))
    index = data.draw(st.integers(0, len(hashes) - 1))
    root, path = merkle.tree_root(hashes), merkle.inclusion_path(hashes, index)
    assert root == reference_root(hashes)
    assert list(path) == reference_path(index, hashes)
    merkle.verify_inclusion(hashes[index], index, len(hashes), path, root)


@bounded
@given(st.data())
def test_a_changed_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 40))
    hashes = hashes_of(size)
    index = data.draw(st.integers(0, size - 1))
    path = list(merkle.inclusion_path(hashes, index))
    root = merkle.tree_root(hashes)
    place = data.draw(st.integers(0, len(path) - 1))
    changed = [*path[:place], bytes(32), *path[place + 1 :]]
    for attempt in (changed, path[:-1], [*path, bytes(32)], [b"", *path[1:]]):
        with pytest.raises(MerkleError):
            merkle.verify_inclusion(hashes[index], index, size, attempt, root)
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(hashes[index - 1], index, size, path, root)
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(hashes[index], (index + 1) % size, size, path, root)


@bounded
@given(
    st.binary(max_size=40),
    st.integers(),
    st.integers(),
    st.lists(st.binary(max_size=40), max_size=40),
)
def test_arbitrary_proofs_are_refused(leaf: bytes, index: int, size: int, path: list[bytes]) -> None:
    with pytest.raises(MerkleError):
        merkle.verify_inclusion(leaf, index, size, path, b"no hash at all")


@pytest.mark.parametrize("index", [-1, 3])
def test_no_such_leaf(index: int) -> None:
    with pytest.raises(MerkleError, match="no leaf"):
        merkle.inclusion_path(hashes_of(3), index)


def test_a_node_is_not_a_leaf() -> None:
    left, right = hashes_of(2)
    assert merkle.leaf_hash(left + right) != merkle.tree_root([left, right])


def test_hashes_have_one_size() -> None:
    with pytest.raises(MerkleError, match="31 bytes"):
        merkle.tree_root([bytes(31)])
