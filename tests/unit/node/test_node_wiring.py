"""What a whole node does between its rooms: the batch it offers, what it passes on, what it starts again with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from consensus.crypto import public_key
from consensus.effects import RequestPayload
from consensus.inputs import PayloadAvailable, PayloadPending
from node.backend import DaemonBackend
from node.config import MempoolSection, load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.dispatch import plausible
from node.errors import TransactionDropped
from node.home import Home
from node.keeper import Keeper
from node.keys import load_seed
from node.ledger.batch import (
    BATCH_BYTES_MAX,
    decode_batch,
    encode_batch,
    sign_batch,
    sign_storage_receipt,
    storage_claim,
)
from node.ledger.bodies import ContributionSubmit, Transfer
from node.ledger.entries import ACCOUNT, BATCHES, INFERENCE, Account, BatchWindow, Inference, InferenceStatus
from node.ledger.fields import to_bytes
from node.ledger.openings import (
    Opening,
    Voucher,
    encode_opening,
    output_commitment,
    prompt_commitment,
)
from node.ledger.state import get_params
from node.ledger.transaction import (
    encode_transaction,
    fee_estimate,
    hash_transaction_bytes,
    sign_transaction,
)
from node.network.types import PeerEvent
from node.node import Node
from node.rpc.errors import Code, fault_of
from node.storage.blobs import LOOSE_BYTES_MIN, LooseLimits
from node.storage.errors import LooseQuotaExceeded
from node.wire import Announcement, Topic, encode_announcement, encode_transactions

SALT = b"s" * 32
OPENING = Opening((1, 2), SALT, (3,), SALT)
PROMPT_COMMITMENT = prompt_commitment(SALT, OPENING.prompt_ids)
OUTPUT_COMMITMENT = output_commitment(SALT, OPENING.output_ids)


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
        return node.batch_maker.offer(RequestPayload(1, bytes(32), uncommitted, False))

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
    monkeypatch.setattr("node.batches.BATCH_BYTES_MAX", 16 << 10)
    monkeypatch.setattr("node.batches.BATCH_OVERHEAD_BYTES", 1 << 10)
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
    monkeypatch.setattr("node.batches.now_ms", lambda: 1_000)
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
    assert plausible(topic, data) == passed_on


def test_many_changes_of_the_pool_at_once_are_told_to_consensus_together(
    node: Node, signers: list[bytes]
) -> None:
    async def main() -> None:
        async with node.tasks.opened():
            for _ in range(50):
                node.pending.changed()
            assert not node.driver._own
            fill(node, 1, signers)
            await trio.sleep(0.05)
            node.pending.changed()
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
        node.batches.take(author.peer_id, encode_batch(batch))
    assert [type(event) for event in told] == [PayloadAvailable]


def test_an_opening_that_answers_another_open_call_is_not_forgotten_with_the_first(node: Node) -> None:
    """A provider may give two calls the same tokens and salts: the end of one audit must not blind the other."""
    voucher = Voucher(bytes(32), bytes(32), bytes(32), 1, bytes(32), PROMPT_COMMITMENT, 9, 1, 1)
    name = node.blobs.put(encode_opening(OPENING))
    first, second = b"1" * 32, b"2" * 32

    def record(inference: bytes, status: InferenceStatus) -> None:
        value = to_bytes(
            Inference(status, voucher, OUTPUT_COMMITMENT, 2, 1, 1, 1, blob_digest=name, blob_bytes=9)
        )
        node._database.write({b"s" + INFERENCE + inference: value}, sync=False)
        node.keeper.recall(0)

    async def main() -> None:
        record(first, InferenceStatus.SETTLED)
        record(second, InferenceStatus.OPENING)
        await node.prune_opening(first)
        assert node.blobs.has(name)
        node.keeper = Keeper(node.store, node.blobs, node.config.storage, set, list)
        record(second, InferenceStatus.SETTLED)
        await node.prune_opening(second)
        assert not node.blobs.has(name)

    trio.run(main)


def test_a_clients_transaction_that_had_to_give_way_says_so(node: Node, signers: list[bytes]) -> None:
    seed = bytes(range(32))
    fill(node, 1, signers)
    (waiting,) = node.mempool
    node.mempool.limits = MempoolSection(transactions_max=1)
    dearer = sign_transaction(
        signers[0],
        chain_id=node.chain_id,
        nonce=0,
        fee=10**12,
        valid_until=50,
        body=Transfer(bytes(31) + b"\1", 1),
    )
    raw = encode_transaction(dearer)
    backend = DaemonBackend(node)
    assert backend.transaction(waiting.tx_hash) is not None
    node.mempool.add(raw, hash_transaction_bytes(raw, node.chain_id), dearer, duty=False)
    with pytest.raises(TransactionDropped, match="submit it again"):
        backend.transaction(waiting.tx_hash)
    assert backend.transaction(bytes(32)) is None
    assert backend.next_nonce(public_key(seed)) == 0
    assert fault_of(TransactionDropped(1, "why")) is not None


def test_blobs_that_come_by_rpc_are_loose_and_bounded(node: Node) -> None:
    node.blobs.loose_limits = LooseLimits(unnamed_bytes_max=LOOSE_BYTES_MIN)

    async def main() -> None:
        backend = DaemonBackend(node)
        name = await backend.put_blob(b"first")
        assert node.blobs.note(name) is not None
        with pytest.raises(LooseQuotaExceeded) as refused:
            await backend.put_blob(b"second")
        fault = fault_of(refused.value)
        assert fault is not None
        assert fault.code == Code.STORAGE_FULL

    trio.run(main)


@pytest.mark.parametrize(("followed", "messages"), [(True, 3), (False, 2)])
def test_blocks_that_follow_at_once_are_announced_together_and_the_last_of_them_always(
    node: Node, monkeypatch: pytest.MonkeyPatch, followed: bool, messages: int
) -> None:
    """Gossip costs every node milliseconds a message; a busy chain has dozens of blocks a second.

    Where only validators are connected, which hear of blocks through consensus, it is said still less often.
    """
    if followed:
        node.announcer.peer_changed(PeerEvent("a full node", True, False))
    for peer_id in node.directory.validator_of:
        node.announcer.peer_changed(PeerEvent(peer_id, True, True))
    heights: list[int] = []
    published: list[bytes] = []

    async def publish(topic: str, data: bytes, timeout_s: float) -> None:
        published.append(data)

    monkeypatch.setattr(node.network, "publish", publish)
    monkeypatch.setattr(node.sync, "announcement", lambda: Announcement(heights[-1], b"b" * 32))

    async def body() -> None:
        async with node.tasks.opened():
            for height in range(1, 31):
                heights.append(height)
                node.announcer.announce_soon()
                await trio.sleep(0.03)

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
    assert published[0] == encode_announcement(Announcement(1, b"b" * 32))
    assert published[-1] == encode_announcement(Announcement(30, b"b" * 32))
    assert len(published) == messages
