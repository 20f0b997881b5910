"""What a whole node does between its rooms: the batch it offers, what it passes on, what it starts again with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from consensus.crypto import public_key
from consensus.effects import RequestPayload
from consensus.inputs import PayloadAvailable, PayloadPending
from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.home import Home
from node.keys import load_seed
from node.ledger.batch import (
    BATCH_BYTES_MAX,
    decode_batch,
    encode_batch,
    sign_batch,
    sign_storage_receipt,
    storage_claim,
)
from node.ledger.bodies import ContributionSubmit
from node.ledger.fields import to_bytes
from node.ledger.state import ACCOUNT, BATCHES, Account, BatchWindow, get_params
from node.ledger.transaction import (
    encode_transaction,
    fee_estimate,
    hash_transaction_bytes,
    sign_transaction,
)
from node.node import Node, _plausible
from node.wire import Announcement, Topic, encode_announcement, encode_transactions


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Home]:
    with claim_home(tmp_path_factory.mktemp("wiring") / "devnet") as layout:
        return [seat.home for seat in create_network(layout, 4, ["alice"]).validators]


@pytest.fixture
def node(homes: list[Home], tmp_path: Path) -> Iterator[Node]:
    home = Home(Path(shutil.copytree(homes[0].root, tmp_path / "home")))
    made = Node(home, load_config(home.config_path, environment={}))
    yield made
    made.close()


@pytest.fixture
def signers(homes: list[Home]) -> list[bytes]:
    """Account seeds of all validators."""
    return [load_seed(home.account_key_path) for home in homes]


def offer(node: Node, *uncommitted: bytes) -> tuple[bytes, ...]:
    async def main() -> tuple[bytes, ...]:
        return node._offer_payload(RequestPayload(1, bytes(32), uncommitted, False))

    return trio.run(main)


def fill(node: Node, count: int, signers: list[bytes]) -> list[bytes]:
    """Contributions of one sender that wait with storage receipts of all validators; their bytes."""
    seed, params = bytes(range(32)), get_params(node.store)
    node._database.write({b"s" + ACCOUNT + public_key(seed): to_bytes(Account(10**18))}, sync=False)
    rows = []
    for nonce in range(count):
        body = ContributionSubmit(bytes(32), bytes(32), 1, 1, nonce.to_bytes(32, "big"), 9, "MIT")
        transaction = sign_transaction(
            seed,
            chain_id=node.chain_id,
            nonce=nonce,
            fee=fee_estimate(params, body),
            valid_until=50,
            body=body,
        )
        raw = encode_transaction(transaction)
        node.mempool.add(raw, hash_transaction_bytes(raw, node.chain_id), transaction, duty=False)
        claim = storage_claim(body)
        for signer in signers:
            signature = sign_storage_receipt(signer, claim, node.chain_id)
            assert node.intake._receipts.add(claim, public_key(signer), signature)
        rows.append(raw)
    return rows


def test_a_batch_takes_as_many_transactions_as_fit_with_their_receipts(
    node: Node, signers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receipts may outweigh the transactions: a leader must still order what fits, not stand still."""
    monkeypatch.setattr("node.node.BATCH_BYTES_MAX", 16 << 10)
    monkeypatch.setattr("node.node.BATCH_OVERHEAD_BYTES", 1 << 10)
    rows = fill(node, 60, signers)
    assert sum(map(len, rows)) > 12 << 10
    (name,) = offer(node)
    data = node.store.batch(name)
    assert data is not None
    assert 12 << 10 < len(data) <= 16 << 10 <= BATCH_BYTES_MAX
    assert [raw for raw, _ in decode_batch(data).items] == rows[: len(decode_batch(data).items)]


def test_nothing_is_offered_on_top_of_a_batch_that_is_not_here(node: Node, signers: list[bytes]) -> None:
    """Its transactions could be the same ones; ordered twice they would cost this validator."""
    fill(node, 2, signers)
    assert offer(node, b"n" * 32) == ()
    (name,) = offer(node)
    assert offer(node, name) == ()  # all of them are in flight


def test_a_clock_set_back_does_not_make_batches_that_are_skipped(
    node: Node, signers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node, 1, signers)
    used = 1 << 60
    key = b"s" + BATCHES + node.identity.account
    node._database.write({key: to_bytes(BatchWindow(5, (7, used)))}, sync=False)
    monkeypatch.setattr("node.node.now_ms", lambda: 1_000)
    (name,) = offer(node)
    assert decode_batch(node.store.batch(name) or b"").sequence == used + 1


@pytest.mark.parametrize(
    ("topic", "data", "passed_on"),
    [
        (Topic.TRANSACTIONS, encode_transactions([b"whatever"]), True),
        (Topic.TRANSACTIONS, b"\xc1", False),
        (Topic.TRANSACTIONS, b"", False),
        (Topic.TRANSACTIONS, b"\x91\x01", False),
        (Topic.BLOCKS, encode_announcement(Announcement(1, bytes(32))), True),
        (Topic.BLOCKS, encode_transactions([b"x"]), False),
    ],
)
def test_gossip_of_a_wrong_shape_is_stopped_where_it_enters(topic: str, data: bytes, passed_on: bool) -> None:
    assert _plausible(topic, data) == passed_on


def test_many_changes_of_the_pool_at_once_are_told_to_consensus_together(
    node: Node, signers: list[bytes]
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node._background = nursery
            for _ in range(50):
                node._payload_changed()
            assert not node.driver._own
            fill(node, 1, signers)
            await trio.sleep(0.05)
            node._payload_changed()
        told = [event for event in node.driver._own if isinstance(event, PayloadPending)]
        assert [event.pending for event in told] == [True, True]

    trio.run(main)


def test_a_batch_that_a_validator_repeats_is_told_to_consensus_once(
    node: Node, signers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    author = next(
        entry for entry in node.directory.validators.validators if entry.account == public_key(signers[1])
    )
    batch = sign_batch(signers[1], node.chain_id, 1, ((b"not even a transaction", ()),))
    told: list[object] = []
    monkeypatch.setattr(node.driver, "tell", told.append)
    for _ in range(3):
        node._take_batch(author.peer_id, encode_batch(batch))
    assert [type(event) for event in told] == [PayloadAvailable]
