"""Transactions read once: what is remembered is what reading anew would give, and nothing hostile is remembered."""

from __future__ import annotations

import pytest

from consensus.codec import encode
from node.ledger import fields, reading
from node.ledger.block import ReceiptStatus, encode_receipt
from node.ledger.bodies import BaseRegister, Body, DatanetCreate, Transfer
from node.ledger.entries import ACCOUNT, Account
from node.ledger.errors import MalformedError
from node.ledger.execute import execute_block
from node.ledger.overlay import Overlay
from node.ledger.reading import TransactionReader, read_transaction
from node.ledger.state import get_account
from node.ledger.transaction import (
    decode_transaction,
    encode_transaction,
    hash_transaction_bytes,
    sign_transaction,
    signing_digest,
)
from tests.unit.node_ledger.world import World, address, seed

CHAIN = bytes(range(32))
OTHER = bytes(32)
BODIES: tuple[Body, ...] = (
    Transfer(bytes(32), 1),
    DatanetCreate("words", ("CC0-1.0", "MIT"), "a text " * 100),
    BaseRegister(bytes(32), "base"),
)


def signed(body: Body, chain: bytes = CHAIN, nonce: int = 2**40) -> bytes:
    return encode_transaction(
        sign_transaction(seed("ann"), chain_id=chain, nonce=nonce, fee=7, valid_until=9, body=body)
    )


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("chain", [CHAIN, OTHER])
def test_what_is_read_once_is_what_each_part_would_say_alone(body: Body, chain: bytes) -> None:
    raw = signed(body, chain)
    read = read_transaction(raw, CHAIN)
    transaction = decode_transaction(raw)
    assert read.transaction == transaction
    assert read.tx_hash == hash_transaction_bytes(raw, CHAIN)
    assert read.signed == (transaction.sender, signing_digest(transaction), transaction.signature)


def test_a_transaction_is_read_once_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "REMEMBERED_MAX", 3)
    reads: list[bytes] = []

    def noted(data: bytes, chain_id: bytes) -> reading.ReadTransaction:
        reads.append(data)
        return read_transaction(data, chain_id)

    monkeypatch.setattr(reading, "read_transaction", noted)
    reader = TransactionReader(CHAIN)
    rows = [signed(Transfer(bytes(32), 1), nonce=nonce) for nonce in range(9)]
    for raw in rows:
        assert reader(raw) is reader(raw)
        assert len(reader) <= 6
    assert reads == rows
    # What came last is never forgotten at once with what came before.
    for raw in rows[6:]:
        assert reader.hash(raw) == reader(raw).tx_hash
    assert reads == rows


def test_a_long_transaction_is_not_remembered() -> None:
    reader = TransactionReader(CHAIN)
    long = signed(
        DatanetCreate("words", tuple(f"LicenseRef-{at:02}{'x' * 50}" for at in range(16)), "x" * 500)
    )
    assert len(long) > reading.REMEMBERED_BYTES_MAX
    reader(long)
    assert len(reader) == 0


def test_what_is_malformed_is_refused_each_time_and_not_remembered() -> None:
    reader = TransactionReader(CHAIN)
    raw = signed(Transfer(bytes(32), 1))
    for bad in (raw[:-1], raw + b"\0", b"", b"\x99" + raw[1:-66] + b"\xc4\x3f" + raw[-63:], encode([1] * 9)):
        for _ in range(2):
            with pytest.raises(MalformedError):
                reader(bad)
        assert reader.hash(bad) == hash_transaction_bytes(bad, CHAIN)
    assert len(reader) == 0


def test_a_block_executes_alike_with_and_without_a_memory() -> None:
    world = World()
    raws = [world.tx("ann", Transfer(address("ben"), 5), nonce=nonce) for nonce in range(3)]
    raws += [raws[0], b"garbage", world.tx("ben", Transfer(address("ann"), 2))]
    reader = TransactionReader(world.chain)
    for raw in raws[:2]:
        reader(raw)
    batch, context = world.batch(*raws), world.context()
    plain, remembering = (
        execute_block(world.state, world.lthash, world.accumulator, context, [batch], read=read)
        for read in (None, reader)
    )
    assert plain == remembering
    assert plain.receipts_encoded == tuple(encode_receipt(receipt) for receipt in plain.receipts)
    statuses = [receipt.status for receipt in plain.receipts if receipt.status != ReceiptStatus.SYSTEM]
    assert statuses == [0, 0, 0, 2, 2, 0]


# --- the overlay, and short values ---


def test_accounts_of_an_overlay_are_seen_at_once_and_encoded_once() -> None:
    base = {ACCOUNT + b"a" * 32: encode([5, 1])}
    block = Overlay(base)
    assert get_account(block, b"a" * 32) == Account(5, 1)
    block.put_record(ACCOUNT + b"a" * 32, Account(4, 2))
    attempt = Overlay(block)
    assert get_account(attempt, b"a" * 32) == Account(4, 2)
    attempt.put_record(ACCOUNT + b"a" * 32, Account(3, 2))
    attempt.put_record(ACCOUNT + b"b" * 32, Account(1, 0))
    assert get_account(block, b"a" * 32) == Account(4, 2)
    assert block.get(ACCOUNT + b"a" * 32) == encode([4, 2])
    block.merge(attempt)
    assert get_account(block, b"a" * 32) == Account(3, 2)
    assert block.changes == {ACCOUNT + b"a" * 32: encode([3, 2]), ACCOUNT + b"b" * 32: encode([1, 0])}


def test_the_last_of_put_record_and_delete_counts_before_and_after_a_merge() -> None:
    key = ACCOUNT + b"a" * 32
    for last in ("put", "record", "delete"):
        block = Overlay({})
        block.put_record(key, Account(9, 9))
        attempt = Overlay(block)
        if last == "put":
            attempt.put_record(key, Account(1, 1))
            attempt.put(key, encode([2, 2]))
        elif last == "record":
            attempt.put(key, encode([1, 1]))
            attempt.put_record(key, Account(2, 2))
        else:
            attempt.put_record(key, Account(1, 1))
            attempt.delete(key)
        block.merge(attempt)
        expected = None if last == "delete" else encode([2, 2])
        assert block.get(key) == expected
        assert get_account(block, b"a" * 32) == (Account() if last == "delete" else Account(2, 2))
        assert block.changes == {key: expected}


def test_short_values_are_remembered_by_class_and_bytes_and_their_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fields, "SHORT_REMEMBERED_MAX", 4)
    monkeypatch.setattr(fields, "_short", {})
    for balance in range(9):
        data = encode([balance, 1])
        assert fields.from_bytes(Account, data, 1000) is fields.from_bytes(Account, data, 1000)
        assert len(fields._short) <= 4
    data = encode([8, 1])
    with pytest.raises(MalformedError):
        fields.from_bytes(Account, data, len(data) - 1)
    for bad in (encode([-1, 0]), encode([True, 0]), encode([1]), b"\x92\x01\xcc\x02"):
        for _ in range(2):
            with pytest.raises(MalformedError):
                fields.from_bytes(Account, bad, 1000)
