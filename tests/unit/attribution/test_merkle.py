"""Merkle trees: RFC 9162's shape, and proofs that hold for what they say and for nothing else."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from attribution.merkle import leaf_hash, merkle_proof, merkle_root, verify_merkle_proof

LEAVES = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 9162's definition word for word: split at the largest power of two below the size."""
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    children = recursive_root(leaves[:split]) + recursive_root(leaves[split:])
    digest: bytes = blake3(b"openledger/merkle-node/v1\0" + children).digest()
    return digest


@given(LEAVES)
def test_root_equals_the_recursive_definition(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == recursive_root(leaves)


@given(LEAVES, st.data())
def test_proof_of_every_leaf_verifies(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = merkle_proof(leaves, index)
    assert verify_merkle_proof(merkle_root(leaves), leaves[index], index, len(leaves), proof)


@given(LEAVES, st.data())
def test_proof_fails_for_another_leaf_position_size_or_altered_node(
    leaves: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, count, proof = merkle_root(leaves), len(leaves), merkle_proof(leaves, index)
    assert not verify_merkle_proof(root, leaves[index] + b"x", index, count, proof)
    assert not verify_merkle_proof(root, leaves[index], index, count, [*proof, bytes(32)])
    assert not verify_merkle_proof(root, leaves[index], count, count, proof)
    assert not verify_merkle_proof(root, leaves[index], -1, count, proof)
    if proof:
        assert not verify_merkle_proof(root, leaves[index], index, count, proof[:-1])
        which = data.draw(st.integers(0, len(proof) - 1))
        altered = [*proof]
        altered[which] = bytes([altered[which][0] ^ 1]) + altered[which][1:]
        assert not verify_merkle_proof(root, leaves[index], index, count, altered)
        assert not verify_merkle_proof(root, leaves[index], index, count, [p[:31] for p in proof])
    other = data.draw(st.integers(0, count - 1))
    if other != index:
        # The same leaf may stand twice, but a proof is for one position.
        assert (
            not verify_merkle_proof(root, leaves[index], other, count, proof)
            or leaves[other] == leaves[index]
        )


@given(LEAVES)
def test_root_changes_when_a_leaf_is_appended_or_leaves_are_swapped(leaves: list[bytes]) -> None:
    root = merkle_root(leaves)
    assert merkle_root([*leaves, leaves[-1]]) != root
    if leaves[0] != leaves[-1]:
        assert merkle_root([leaves[-1], *leaves[1:-1], leaves[0]]) != root


def test_an_inner_node_cannot_pass_for_a_leaf() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert merkle_root([left + right]) != merkle_root([b"a", b"b"])


def test_known_roots() -> None:
    assert merkle_root([]) == blake3(b"openledger/merkle-empty/v1\0").digest()
    assert merkle_root([b""]) == blake3(b"openledger/merkle-leaf/v1\0").digest()


@pytest.mark.parametrize("index", [-1, 3])
def test_proof_of_a_missing_leaf_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        merkle_proof([b"a", b"b", b"c"], index)
