from dataclasses import replace

import pytest

from consensus.crypto import public_key
from node.config import MempoolSection
from node.errors import MempoolFull, MempoolSenderFull, TransactionUnderpriced
from node.ledger.bodies import Held, Transfer
from node.ledger.transaction import encode_transaction, sign_transaction, transaction_hash
from node.mempool import Mempool, Pooled

CHAIN = b"c" * 32
ALICE, BOB = b"a" * 32, b"b" * 32


def add(pool: Mempool, seed: bytes, nonce: int, fee: int = 1000, valid_until: int = 100) -> Pooled:
    transaction = sign_transaction(
        seed,
        chain_id=CHAIN,
        nonce=nonce,
        fee=fee,
        valid_until=valid_until,
        body=Transfer(b"t" * 32, 1),
    )
    raw = encode_transaction(transaction)
    return pool.add(raw, transaction_hash(transaction), transaction, duty=False)


def add_duty(pool: Mempool, seed: bytes, artefact: bytes) -> Pooled:
    transaction = sign_transaction(
        seed, chain_id=CHAIN, nonce=0, fee=0, valid_until=100, body=Held(artefact, b"")
    )
    raw = encode_transaction(transaction)
    return pool.add(raw, transaction_hash(transaction), transaction, duty=True)


def select(
    pool: Mempool,
    nonces: dict[bytes, int] | None = None,
    includable: object = None,
    proposed: frozenset[bytes] = frozenset(),
    bytes_max: int = 1 << 20,
    count_max: int = 100,
) -> list[Pooled]:
    known = nonces or {}
    waiting = includable if isinstance(includable, set) else set()
    return pool.select(
        lambda sender: known.get(sender, 0),
        lambda pooled: pooled.tx_hash not in waiting,
        proposed,
        bytes_max,
        count_max,
    )


def test_a_senders_transactions_come_in_nonce_order_without_gaps() -> None:
    pool = Mempool()
    second, first, _after_gap = add(pool, ALICE, 1, 9000), add(pool, ALICE, 0, 10), add(pool, ALICE, 3, 9000)
    assert select(pool) == [first, second]


def test_the_better_paid_sender_goes_first() -> None:
    pool = Mempool()
    cheap, dear = add(pool, ALICE, 0, 10), add(pool, BOB, 0, 20)
    assert select(pool) == [dear, cheap]


def test_duties_go_before_everything_that_pays_and_have_no_order_among_them() -> None:
    pool = Mempool()
    paid = add(pool, BOB, 0, 10**9)
    duties = [add_duty(pool, ALICE, bytes([i]) * 32) for i in range(3)]
    assert select(pool) == [*duties, paid]


def test_what_lacks_receipts_holds_up_its_own_line_only() -> None:
    pool = Mempool()
    waits, _behind, other = add(pool, ALICE, 0), add(pool, ALICE, 1), add(pool, BOB, 0)
    assert select(pool, includable={waits.tx_hash}) == [other]


def test_what_is_already_proposed_counts_as_consumed_and_is_not_chosen_again() -> None:
    pool = Mempool()
    first, second = add(pool, ALICE, 0), add(pool, ALICE, 1)
    assert select(pool, proposed=frozenset({first.tx_hash})) == [second]


def test_a_selection_keeps_its_limits() -> None:
    pool = Mempool()
    rows = [add(pool, ALICE, nonce) for nonce in range(5)]
    assert select(pool, count_max=2) == rows[:2]
    assert select(pool, bytes_max=len(rows[0].raw) * 3) == rows[:3]


def test_a_replacement_has_to_pay_a_tenth_more() -> None:
    pool = Mempool()
    add(pool, ALICE, 0, 1000)
    with pytest.raises(TransactionUnderpriced) as refused:
        add(pool, ALICE, 0, 1100)
    assert refused.value.fee_min == 1101
    better = add(pool, ALICE, 0, 1101)
    assert select(pool) == [better]
    assert len(pool) == 1


def test_the_same_transaction_twice_is_one() -> None:
    pool = Mempool()
    assert add(pool, ALICE, 0) is add(pool, ALICE, 0)
    assert len(pool) == 1


def test_every_limit_refuses_with_its_own_error_and_changes_nothing() -> None:
    limits = MempoolSection()
    pool = Mempool(replace(limits, transactions_per_sender_max=2))
    add(pool, ALICE, 0)
    add(pool, ALICE, 1)
    with pytest.raises(MempoolSenderFull):
        add(pool, ALICE, 2)
    full = Mempool(replace(limits, transactions_max=1))
    kept = add(full, ALICE, 0)
    with pytest.raises(MempoolFull):
        add(full, BOB, 0)
    assert list(full) == [kept]
    small = Mempool(replace(limits, bytes_max=65536))
    room = 65536 // len(kept.raw)
    for seed in range(room):
        add(small, seed.to_bytes(32, "big"), 0)
    with pytest.raises(MempoolFull, match="bytes"):
        add(small, room.to_bytes(32, "big"), 0)


def test_a_full_pool_still_takes_duties_and_replacements_and_a_refused_replacement_loses_nothing() -> None:
    pool = Mempool(replace(MempoolSection(), transactions_max=1, bytes_max=65536))
    waiting = add(pool, ALICE, 0, 1000)
    with pytest.raises(TransactionUnderpriced):
        add(pool, ALICE, 0, 1001)
    assert list(pool) == [waiting]
    better, duty = add(pool, ALICE, 0, 2000), add_duty(pool, BOB, b"x" * 32)
    assert list(pool) == [better, duty]


def test_execution_drops_the_executed_the_overtaken_and_the_expired() -> None:
    pool = Mempool()
    done, overtaken, expired = add(pool, ALICE, 0), add(pool, BOB, 0), add(pool, ALICE, 1, valid_until=7)
    kept, duty = add(pool, BOB, 1), add_duty(pool, ALICE, b"x" * 32)
    gone = pool.settle({done.tx_hash}, lambda sender: 1, 7)
    assert set(gone) == {done.tx_hash, overtaken.tx_hash, expired.tx_hash}
    assert list(pool) == [kept, duty]


def test_the_next_nonce_counts_what_waits() -> None:
    pool = Mempool()
    for nonce in (3, 4, 6):
        add(pool, ALICE, nonce)
    assert pool.next_nonce(public_key(ALICE), 3) == 5
    assert pool.next_nonce(public_key(BOB), 2) == 2


def test_has_ready_agrees_with_select() -> None:
    pool = Mempool()
    assert not pool.has_ready(lambda _: 0, lambda _: True, frozenset())
    add(pool, ALICE, 1)
    assert not pool.has_ready(lambda _: 0, lambda _: True, frozenset())
    assert pool.has_ready(lambda _: 1, lambda _: True, frozenset())
    assert not pool.has_ready(lambda _: 1, lambda _: False, frozenset())
