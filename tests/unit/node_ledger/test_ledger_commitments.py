import pytest

from attribution.merkle import verify_merkle_proof
from consensus.digest import digest
from node.ledger.accumulator import (
    Accumulator,
    AccumulatorProof,
    accumulator_root,
    append,
    decode_accumulator,
    encode_accumulator,
    prove,
    verify_proof,
)
from node.ledger.block import Receipt, decode_receipt, encode_receipt, receipt_proof, receipts_root
from node.ledger.entries import Payout, Role
from node.ledger.errors import MalformedError
from node.ledger.lthash import EMPTY_LTHASH, LTHASH_BYTES, apply_changes, lthash_of, state_digest

CHAIN = bytes(32)
STATE = {b"a": b"1", b"b": b"2", b"ab": b"", b"": b"x"}


def test_the_state_hash_does_not_depend_on_order_and_is_undone_by_deleting() -> None:
    turned = dict(reversed(list(STATE.items())))
    assert lthash_of(turned) == lthash_of(STATE)
    emptied = apply_changes(lthash_of(STATE), [(key, value, None) for key, value in STATE.items()])
    assert emptied == EMPTY_LTHASH


def test_a_change_in_place_equals_hashing_from_nothing() -> None:
    changed = apply_changes(lthash_of(STATE), [(b"a", b"1", b"9"), (b"new", None, b"n"), (b"ab", b"", None)])
    assert changed == lthash_of({b"a": b"9", b"b": b"2", b"": b"x", b"new": b"n"})


def test_the_state_digest_depends_on_every_key_and_value_and_on_the_chain() -> None:
    base = state_digest(lthash_of(STATE), CHAIN)
    for key in STATE:
        fewer = {other: value for other, value in STATE.items() if other != key}
        assert state_digest(lthash_of(fewer), CHAIN) != base
        assert state_digest(lthash_of(STATE | {key: b"other"}), CHAIN) != base
    assert state_digest(lthash_of(STATE), bytes([1]) * 32) != base


def test_moving_bytes_between_key_and_value_changes_the_hash() -> None:
    assert lthash_of({b"ab": b"c"}) != lthash_of({b"a": b"bc"})


def test_a_hash_of_the_wrong_size_is_refused() -> None:
    assert len(lthash_of(STATE)) == LTHASH_BYTES
    with pytest.raises(MalformedError):
        apply_changes(b"short", [])


def _leaves(count: int) -> list[bytes]:
    return [digest("blob", b"%d" % number) for number in range(count)]


def test_every_leaf_of_every_small_range_has_a_proof_that_no_other_leaf_fits() -> None:
    accumulator = Accumulator()
    for count in range(1, 20):
        leaves = _leaves(count)
        accumulator = append(accumulator, leaves[-1])
        root = accumulator_root(accumulator)
        for index, leaf in enumerate(leaves):
            proof = prove(leaves, index)
            assert proof.peaks == accumulator.peaks
            assert verify_proof(root, leaf, proof)
            assert not verify_proof(root, leaves[index - 1] if count > 1 else b"", proof)
            assert not verify_proof(root, leaf, AccumulatorProof(index + 1, count, proof.path, proof.peaks))
            assert not verify_proof(
                root, leaf, AccumulatorProof(index, count, (*proof.path, leaf), proof.peaks)
            )
            assert not verify_proof(root, leaf, AccumulatorProof(index, count + 1, proof.path, proof.peaks))


def test_roots_differ_for_every_count_and_the_accumulator_survives_its_bytes() -> None:
    accumulator, roots = Accumulator(), {accumulator_root(Accumulator())}
    for leaf in [b"same"] * 40:
        accumulator = append(accumulator, leaf)
        assert decode_accumulator(encode_accumulator(accumulator)) == accumulator
        assert len(accumulator.peaks) == accumulator.count.bit_count()
        roots.add(accumulator_root(accumulator))
    assert len(roots) == 41
    with pytest.raises(MalformedError):
        Accumulator(3, (bytes(32),))
    with pytest.raises(IndexError):
        prove(_leaves(3), 3)


def test_a_receipt_survives_its_bytes_and_has_a_proof_under_its_blocks_root() -> None:
    receipts = tuple(
        Receipt(
            digest("blob", b"%d" % number), 3, 0, "settled", 0, (Payout(Role.OWNER, bytes(32), number),), 5
        )
        for number in range(5)
    )
    root = receipts_root(receipts)
    for index, receipt in enumerate(receipts):
        assert decode_receipt(encode_receipt(receipt)) == receipt
        proof = receipt_proof(receipts, index)
        assert verify_merkle_proof(root, encode_receipt(receipt), index, 5, proof)
        assert not verify_merkle_proof(root, encode_receipt(receipts[index - 1]), index, 5, proof)
    assert receipts_root(()) != root
