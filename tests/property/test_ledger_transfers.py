"""Blocks of transfers executed at once come out as executed step by step; what is remembered of the state is what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import encode
from consensus.crypto import verify
from node.ledger import entries, execute, overlay, state
from node.ledger.block import BlockOutcome, ReceiptStatus, encode_receipt
from node.ledger.bodies import DatanetCreate, Transfer
from node.ledger.entries import ACCOUNT, Account, BatchWindow
from node.ledger.errors import MalformedError
from node.ledger.execute import execute_block
from node.ledger.fields import U63_MAX, from_bytes, to_bytes
from node.ledger.overlay import Overlay, decode_account, encode_account
from node.ledger.params import Params
from node.ledger.reading import ReadTransaction, TransactionReader
from node.ledger.results import TREASURY
from node.ledger.transaction import encode_transaction, fee_required, sign_transaction
from node.ledger.transfers import AtOnce, transfers_at_once
from tests.profiles import examples
from tests.unit.node_ledger.test_ledger_transactions import SAMPLES
from tests.unit.node_ledger.world import World, address, seed

NAMES = ("ann", "ben", "poor", "val0", "val1", "new")
BALANCES = {"ann": 10**12, "ben": 2_000_000, "poor": 450_000, "val0": 10**9, "val1": 3_000_000}
"""`val0` is the author of every batch, `val1` the proposer; `new` has no account."""

WORLDS = [
    World(),
    World(params=Params(fee_transfer=0, fee_per_byte=0, valid_until_heights_max=7)),
]
for _world in WORLDS:
    for _name, _balance in BALANCES.items():
        _world.state[ACCOUNT + address(_name)] = encode([_balance, 0])


@dataclass(frozen=True)
class Wish:
    """A transfer by what may be wrong with it; mostly nothing is."""

    sender: int
    to: int
    amount: int  # of AMOUNTS
    fee: int = 0  # of FEES
    nonce: int = 0  # ahead of the right one
    life: int = 0  # of LIVES
    spoilt: str = ""


AMOUNTS, FEES, LIVES = 5, 6, 5
USUALLY_0 = (0,) * 12
WISHES = st.builds(
    Wish,
    st.integers(0, len(NAMES) - 1),
    st.integers(0, len(NAMES)),
    st.integers(0, AMOUNTS - 1),
    st.sampled_from((*USUALLY_0, *range(1, FEES))),
    st.sampled_from((*USUALLY_0, -1, 1)),
    st.sampled_from((*USUALLY_0, *range(1, LIVES))),
    st.sampled_from(("",) * 12 + ("signature", "chain", "bytes", "kind", "twice")),
)


def transactions(world: World, wishes: Sequence[Wish]) -> list[bytes]:
    """What is wished for; a nonce follows each transaction that is not invalid for a reason that is plain from here."""
    nonces = dict.fromkeys(NAMES, 0)
    raws: list[bytes] = []
    for wish in wishes:
        sender = NAMES[wish.sender]
        to = TREASURY if wish.to == len(NAMES) else address(NAMES[wish.to])
        balance = BALANCES.get(sender, 0)
        size_bytes = 180 if wish.amount == 0 else 182  # of those amounts for which it matters
        least = fee_required(world.params, 1, size_bytes)
        fee = max(0, (least, 500_000, least - 1, 0, balance, balance + 1)[wish.fee])
        amount = (1, 1_000, balance - fee, balance - fee + 1, U63_MAX)[wish.amount]
        last = world.params.valid_until_heights_max
        life = (5, 0, -1, last, last + 1)[wish.life]
        nonce = max(0, nonces[sender] + wish.nonce)
        body: Any = Transfer(to, max(1, amount))
        if wish.spoilt == "kind":
            body = DatanetCreate("words", ("MIT",), "")
        raw = encode_transaction(
            sign_transaction(
                seed(sender),
                chain_id=bytes(32) if wish.spoilt == "chain" else world.chain,
                nonce=nonce,
                fee=fee,
                valid_until=world.height + 1 + life,
                body=body,
            )
        )
        if wish.spoilt == "signature":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        elif wish.spoilt == "bytes":
            raw = raw[:70] + b"\xc3" + raw[71:]
        invalid = wish.spoilt in ("signature", "chain", "bytes") or wish.life in (2, 4) or wish.fee > 1
        nonces[sender] += not (wish.nonce or invalid)
        raws += [raw, raw] if wish.spoilt == "twice" else [raw]
    return raws


def executed(world: World, raws: Sequence[bytes], at_once: bool, **options: Any) -> BlockOutcome:
    batches = [world.batch(*raws[: len(raws) // 2 + 1]), *([world.batch(*raws)] if len(raws) % 2 else [])]
    context = world.context(proposer="val1")
    with pytest.MonkeyPatch.context() as patch:
        if not at_once:
            patch.setattr(execute, "transfers_at_once", lambda overlay, env: lambda known, size_bytes: None)
        return execute_block(world.state, world.lthash, world.accumulator, context, batches, **options)


def test_the_least_fee_is_the_least_that_is_taken() -> None:
    for amount in (0, 1):
        raws = transactions(WORLDS[0], [Wish(0, 1, amount), Wish(0, 1, amount, fee=2, nonce=0)])
        receipts = executed(WORLDS[0], raws, at_once=True).receipts
        assert [receipt.code for receipt in receipts] == ["", "fee-too-low"]


@settings(max_examples=examples(60))
@given(st.sampled_from(range(len(WORLDS))), st.lists(WISHES, min_size=1, max_size=7))
def test_transfers_at_once_come_out_as_step_by_step(which: int, wishes: list[Wish]) -> None:
    world = WORLDS[which]
    raws = transactions(world, wishes)
    sequence = world.sequence
    plain = executed(world, raws, at_once=False)
    world.sequence = sequence
    assert executed(world, raws, at_once=True, read=TransactionReader(world.chain)) == plain
    assert plain.receipts_encoded == tuple(to_bytes(receipt) for receipt in plain.receipts)


@pytest.mark.parametrize("which", range(len(WORLDS)))
def test_each_thing_that_may_be_wrong_with_a_transfer_alone_and_between_good_ones(which: int) -> None:
    world = WORLDS[which]
    odd = [Wish(0, 1, 1)]
    odd += [Wish(sender, to, amount) for sender in range(6) for to in range(7) for amount in (1, 2, 3)]
    odd += [
        Wish(sender, 1, amount, fee=fee) for sender in (0, 2, 4) for amount in (0, 2) for fee in range(FEES)
    ]
    odd += [Wish(0, 1, 1, nonce=ahead) for ahead in (-1, 1)] + [Wish(0, 1, 1, life=at) for at in range(LIVES)]
    odd += [Wish(0, 1, 1, spoilt=how) for how in ("signature", "chain", "bytes", "kind", "twice")]
    for at in range(0, len(odd), 6):
        raws = transactions(world, [Wish(0, 4, 1), *odd[at : at + 6], Wish(1, 0, 0)])
        sequence = world.sequence
        plain = executed(world, raws, at_once=False)
        world.sequence = sequence
        assert executed(world, raws, at_once=True) == plain
        assert encode_receipt(plain.receipts[0]) == to_bytes(plain.receipts[0])


def taken(world: World, raw: bytes, block: Overlay, checks: list[bytes]) -> object:
    """What the short way says of one transaction."""

    def check(*signed: bytes) -> bool:
        checks.append(signed[0])
        return verify(*signed)

    env = execute._environment(Overlay(world.state), world.accumulator, world.context(), check)
    at_once: AtOnce = transfers_at_once(block, env)
    known: ReadTransaction = TransactionReader(world.chain)(raw)
    return at_once(known, len(raw))


def test_a_good_transfer_takes_the_short_way_and_nothing_else_changes_anything_on_it() -> None:
    world = World()
    block, checks = Overlay(world.state), list[bytes]()
    good = world.tx("ann", Transfer(address("ben"), 5))
    receipt: Any = taken(world, good, block, checks)
    assert receipt.status == ReceiptStatus.OK
    assert checks == [address("ann")]
    block, checks = Overlay(world.state), []
    others = [world.tx("val0" if body.KIND in (32, 50, 51) else "ann", body) for body in SAMPLES]
    others = [raw for raw in others if TransactionReader(world.chain)(raw).transaction.kind != 1]
    others += [
        world.tx("ann", Transfer(address("ben"), 5), nonce=1),
        world.tx("ann", Transfer(address("ben"), 5), fee=1),
        world.tx("ann", Transfer(address("ben"), 5), valid_until=0),
        world.tx("ann", Transfer(address("ben"), 10**18)),
        World(params=Params(fee_transfer=1)).tx("ann", Transfer(address("ben"), 5)),
    ]
    for raw in others:
        assert taken(world, raw, block, checks) is None
    assert (block.changes, checks) == ({}, [])


def test_a_bad_signature_is_verified_once_and_its_sender_pays_nothing() -> None:
    world = World()
    raw = world.tx("ann", Transfer(address("ben"), 5))
    raws = [raw[:-1] + bytes([raw[-1] ^ 1])]
    checks: list[bytes] = []

    def check(*signed: bytes) -> bool:
        checks.append(signed[0])
        return verify(*signed)

    context, batches = world.context(proposer="val1"), [world.batch(*raws)]
    outcome = execute_block(world.state, world.lthash, world.accumulator, context, batches, check=check)
    assert [receipt.code for receipt in outcome.receipts] == ["bad-signature"]
    assert ACCOUNT + address("ann") not in outcome.changes
    assert checks.count(address("ann")) == 1


@pytest.mark.parametrize("body", [Transfer(address("ben"), 5), DatanetCreate("docs", ("MIT",), "")])
def test_a_bad_signature_is_refused_whatever_the_kind(body: Transfer | DatanetCreate) -> None:
    world = World()
    raw = world.tx("ann", body)
    (receipt,) = world.block(raw[:-1] + bytes([raw[-1] ^ 1])).receipts
    assert (receipt.status, receipt.code) == (ReceiptStatus.INVALID, "bad-signature")
    assert world.block(raw).receipts[0].status == ReceiptStatus.OK


# --- what is remembered of the state ---

NUMBERS = st.sampled_from((0, 1, 0x7F, 0x80, 0xFFFF, 0x10000, U63_MAX)) | st.integers(0, U63_MAX)


@settings(max_examples=examples(40))
@given(NUMBERS, NUMBERS)
def test_an_account_is_written_and_read_as_any_other_record(balance: int, nonce: int) -> None:
    account = Account(balance, nonce)
    data = encode_account(account)
    assert data == to_bytes(account)
    assert decode_account(data) == from_bytes(Account, data, 100) == account
    assert decode_account(bytes(bytearray(data))) is decode_account(data)


def test_what_is_no_account_is_refused_each_time_even_where_it_was_written() -> None:
    for account in (Account(U63_MAX + 1, 0), Account(-1, 0), Account(0, U63_MAX + 1), Account(0, -1)):
        data = encode_account(account)
        for _ in range(2):
            with pytest.raises(MalformedError):
                decode_account(data)
    for bad in (
        b"",
        b"\x92\x01",
        b"\x92\xcc\x01\x00",
        b"\x92\xc3\x00",
        b"\x93\0\0\0",
        b"\x92\0\0\0",
        b"\x92\xa0\0",
    ):
        for _ in range(2):
            with pytest.raises(MalformedError):
                decode_account(bad)


def test_the_memories_of_accounts_and_windows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "ACCOUNTS_REMEMBERED_MAX", 4)
    monkeypatch.setattr(overlay, "_accounts", {})
    monkeypatch.setattr(state, "WINDOWS_REMEMBERED_MAX", 4)
    monkeypatch.setattr(state, "_windows", {})
    block = Overlay({})
    for number in range(9):
        encode_account(Account(number, 1))
        decode_account(encode([number, 2]))
        window = BatchWindow(number, (number + 1, number + 2))
        state.put_batch_window(block, bytes([number]), window)
        assert len(overlay._accounts) <= 4
        assert 1 <= len(state._windows) <= 4
        assert block.get(entries.BATCHES + bytes([number])) == to_bytes(window)
        assert state.get_batch_window(block, bytes([number])) is window
    # What was forgotten is read from the bytes; what is none is refused.
    assert state.get_batch_window(block, b"\0") == BatchWindow(0, (1, 2))
    assert state.get_batch_window(block, b"nobody") == BatchWindow()
    block.put(entries.BATCHES + b"x", encode([1, [True]]))
    with pytest.raises(MalformedError):
        state.get_batch_window(block, b"x")
