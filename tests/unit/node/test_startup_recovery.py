"""What a replica is given of its earlier life, from a real store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.config import ConsensusConfig
from consensus.crypto import sign
from consensus.types import Block, header_id
from consensus.verify import proposal_message
from node.ledger.genesis import make_genesis
from node.startup import open_chain, recovered_state
from node.storage.errors import StorageError
from tests.unit.node.rooms import Room, next_block, run, with_rooms
from tests.unit.node_ledger.world import genesis, seed

CONFIG = ConsensusConfig(lag_max=3)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def claiming(block: Block, executed_height: int) -> Block:
    """The same block, but whose proposer had executed less."""
    header = replace(block.header, executed_height=executed_height)
    message = proposal_message(header.chain_id, 0, header.round, header_id(header))
    return Block(header, block.qc, None, sign(seed("anybody"), message))


def test_a_new_chain_starts_from_genesis_with_nothing_executed(room: Room) -> None:
    state = recovered_state(room.store, room.epochs.current, CONFIG)
    assert state.committed.id == room.genesis.id
    assert (state.proof, state.record, state.executed, state.blocks) == (None, None, (), ())


def test_results_reach_down_to_what_the_last_committed_block_claims(room: Room) -> None:
    """A proposer may be far behind in execution; whoever voted for it before a restart has to be able to afterwards."""

    async def body() -> None:
        for _ in range(9):
            await room.order()
        last = claiming(next_block(room.top()), 2)
        room.commit(last)
        await room.reach(10)
        state = recovered_state(room.store, room.epochs.current, CONFIG)
        assert [result.height for result in state.executed] == list(range(2, 11))
        for result in state.executed:
            outcome = room.store.outcome(result.height)
            assert outcome is not None
            assert (result.state_digest, result.receipts_accumulator) == (
                outcome.state_digest,
                outcome.accumulator_root,
            )

    run(lambda: with_rooms([room], body))


def test_what_was_committed_but_not_executed_is_queued_and_not_claimed(room: Room) -> None:
    async def body() -> None:
        await room.order()

    run(lambda: with_rooms([room], body))
    room.commit(next_block(room.top()))
    room.executor._waiting.clear()  # the process ends here
    state = recovered_state(room.store, room.epochs.current, CONFIG)
    assert state.committed.height == 2
    assert state.proof is not None
    assert [result.height for result in state.executed] == [1]
    room.executor.recover()
    assert room.executor.waiting_blocks == 1


def test_opening_twice_changes_nothing_and_another_chain_is_refused(room: Room) -> None:
    before = room.store.executed()
    assert open_chain(room.store, genesis()).id == room.genesis.id
    assert room.store.executed() == before
    document = genesis()
    other = make_genesis(
        "other", document.timestamp_ms, document.validators, document.accounts, document.params
    )
    with pytest.raises(StorageError, match="one home, one chain"):
        open_chain(room.store, other)
