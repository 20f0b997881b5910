"""Merkle trees over byte strings: what data, index and receipt roots on the ledger are made of.

The shape is that of RFC 9162, section 2.1 (Certificate Transparency): a tree of ``n > 1`` leaves is split at the
largest power of two **smaller than** ``n``, recursively, so no leaf is ever duplicated and trees of different sizes
never share a root. Leaves and inner nodes are hashed in separate domains::

    leaf(data)        = BLAKE3-256("openledger/merkle-leaf/v1" || 00 || data)
    node(left, right) = BLAKE3-256("openledger/merkle-node/v1" || 00 || left || right)
    empty tree        = BLAKE3-256("openledger/merkle-empty/v1" || 00)

This is the digest rule of `consensus.digest` with an empty chain identifier (content is the same on every chain);
it is written out here because this package does not import that one. Neither torch nor anything else is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

DIGEST_BYTES = 32
PROOF_NODES_MAX = 64
"""Longest proof that is looked at: enough for 2^64 leaves."""

_LEAF = b"openledger/merkle-leaf/v1\0"
_NODE = b"openledger/merkle-node/v1\0"
_EMPTY = b"openledger/merkle-empty/v1\0"


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf's bytes (32 bytes)."""
    digest: bytes = blake3(_LEAF + data).digest()
    return digest


def _node_hash(left: bytes, right: bytes) -> bytes:
    digest: bytes = blake3(_NODE + left + right).digest()
    return digest


def _levels(hashes: list[bytes]) -> list[list[bytes]]:
    """All levels from leaf hashes to the root; an odd last node moves up unchanged, which is RFC 9162's shape."""
    levels = [hashes]
    while len(levels[-1]) > 1:
        row = levels[-1]
        above = [_node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        levels.append(above + row[len(row) - len(row) % 2 :])
    return levels


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root (32 bytes) of the tree over ``leaves`` in their order; the empty tree has a root of its own."""
    return root_of_hashes([leaf_hash(leaf) for leaf in leaves])


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """`merkle_root` where leaves are known by their hashes alone, as those of erased data are."""
    if not hashes:
        digest: bytes = blake3(_EMPTY).digest()
        return digest
    return _levels(list(hashes))[-1][0]


def merkle_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Inclusion proof of ``leaves[index]``: sibling hashes from the leaf upwards (RFC 9162, section 2.1.3.1).

    Raises ``IndexError`` unless ``0 <= index < len(leaves)``.
    """
    return proof_of_hashes([leaf_hash(leaf) for leaf in leaves], index)


def proof_of_hashes(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """`merkle_proof` where leaves are known by their hashes alone."""
    if not 0 <= index < len(hashes):
        raise IndexError(f"leaf {index} of a tree of {len(hashes)}")
    proof = []
    for row in _levels(list(hashes))[:-1]:
        sibling = index ^ 1
        if sibling < len(row):
            proof.append(row[sibling])
        index >>= 1
    return proof


def verify_merkle_proof(root: bytes, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bool:
    """Whether ``leaf`` is leaf number ``index`` of the ``count`` leaves under ``root`` (RFC 9162, section 2.1.3.2).

    Never raises on hostile input: a wrong length, size or position is simply not a proof.
    """
    if not 0 <= index < count or len(proof) > PROOF_NODES_MAX or count > 1 << PROOF_NODES_MAX:
        return False
    position, last, computed, at = index, count - 1, leaf_hash(leaf), 0
    while last:
        if position % 2 or position < last:
            if at == len(proof) or len(proof[at]) != DIGEST_BYTES:
                return False
            pair = (proof[at], computed) if position % 2 else (computed, proof[at])
            computed = _node_hash(*pair)
            at += 1
        position >>= 1
        last >>= 1
    return at == len(proof) and computed == root
