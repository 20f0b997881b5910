from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.effects import Persist
from consensus.types import QC, Block, CommitCertificate, Header, SyncInfo, genesis_block, genesis_qc
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.database import Database
from node.storage.errors import DatabaseInUse, StorageError

CHAIN = b"c" * 32
HEAD = ExecutedHead(0, b"i" * 32, b"s" * 32, b"a" * 32, b"l" * 2048, b"acc")
NOTHING = Persist(
    sync=True,
    record=None,
    certificates=None,
    blocks=(),
    committed=(),
    proof=None,
    reveals=(),
    forgotten=(),
)


def child_of(parent: Block, payload: tuple[bytes, ...] = ()) -> Block:
    header = Header(
        chain_id=CHAIN,
        epoch=0,
        round=parent.round + 1,
        height=parent.height + 1,
        parent=parent.id,
        proposer=b"p" * 32,
        timestamp_ms=parent.header.timestamp_ms + 1,
        payload=payload,
        beacon_reveal=b"r" * 32,
        executed_height=0,
        state_digest=b"s" * 32,
        receipts_accumulator=b"a" * 32,
    )
    return Block(header, QC(0, parent.round, parent.id, parent.header.parent, 0, ()), None, b"g" * 64)


def proof_of(block: Block) -> CommitCertificate:
    return CommitCertificate(0, block.round, block.id, block.height, ((0, b"g" * 64),))


@pytest.fixture
def genesis() -> Block:
    return genesis_block(CHAIN, b"s" * 32)


@pytest.fixture
def store(tmp_path: Path, genesis: Block) -> ChainStore:
    store = ChainStore(Database(tmp_path / "chain"))
    store.create(CHAIN, genesis, {b"a/1": b"one"}, HEAD)
    return store


def test_a_new_store_holds_its_genesis(store: ChainStore, genesis: Block) -> None:
    assert store.chain_id() == CHAIN
    assert store.committed_height() == 0
    assert store.block_at(0) == genesis
    assert store.get(b"a/1") == b"one"
    assert store.executed() == HEAD


def test_a_persisted_step_is_read_back_whole(store: ChainStore, genesis: Block) -> None:
    first = child_of(genesis)
    second = child_of(first)
    info = SyncInfo(genesis_qc(genesis), None, None)
    store.persist(replace(NOTHING, record=b"record", certificates=info, blocks=(first, second)))
    assert store.safety_record() == b"record"
    assert store.certificates() == info
    assert store.uncommitted_blocks() == (first, second)
    assert store.committed_height() == 0


def test_a_committed_block_moves_from_the_tree_to_the_chain(store: ChainStore, genesis: Block) -> None:
    first = child_of(genesis)
    store.persist(replace(NOTHING, blocks=(first,)))
    store.persist(
        replace(
            NOTHING,
            committed=(first,),
            proof=proof_of(first),
            reveals=((1, b"r" * 32),),
            forgotten=(first.id,),
        )
    )
    assert store.committed_height() == 1
    assert store.block_at(1) == first
    assert store.proof_at(1) == proof_of(first)
    assert store.reveals() == ((1, b"r" * 32),)
    assert store.uncommitted_blocks() == ()


def test_forgetting_later_never_deletes_what_was_committed(store: ChainStore, genesis: Block) -> None:
    first = child_of(genesis)
    store.persist(replace(NOTHING, blocks=(first,)))
    store.persist(replace(NOTHING, committed=(first,), proof=proof_of(first), reveals=()))
    store.persist(replace(NOTHING, forgotten=(first.id,)))
    assert store.block_at(1) == first


def test_an_abandoned_block_goes(store: ChainStore, genesis: Block) -> None:
    fork = child_of(genesis, payload=(b"x" * 32,))
    store.persist(replace(NOTHING, blocks=(fork,)))
    store.persist(replace(NOTHING, forgotten=(fork.id,)))
    assert store.block(fork.id) is None
    assert store.uncommitted_blocks() == ()


def test_execution_is_one_write_of_state_outcome_and_height(store: ChainStore) -> None:
    head = replace(HEAD, height=1, state_digest=b"t" * 32)
    outcome = Outcome(b"t" * 32, b"q" * 32, b"b" * 32, (b"receipt",))
    store.record_execution(head, {b"a/1": None, b"a/2": b"two"}, outcome, {b"h" * 32: 0})
    assert store.executed() == head
    assert store.outcome(1) == outcome
    assert store.get(b"a/1") is None
    assert store.get(b"a/2") == b"two"
    assert store.transaction_place(b"h" * 32) == (1, 0)
    assert dict(store.scan_state()) == {b"a/2": b"two"}


def test_one_home_is_not_opened_twice(tmp_path: Path) -> None:
    first = Database(tmp_path / "chain")
    with pytest.raises(DatabaseInUse, match="another process"):
        Database(tmp_path / "chain")
    first.close()
    Database(tmp_path / "chain").close()


def test_everything_is_there_after_reopening(tmp_path: Path, genesis: Block) -> None:
    database = Database(tmp_path / "chain")
    ChainStore(database).create(CHAIN, genesis, {}, HEAD)
    ChainStore(database).persist(replace(NOTHING, record=b"record"))
    ChainStore(database).put_batch(b"d" * 32, b"batch")
    database.close()
    again = ChainStore(Database(tmp_path / "chain"))
    assert again.safety_record() == b"record"
    assert again.batch(b"d" * 32) == b"batch"


def test_a_database_of_something_else_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="lacks committed"):
        ChainStore(Database(tmp_path / "chain")).committed_height()


def test_a_step_that_signed_waits_for_the_disk_and_one_that_did_not_does_not(tmp_path: Path) -> None:
    waited: list[bool] = []

    class Watched(Database):
        def write(self, changes: Mapping[bytes, bytes | None], *, sync: bool) -> None:
            waited.append(sync)
            super().write(changes, sync=sync)

    store = ChainStore(Watched(tmp_path / "chain"))
    store.persist(replace(NOTHING, record=b"record"))
    store.persist(
        replace(
            NOTHING,
            sync=False,
            certificates=SyncInfo(genesis_qc(genesis_block(CHAIN, b"s" * 32)), None, None),
        )
    )
    store.put_batch(b"d" * 32, b"batch")
    assert waited == [True, False, False]
