"""Rooms on a chain with snapshots: blocks with true claims, reveals and roots, as a quorum would have voted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from consensus.beacon import BeaconChain
from consensus.crypto import sign
from consensus.leaders import Leaders
from consensus.types import Block, Header, header_id
from consensus.verify import proposal_message
from node.ledger.bodies import Transfer
from node.ledger.entries import ValidatorEntry
from node.ledger.genesis import Genesis, make_genesis
from tests.unit.node.rooms import Room, peer_id, qc_of
from tests.unit.node_ledger.world import (
    BALANCE,
    PARAMS,
    PEOPLE,
    STAKE,
    VALIDATORS,
    address,
    consensus_key,
    seed,
)

EVERY = 4
REVEALS = 64


@cache
def beacon(name: str) -> BeaconChain:
    return BeaconChain(seed(f"beacon {name}"), REVEALS)


@cache
def document(every: int = EVERY) -> Genesis:
    """A genesis whose beacon anchors are true, with a snapshot each few heights."""
    entries = tuple(
        ValidatorEntry(consensus_key(name), address(name), peer_id(name), STAKE, beacon(name).anchor)
        for name in VALIDATORS
    )
    accounts = tuple((address(name), BALANCE) for name in (*PEOPLE, *VALIDATORS))
    return make_genesis("test", 1_000_000, entries, accounts, replace(PARAMS, snapshot_heights=every))


def room(name: str, folder: Path, every: int = EVERY, kept: int = 2) -> Room:
    return Room(name, folder, document=document(every), snapshots_kept=kept)


def true_block(room: Room, payload: Sequence[bytes] = ()) -> Block:
    """The next block of a room's chain, claiming what the room executed last."""
    parent = room.top()
    round_ = parent.round + 1
    members = room.epochs.current.consensus_set
    index = Leaders(members).index(round_)
    name = next(name for name in VALIDATORS if consensus_key(name) == members.validators[index].id)
    proposed = sum(
        block.header.proposer == consensus_key(name)
        for height in range(1, parent.height + 1)
        if (block := room.store.block_at(height)) is not None
    )
    reveal = beacon(name).preimage(proposed + 1)
    assert reveal is not None
    head = room.executor.head
    outcome = room.store.outcome(head.height)
    header = Header(
        chain_id=room.chain_id,
        epoch=0,
        round=round_,
        height=parent.height + 1,
        parent=parent.id,
        proposer=consensus_key(name),
        timestamp_ms=parent.header.timestamp_ms + 1_000,
        payload=tuple(payload),
        beacon_reveal=reveal,
        executed_height=head.height,
        state_digest=head.state_digest,
        receipts_accumulator=head.accumulator_root,
        snapshot_root=b"" if outcome is None else outcome.snapshot_root,
    )
    message = proposal_message(room.chain_id, 0, round_, header_id(header))
    return Block(header, qc_of(parent), None, sign(seed(f"consensus {name}"), message))


async def grow(room: Room, blocks: int) -> None:
    """Commit and execute so many blocks, each with one transfer."""
    for _ in range(blocks):
        number = room.store.committed_height()
        raw = room.tx("ann", Transfer(address("ben"), 1 + number))
        block = true_block(room, [room.put(room.batch(number + 1, raw))])
        room.commit(block)
        await room.reach(block.height)
