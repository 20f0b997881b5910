"""Batches and envelopes: what is skipped, who pays for it, and what may wait in a mempool."""

from dataclasses import replace

import pytest

from consensus.codec import decode, encode
from node.ledger import transitions
from node.ledger.admission import mempool_check
from node.ledger.batch import (
    BATCH_BYTES_MAX,
    BATCH_ITEMS_MAX,
    Batch,
    StorageReceipts,
    batch_digest,
    decode_batch,
    encode_batch,
    sign_batch,
    verify_batch,
)
from node.ledger.block import Receipt, ReceiptStatus
from node.ledger.bodies import AttestCommit, DatanetCreate, Held, Transfer
from node.ledger.entries import PARAMS_KEY
from node.ledger.errors import ExecutionError, InvalidTransactionError, MalformedError
from node.ledger.execute import block_steps
from node.ledger.overlay import Overlay
from node.ledger.params import OPEN
from node.ledger.state import get_account, get_batch_window, get_supply
from node.ledger.transaction import decode_transaction, encode_transaction, sign_transaction
from tests.unit.node_ledger.world import BALANCE, PARAMS, VALIDATORS, World, address, consensus_key, seed

PAY = Transfer(address("ben"), OPEN)


def test_a_transfer_moves_units_and_its_fee_goes_to_the_blocks_proposer() -> None:
    world = World()
    outcome = world.block(world.tx("ann", PAY), context=world.context("val2"))
    fee = outcome.receipts[0].fee
    assert outcome.receipts[0].status == ReceiptStatus.OK
    assert world.balance("ann") == BALANCE - OPEN - fee
    assert world.balance("ben") == BALANCE + OPEN
    assert world.balance("val2") == BALANCE + fee
    assert get_account(world.state, address("ann")).nonce == 1


def test_a_transfer_to_oneself_costs_the_fee_alone() -> None:
    world = World()
    receipt = world.submit("ann", Transfer(address("ann"), OPEN))
    assert world.balance("ann") == BALANCE - receipt.fee


def test_a_failed_transaction_keeps_nonce_and_fee_and_nothing_else() -> None:
    world = World()
    receipt = world.submit("ann", Transfer(address("ben"), BALANCE))
    assert (receipt.status, receipt.code) == (ReceiptStatus.FAILED, "insufficient-balance")
    assert get_account(world.state, address("ann")).nonce == 1
    assert world.balance("ann") == BALANCE - receipt.fee
    assert world.balance("ben") == BALANCE


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"nonce": 1}, "wrong-nonce"),
        ({"valid_until": 0}, "expired"),
        ({"valid_until": 10**6}, "expiry-too-far"),
        ({"fee": 0}, "fee-too-low"),
        ({"fee": BALANCE + 1}, "fee-unpayable"),
    ],
)
def test_an_invalid_transaction_costs_its_batchs_author_and_not_its_sender(
    overrides: dict[str, int], code: str
) -> None:
    world = World()
    tx = world.tx("ann", PAY, **overrides)
    outcome = world.block(tx, author="val3")
    receipt = outcome.receipts[0]
    assert (receipt.status, receipt.code) == (ReceiptStatus.INVALID, code)
    assert receipt.fee == len(tx) * world.params.fee_per_byte
    assert get_account(world.state, address("ann")) == get_account(World().state, address("ann"))
    assert world.balance("val3") == BALANCE - receipt.fee
    assert world.balance("treasury") == receipt.fee


def test_bad_signatures_other_chains_and_garbage_are_invalid() -> None:
    world = World()
    good = decode_transaction(world.tx("ann", PAY))
    forged = encode_transaction(replace(good, signature=bytes(64)))
    foreign = encode_transaction(
        sign_transaction(
            seed("ann"), chain_id=bytes(32), nonce=0, fee=good.fee, valid_until=good.valid_until, body=PAY
        )
    )
    outcome = world.block(forged, foreign, b"", b"garbage", bytes(60_000))
    assert [receipt.code for receipt in outcome.receipts] == [
        "bad-signature",
        "wrong-chain",
        "malformed",
        "malformed",
        "malformed",
    ]
    assert {receipt.status for receipt in outcome.receipts} == {ReceiptStatus.INVALID}


def test_a_transaction_executes_once() -> None:
    world = World()
    tx = world.tx("ann", PAY)
    outcome = world.block(tx, tx)
    assert [receipt.code for receipt in outcome.receipts] == ["", "wrong-nonce"]
    assert world.block(tx).receipts[0].code == "wrong-nonce"
    assert world.balance("ben") == BALANCE + OPEN


def test_an_author_pays_at_most_what_it_has() -> None:
    world = World()
    world.accept("val1", Transfer(address("ann"), world.balance("val1") - 1_000_000))
    left = world.balance("val1")
    outcome = world.block(*[bytes(60_000)] * 8, context=world.context("val0"), author="val1")
    assert sum(receipt.fee for receipt in outcome.receipts) == left
    assert world.balance("val1") == 0
    assert world.accounted() == get_supply(world.state).total


def test_batches_of_strangers_forgers_and_repeaters_are_skipped_free_of_charge() -> None:
    world = World()
    stranger = world.batch(b"junk", author="ann")
    forged = replace(world.batch(b"junk", author="val1"), signature=bytes(64))
    repeated = world.batch(b"junk", author="val2")
    foreign = sign_batch(seed("val0"), bytes(32), 99, ((b"junk", ()),))
    outcome = world.execute(world.context(), [stranger, forged, repeated, repeated, foreign])
    assert outcome.skipped == tuple(
        batch_digest(batch, world.chain) for batch in (stranger, forged, repeated, foreign)
    )
    assert len(outcome.receipts) == 1
    assert world.execute(world.context(), [repeated]).receipts == ()


def test_batch_sequences_may_arrive_out_of_order_but_only_within_the_window() -> None:
    world = World()

    def run(sequence: int) -> bool:
        batch = sign_batch(seed("val0"), world.chain, sequence, ((b"junk", ()),))
        return not world.execute(world.context(), [batch]).skipped

    assert [run(sequence) for sequence in (5, 3, 1_000_000, 4, 3)] == [True, True, True, True, False]
    for sequence in range(2_000_000, 2_000_000 + 256):
        assert run(sequence)
    assert get_batch_window(world.state, address("val0")).floor == 1_000_000
    assert not run(999_999)
    assert run(1_000_001)


def test_a_batch_survives_its_bytes_and_anything_else_is_refused() -> None:
    world = World()
    batch = world.batch((b"tx", ((address("val0"), bytes(64)),)), b"other")
    assert decode_batch(encode_batch(batch)) == batch
    assert verify_batch(batch, world.chain)
    assert not verify_batch(batch, bytes(32))
    assert not verify_batch(replace(batch, sequence=batch.sequence + 1), world.chain)
    fields = decode(encode_batch(batch), BATCH_BYTES_MAX)
    for position, value in (
        (0, b""),
        (1, 0),
        (2, []),
        (2, [[b"tx"]]),
        (2, [[b"tx", [[b"", b""]]]]),
        (3, b""),
    ):
        with pytest.raises(MalformedError):
            decode_batch(encode([*fields[:position], value, *fields[position + 1 :]]))
    with pytest.raises(MalformedError):
        decode_batch(bytes(BATCH_BYTES_MAX + 1))


def test_batches_over_a_limit_are_not_signed() -> None:
    with pytest.raises(MalformedError):
        sign_batch(seed("val0"), bytes(32), 1, ((b"", ()),) * (BATCH_ITEMS_MAX + 1))
    with pytest.raises(MalformedError):
        sign_batch(seed("val0"), bytes(32), 1, ((bytes(60_000), ()),) * 9)


def test_a_contribution_needs_storage_receipts_from_more_than_two_thirds_of_stake() -> None:
    world = World()
    datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
    tx = world.tx("ann", world.contribution(datanet, "text"))
    other = world.tx("ann", world.contribution(datanet, "other"))
    receipts = world.stored(tx)
    for poor in (
        (),
        receipts[:2],
        (*receipts[:2], receipts[0], receipts[1]),
        (*receipts[:2], *world.stored(tx, ("ann", "ben"))),
        (*receipts[:2], (address("val2"), bytes(64))),
        (*receipts[:2], (address("val2"), receipts[3][1])),
        world.stored(other),
    ):
        assert world.block((tx, poor)).receipts[0].code == "missing-storage-receipts"
    assert world.block((tx, receipts[1:])).receipts[0].code == ""


def test_duties_of_strangers_or_not_owed_are_invalid_and_carry_no_fee_or_nonce() -> None:
    world = World()
    for name, overrides, code in (
        ("ann", {}, "duty-not-owed"),
        ("val0", {}, "duty-not-owed"),
        ("val0", {"nonce": 1}, "wrong-nonce"),
        ("val0", {"fee": 1}, "wrong-nonce"),
    ):
        for body in (Held(bytes(32), b""), AttestCommit(bytes(32), 0, bytes(32))):
            receipt = world.submit(name, body, **overrides)
            assert (receipt.status, receipt.code) == (ReceiptStatus.INVALID, code)
    assert get_account(world.state, address("val0")).nonce == 0


def test_a_mempool_takes_nonces_ahead_of_the_account_but_not_far_ahead_or_behind() -> None:
    world = World()
    world.accept("ann", PAY)

    def admitted(name: str, body: Transfer | Held = PAY, **overrides: int) -> str:
        transaction = decode_transaction(world.tx(name, body, **overrides))
        try:
            mempool_check(world.state, transaction, world.height, chain_id=world.chain)
        except InvalidTransactionError as error:
            return error.code
        return ""

    assert admitted("ann") == admitted("ann", nonce=1 + world.params.nonce_gap_max) == ""
    assert admitted("ann", nonce=0) == admitted("ann", nonce=2 + world.params.nonce_gap_max) == "wrong-nonce"
    assert admitted("ann", fee=1) == "fee-too-low"
    assert admitted("ann", fee=2 * BALANCE) == "fee-unpayable"
    assert admitted("ann", valid_until=world.height) == "expired"
    assert admitted("ann", valid_until=world.height + 1) == ""
    assert admitted("val0", Held(bytes(32), b"")) == ""
    assert admitted("ann", Held(bytes(32), b"")) == "duty-not-owed"
    forged = replace(decode_transaction(world.tx("ann", PAY)), signature=bytes(64))
    with pytest.raises(InvalidTransactionError, match="bad-signature"):
        mempool_check(world.state, forged, world.height, chain_id=world.chain)
    with pytest.raises(InvalidTransactionError, match="wrong-chain"):
        mempool_check(world.state, forged, world.height, chain_id=bytes(32))


def test_a_context_that_does_not_follow_the_state_is_an_error() -> None:
    world = World()
    world.block()
    good = world.context()
    for bad in (
        replace(good, height=good.height + 1),
        replace(good, height=good.height - 1),
        replace(good, timestamp_ms=world.now_ms - 1),
        replace(good, executed_height=good.height),
        replace(good, proposer=address("ann")),
        replace(good, beacon_reveal=b"short"),
    ):
        with pytest.raises(ExecutionError):
            world.execute(bad, [])
    assert consensus_key(VALIDATORS[0]) != address(VALIDATORS[0])
    assert world.execute(good, []).height == 2


def test_an_outcome_lists_only_real_changes_in_the_order_of_keys() -> None:
    world = World()
    before = dict(world.state)
    outcome = world.block(world.tx("ann", PAY))
    assert list(outcome.changes) == sorted(outcome.changes)
    assert all(before.get(key) != value for key, value in outcome.changes.items())


def test_no_block_changes_the_parameters_that_audits_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validators audit one call at different heights; with another floor for each, none of them would be a quorum."""

    def amend(overlay: Overlay, *_: object) -> list[Receipt]:
        overlay.put_record(PARAMS_KEY, replace(PARAMS, attribution_floor_ppm=1))
        return []

    world = World()
    monkeypatch.setitem(transitions.TRANSITIONS, DatanetCreate.KIND, amend)
    with pytest.raises(ExecutionError, match="genesis alone"):
        world.submit("ann", DatanetCreate("docs", ("MIT",), ""))


def test_a_block_pauses_by_its_signatures_those_of_storage_receipts_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each may need the curve, so receipts weigh as much as transactions; and many short batches as one long one."""
    world = World()
    monkeypatch.setattr("node.ledger.execute.STEP_SIGNATURES", 8)
    receipt = (address("val0"), bytes(64))
    plain: list[tuple[bytes, StorageReceipts]] = [(b"no transaction", ())] * 8
    stored: list[tuple[bytes, StorageReceipts]] = [(b"no transaction", (receipt,) * 3)] * 8

    def pauses(*batches: Batch) -> int:
        steps = block_steps(world.state, world.lthash, world.accumulator, world.context(), batches)
        return sum(1 for _ in steps)

    assert pauses() == 1
    assert pauses(world.batch(*plain)) == 2
    assert pauses(world.batch(*plain[:4]), world.batch(*plain[4:])) == 2
    assert pauses(world.batch(*stored)) == 5
