"""The light client: from the genesis set through hand-overs to a receipt; any step that is not proven fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.merkle import merkle_proof, merkle_root
from consensus import crypto
from consensus.digest import digest
from consensus.types import CommitCertificate, Handover, Header, header_id
from consensus.validators import Validator, ValidatorSet, make_validator_set
from consensus.verify import commit_vote_message
from node.ledger.accumulator import Accumulator, accumulator_root, append, prove
from node.ledger.block import Receipt, ReceiptStatus, encode_receipt
from node.light import (
    LightProof,
    LightProofInvalid,
    ReceiptStep,
    light_proof_from_bytes,
    verify_light_proof,
)
from node.signer.epoch import EpochRoot, root_after
from tests.profiles import examples
from tests.unit.consensus.lab import BEACONS, CHAIN, GENESIS, KEYS, SEEDS, VALIDATORS, Chain, cc_of
from tests.unit.node_signer.desk import ROOT

NEWCOMER = digest("test-key", b"newcomer")
RECEIPTS = [Receipt(bytes([n]) * 32, ReceiptStatus.OK, 1, "", 1000 + n) for n in range(5)]
ENCODED = [encode_receipt(receipt) for receipt in RECEIPTS]
ROOTS = [merkle_root([bytes([n])]) for n in range(3)] + [merkle_root(ENCODED)] + [merkle_root([b"later"])]


def set_of(epoch: int, seeds: list[bytes]) -> ValidatorSet:
    rows = [Validator(crypto.public_key(seed), 1, BEACONS[0].anchor) for seed in seeds]
    return make_validator_set(epoch, rows)


def certify(header: Header, validators: ValidatorSet, seeds: list[bytes]) -> CommitCertificate:
    """Commit votes of all these keys."""
    name = header_id(header)
    message = commit_vote_message(CHAIN, header.epoch, header.round, name, header.height)
    rows = sorted(
        (index, crypto.sign(seed, message))
        for seed in seeds
        if (index := validators.index_of(crypto.public_key(seed))) is not None
    )
    return CommitCertificate(header.epoch, header.round, name, header.height, tuple(rows))


def after(root: EpochRoot, next_: ValidatorSet, seeds: list[bytes]) -> tuple[Handover, EpochRoot]:
    """An epoch of one block, which ends it."""
    boundary = child(root, next_validators_hash=next_.hash)
    handover = Handover((boundary,), certify(boundary, root.validators, seeds))
    return handover, root_after(boundary, next_)


def child(root: EpochRoot, **changes: object) -> Header:
    start = root.start.header
    header = replace(
        start,
        round=1,
        height=start.height + 1,
        parent=root.start.id,
        proposer=root.validators.validators[0].id,
        timestamp_ms=start.timestamp_ms + 1,
        next_validators_hash=b"",
    )
    return replace(header, **changes)  # type: ignore[arg-type]


SEEDS_ONE = [*SEEDS[1:], NEWCOMER]
SET_ONE, SET_TWO = set_of(1, SEEDS_ONE), set_of(2, SEEDS_ONE[1:])
FIRST, ROOT_ONE = after(ROOT, SET_ONE, SEEDS)
SECOND, ROOT_TWO = after(ROOT_ONE, SET_TWO, SEEDS_ONE)


def accumulated(count: int) -> bytes:
    accumulator = Accumulator()
    for root in ROOTS[:count]:
        accumulator = append(accumulator, root)
    return accumulator_root(accumulator)


TIP = child(ROOT_TWO, executed_height=5, receipts_accumulator=accumulated(5))
STEP = ReceiptStep(ENCODED[2], 2, 5, tuple(merkle_proof(ENCODED, 2)), ROOTS[3], prove(ROOTS, 3))
PROOF = LightProof(((FIRST, SET_ONE), (SECOND, SET_TWO)), TIP, certify(TIP, SET_TWO, SEEDS_ONE[1:]), STEP)


def test_a_receipt_two_epochs_on_is_proven_to_who_knows_the_genesis_set_alone() -> None:
    shown = verify_light_proof(ROOT, light_proof_from_bytes(PROOF.to_bytes()))
    assert shown.validators == SET_TWO
    assert shown.header == TIP
    assert (shown.receipt_height, shown.receipt) == (4, RECEIPTS[2])


def test_a_block_of_the_first_epoch_needs_no_hand_over() -> None:
    block = Chain().block(GENESIS, 1)
    shown = verify_light_proof(ROOT, LightProof((), block.header, cc_of(block), None))
    assert (shown.block_id, shown.receipt) == (block.id, None)


Forge = Callable[[], LightProof]
OTHERS = [digest("test-key", b"forger" + bytes([n])) for n in range(4)]
FORGERS = set_of(1, OTHERS)


def forged_epoch() -> LightProof:
    """A chain of the forger's own from the end of the first epoch on, under a set of his."""
    boundary = child(ROOT, next_validators_hash=FORGERS.hash)
    handover = Handover((boundary,), certify(boundary, VALIDATORS, SEEDS[:2]))
    root = root_after(boundary, FORGERS)
    tip = child(root)
    return LightProof(((handover, FORGERS),), tip, certify(tip, FORGERS, OTHERS), None)


def other_header(**changes: object) -> LightProof:
    return replace(PROOF, header=replace(TIP, **changes))  # type: ignore[arg-type]


def other_step(**changes: object) -> LightProof:
    return replace(PROOF, receipt=replace(STEP, **changes))  # type: ignore[arg-type]


FORGERIES: dict[str, Forge] = {
    "two of four hand over": forged_epoch,
    "another set than the one named": lambda: replace(
        PROOF, epochs=((FIRST, set_of(1, SEEDS)), (SECOND, SET_TWO))
    ),
    "an epoch is left out": lambda: replace(PROOF, epochs=((FIRST, SET_ONE),)),
    "an epoch comes twice": lambda: replace(PROOF, epochs=((FIRST, SET_ONE), (FIRST, SET_ONE))),
    "epochs in the wrong order": lambda: replace(PROOF, epochs=PROOF.epochs[::-1]),
    "the first set's votes for a later block": lambda: replace(PROOF, proof=certify(TIP, VALIDATORS, SEEDS)),
    "two of four finalise": lambda: replace(PROOF, proof=certify(TIP, SET_TWO, SEEDS_ONE[1:3])),
    "another block": lambda: other_header(timestamp_ms=TIP.timestamp_ms + 1),
    "another accumulator": lambda: other_header(receipts_accumulator=accumulated(4)),
    "another receipt": lambda: other_step(receipt=ENCODED[1]),
    "another place": lambda: other_step(index=1),
    "another path": lambda: other_step(path=()),
    "another block's receipts": lambda: other_step(receipts_root=ROOTS[2]),
    "another height": lambda: other_step(inclusion=prove(ROOTS, 2)),
    "a shorter accumulator": lambda: other_step(inclusion=prove(ROOTS[:4], 3)),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_whatever_is_not_proven_fails(forge: Forge) -> None:
    with pytest.raises(LightProofInvalid):
        verify_light_proof(ROOT, light_proof_from_bytes(forge().to_bytes()))


def test_another_genesis_proves_nothing() -> None:
    other = EpochRoot(set_of(0, OTHERS), replace(GENESIS, header=replace(GENESIS.header, chain_id=KEYS[0])))
    with pytest.raises(LightProofInvalid, match="the end of epoch 0"):
        verify_light_proof(other, PROOF)


@settings(max_examples=examples(150))
@given(at=st.integers(0, len(PROOF.to_bytes()) - 1), flip=st.integers(1, 255), cut=st.booleans())
def test_a_file_with_a_flipped_byte_or_a_lost_end_proves_nothing(at: int, flip: int, cut: bool) -> None:
    data = bytearray(PROOF.to_bytes())
    if cut:
        del data[at:]
    else:
        data[at] ^= flip
    with pytest.raises(LightProofInvalid):
        verify_light_proof(ROOT, light_proof_from_bytes(bytes(data)))
