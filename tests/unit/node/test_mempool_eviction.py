"""A full pool makes room for who pays more, from the ends of the lines that are worth least, and loses nothing silently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from consensus.crypto import public_key
from node import mempool
from node.config import MempoolSection
from node.errors import MempoolFull, MempoolSenderFull, TransactionUnderpriced
from node.ledger.bodies import DatanetCreate, Held, Transfer
from node.ledger.transaction import Transaction, transaction_hash
from node.mempool import Drop, Mempool, Pooled
from tests.profiles import examples

SEEDS = [bytes([letter]) * 32 for letter in b"abcdef"]
SENDERS = [public_key(seed) for seed in SEEDS]
SIZE = 250
LIMITS = replace(MempoolSection(), transactions_max=8, transactions_per_sender_max=4)


def add(
    pool: Mempool,
    sender: bytes,
    nonce: int,
    fee: int,
    *,
    size: int = SIZE,
    expected: int = 0,
    until: int = 10**6,
) -> Pooled:
    """Unsigned: the pool looks at no signature. `size` is what the bytes are taken to be."""
    body = Transfer(b"t" * 32, 1 + nonce)
    transaction = Transaction(1, b"c" * 32, sender, nonce, fee, until, Transfer.KIND, body, bytes(64))
    raw = transaction_hash(transaction).ljust(size, b"\0")
    return pool.add(raw, transaction_hash(transaction), transaction, duty=False, nonce_next=expected)


def add_duty(pool: Mempool, sender: bytes, number: int, size: int = SIZE) -> Pooled:
    body = Held(number.to_bytes(32, "big"), b"")
    transaction = Transaction(1, b"c" * 32, sender, 0, 0, 10**6, Held.KIND, body, bytes(64))
    raw = transaction_hash(transaction).ljust(size, b"\0")
    return pool.add(raw, transaction_hash(transaction), transaction, duty=True)


def full(fee: int = 1000) -> tuple[Mempool, list[Pooled]]:
    """Eight transactions of four senders, two each."""
    pool = Mempool(LIMITS)
    return pool, [add(pool, sender, nonce, fee) for sender in SENDERS[:4] for nonce in range(2)]


def test_who_pays_a_tenth_more_takes_the_place_of_the_cheapest_end() -> None:
    pool, rows = full()
    add(pool, SENDERS[0], 1, 1101)  # a replacement: this line is worth no more, its first is as cheap
    dearer = add(pool, SENDERS[4], 0, 1200)
    assert dearer.tx_hash in pool
    gone = [row for row in rows if row.tx_hash not in pool]
    assert len(pool) == 8
    assert len(gone) == 2
    assert pool.dropped(rows[1].tx_hash) == Drop.REPLACED
    (evicted,) = [row for row in gone if row is not rows[1]]
    assert pool.dropped(evicted.tx_hash) == Drop.EVICTED
    assert evicted.transaction.nonce == 1


def test_who_pays_no_tenth_more_is_refused_and_nothing_changes() -> None:
    pool, rows = full()
    with pytest.raises(MempoolFull):
        add(pool, SENDERS[4], 0, 1100)
    assert list(pool) == rows
    add(pool, SENDERS[4], 0, 1101)


def test_a_dear_end_does_not_shelter_a_cheap_line() -> None:
    """None of a line comes before what is ahead of it, so the whole is worth its cheapest."""
    pool = Mempool(LIMITS)
    for nonce, fee in enumerate((1, 1, 1, 10**9)):
        add(pool, SENDERS[0], nonce, fee)
    for nonce in range(4):
        add(pool, SENDERS[1], nonce, 1000)
    add(pool, SENDERS[2], 0, 500)
    assert [row.transaction.nonce for row in pool if row.transaction.sender == SENDERS[0]] == [0, 1, 2]


def test_promises_behind_a_gap_give_way_to_anything_that_can_be_ordered_and_push_out_nothing() -> None:
    pool = Mempool(LIMITS)
    for sender in SENDERS[:2]:
        for nonce in range(1, 5):
            add(pool, sender, nonce, 10**9)
    real = [add(pool, sender, 0, 10) for sender in SENDERS[2:6]]
    assert all(row.tx_hash in pool for row in real)
    assert len(pool) == 8
    with pytest.raises(MempoolFull):
        add(pool, SENDERS[2], 2, 10**9)


def test_a_gap_that_a_block_closed_counts_no_longer() -> None:
    pool = Mempool(LIMITS)
    for nonce in (1, 2, 3, 4):
        add(pool, SENDERS[0], nonce, 10**6)
    for nonce in range(4):
        add(pool, SENDERS[1], nonce, 1000)
    pool.settle(set(), lambda sender: 1 if sender == SENDERS[0] else 0, 5)
    add(pool, SENDERS[2], 0, 5000)
    assert sum(row.transaction.sender == SENDERS[0] for row in pool) == 4


def test_nobody_pushes_out_what_its_own_transaction_follows() -> None:
    pool = Mempool(replace(LIMITS, transactions_max=2))
    first, second = add(pool, SENDERS[0], 0, 1), add(pool, SENDERS[0], 1, 1)
    with pytest.raises(MempoolFull):
        add(pool, SENDERS[0], 2, 10**9)
    assert list(pool) == [first, second]


def test_one_long_transaction_does_not_cost_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "EVICTIONS_MAX", 3)
    pool = Mempool(replace(LIMITS, transactions_max=100, bytes_max=65_536))
    rows = [add(pool, number.to_bytes(32, "big"), 0, 1, size=1000) for number in range(1, 66)]
    with pytest.raises(MempoolFull, match="bytes"):
        add(pool, SENDERS[0], 0, 10**12, size=10_000)
    assert {row.tx_hash for row in pool} == {row.tx_hash for row in rows}
    assert pool.dropped(rows[0].tx_hash) is None
    add(pool, SENDERS[0], 0, 10**12, size=3000)


def test_duties_and_payers_take_no_room_from_one_another_and_duties_have_bounds_of_their_own() -> None:
    pool, rows = full()
    duties = [add_duty(pool, SENDERS[0], number) for number in range(4)]
    assert [row.tx_hash in pool for row in (*rows, *duties)] == [True] * 12
    with pytest.raises(MempoolSenderFull):
        add_duty(pool, SENDERS[0], 99)
    add_duty(pool, SENDERS[1], 99)
    big = Mempool(LIMITS)
    add_duty(big, SENDERS[0], 1, size=mempool.DUTY_BYTES_PER_SENDER_MAX)
    with pytest.raises(MempoolSenderFull):
        add_duty(big, SENDERS[0], 2)
    assert big.size_bytes == mempool.DUTY_BYTES_PER_SENDER_MAX


def test_what_was_dropped_and_comes_back_is_remembered_as_dropped_no_longer() -> None:
    pool, rows = full()
    add(pool, SENDERS[4], 0, 2000)
    (gone,) = [row for row in rows if row.tx_hash not in pool]
    pool.settle({rows[0].tx_hash}, lambda sender: 1 if sender == SENDERS[0] else 0, 5)
    again = gone.transaction
    add(pool, again.sender, again.nonce, again.fee, expected=1 if again.sender == SENDERS[0] else 0)
    assert pool.dropped(gone.tx_hash) is None


def test_the_memory_of_drops_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "DROPS_REMEMBERED_MAX", 3)
    pool = Mempool(replace(LIMITS, transactions_max=1))
    for step in range(10):
        add(pool, SENDERS[step % 6], 0, 10 ** (step + 1))
    assert len(pool._dropped) == 3


def test_a_body_of_another_kind_counts_by_its_own_length() -> None:
    """Fee per byte decides, not the fee."""
    pool = Mempool(replace(LIMITS, transactions_max=2))
    body = DatanetCreate("name", ("MIT",), "d" * 500)
    transaction = Transaction(1, b"c" * 32, SENDERS[0], 0, 2000, 10**6, DatanetCreate.KIND, body, bytes(64))
    long = pool.add(b"l" * 1000, transaction_hash(transaction), transaction, duty=False)
    short = add(pool, SENDERS[1], 0, 1000)
    add(pool, SENDERS[2], 0, 1000)
    assert long.tx_hash not in pool
    assert short.tx_hash in pool


class Pools(RuleBasedStateMachine):
    """A pool of any history keeps its limits, tells what became of each transaction, and keeps every line in order."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = replace(LIMITS, bytes_max=65_536)
        self.pool = Mempool(self.limits)
        self.nonces = dict.fromkeys(SENDERS, 0)
        self.height = 0
        self.alive: dict[bytes, Pooled] = {}

    @rule(
        sender=st.sampled_from(SENDERS),
        ahead=st.integers(0, 5),
        fee=st.integers(0, 5000),
        size=st.sampled_from([SIZE, 20_000]),
        lifetime=st.integers(1, 6),
    )
    def submit(self, sender: bytes, ahead: int, fee: int, size: int, lifetime: int) -> None:
        nonce, before = self.nonces[sender] + ahead, {row.tx_hash for row in self.pool}
        try:
            row = add(
                self.pool,
                sender,
                nonce,
                fee,
                size=size,
                expected=self.nonces[sender],
                until=self.height + lifetime,
            )
        except (MempoolFull, MempoolSenderFull, TransactionUnderpriced):
            assert {row.tx_hash for row in self.pool} == before
            return
        self.alive[row.tx_hash] = row
        self.explain({row.tx_hash}, set())

    @rule(sender=st.sampled_from(SENDERS), number=st.integers(0, 9))
    def duty(self, sender: bytes, number: int) -> None:
        try:
            row = add_duty(self.pool, sender, number)
        except MempoolSenderFull:
            return
        self.alive[row.tx_hash] = row

    @rule(count=st.integers(0, 4))
    def execute(self, count: int) -> None:
        chosen = self.pool.select(lambda sender: self.nonces[sender], lambda row: True, (), 1 << 20, count)
        expected = dict(self.nonces)
        for row in chosen:
            if not row.duty:
                assert row.transaction.nonce == expected[row.transaction.sender]
                expected[row.transaction.sender] += 1
        self.nonces, self.height = expected, self.height + 1
        executed = {row.tx_hash for row in chosen}
        gone = set(self.pool.settle(executed, lambda sender: self.nonces[sender], self.height))
        expired = {name for name, row in self.alive.items() if row.transaction.valid_until <= self.height}
        assert executed | expired <= gone
        self.explain(set(), executed | expired)

    def explain(self, came: set[bytes], known: set[bytes]) -> None:
        """Whatever is gone was executed, expired, or says why."""
        for tx_hash in [name for name in self.alive if name not in self.pool]:
            del self.alive[tx_hash]
            assert tx_hash in known or self.pool.dropped(tx_hash) is not None
        assert came <= self.alive.keys()

    @invariant()
    def limits_hold(self) -> None:
        paying = [row for row in self.pool if not row.duty]
        assert len(paying) <= self.limits.transactions_max
        assert sum(len(row.raw) for row in paying) <= self.limits.bytes_max
        assert self.pool.size_bytes == sum(len(row.raw) for row in self.pool)
        for sender in SENDERS:
            own = [row for row in paying if row.transaction.sender == sender]
            assert len(own) <= self.limits.transactions_per_sender_max
            assert len({row.transaction.nonce for row in own}) == len(own)
            assert self.pool.fees_of(sender) == sum(row.transaction.fee for row in own)

    @invariant()
    def all_that_was_taken_is_here_or_explained(self) -> None:
        assert {row.tx_hash for row in self.pool} == self.alive.keys()


def test_over_random_histories_the_pool_keeps_its_limits_and_explains_every_loss() -> None:
    machine: Any = Pools
    run_state_machine_as_test(machine, settings=settings(max_examples=examples(80), stateful_step_count=40))
