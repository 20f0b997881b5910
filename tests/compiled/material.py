"""What both forms are given: histories of blocks, valid and hostile, and inputs for every decoder of consensus and ledger.

Made once, by the text, from a seed, and written as JSON, so that the two sides share nothing but bytes and integers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from node.ledger.batch import encode_batch
from node.ledger.block import BlockContext
from node.ledger.genesis import genesis_state
from tests.fuzz.mutation import mutated
from tests.fuzz.target import Target
from tests.fuzz.targets import consensus_targets, ledger_targets
from tests.property import test_ledger_epoch_histories as epochs
from tests.property import test_ledger_histories as payments
from tests.unit.node_ledger.world import PEOPLE, World, genesis

BLOCKS = 24
INPUTS_PER_DECODER = 150


def decoders() -> dict[str, Target]:
    """Those whose code is translated, by name."""
    return {target.name: target for target in (*consensus_targets(), *ledger_targets())}


def hostile_inputs(seed: int, each: int = INPUTS_PER_DECODER) -> list[list[str]]:
    """[decoder, input in hex]: valid ones first, then ones that are valid but for something."""
    rng = random.Random(seed)
    rows = []
    for name, target in decoders().items():
        inputs = [*target.seeds, *(mutated(rng, target.seeds, target.text) for _ in range(each))]
        rows += [[name, data.hex()] for data in inputs]
    return rows


def histories(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Payments and audits, and stakes and epochs, in turn."""
    for number in range(count):
        rng = random.Random(seed * 1_000 + number)
        world = _of_stakes(rng) if number % 2 else _of_payments(rng)
        yield _written(world, rng)


def _of_payments(rng: random.Random) -> World:
    story = payments.Story()
    for _ in range(BLOCKS):
        choices = [
            (rng.choice(payments.WEIGHTED), rng.randrange(41), rng.randrange(41), rng.randrange(41))
            for _ in range(rng.randrange(9))
        ]
        story.run(choices, rng.randrange(41), rng.randrange(41), rng.randrange(1_500))
    return story.world


def _of_stakes(rng: random.Random) -> World:
    story = epochs.Story()
    actions = [*epochs.ACTIONS, "report", "register"]
    for _ in range(2 * BLOCKS):
        choices = [
            (rng.choice(actions), rng.choice(epochs.EVERYBODY), rng.randrange(41), rng.randrange(41))
            for _ in range(rng.randrange(6))
        ]
        missed = [rng.randrange(41) for _ in range(rng.randrange(4))]
        epochs.run(story, (choices, rng.randrange(41), rng.randrange(2_000), rng.random() < 0.5, missed))
    return story.world


def _written(world: World, rng: random.Random) -> dict[str, Any]:
    """A history with blocks after it that hold what is nearly valid: batches, and transactions in good batches."""
    raws = [raw for _, batches in world.inputs for batch in batches for raw, _ in batch.items]
    for _ in range(6):
        items = [mutated(rng, raws, False) for _ in range(12)]
        world.block(*items, author=None)
    blocks = [
        _block(context, [encode_batch(batch) for batch in batches]) for context, batches in world.inputs
    ]
    good = [encode_batch(batch) for _, batches in world.inputs for batch in batches]
    spoiled = [mutated(rng, good, False) for _ in range(20)]
    blocks.append(_block(world.context(PEOPLE[0]), []))
    blocks.append(_block(world.context(), spoiled))
    state = genesis_state(genesis(world.params))
    return {
        "state": [[key.hex(), value.hex()] for key, value in state.items()],
        "blocks": blocks,
        "digest": world.outcomes[-1].state_digest.hex(),
    }


def _block(context: BlockContext, batches: list[bytes]) -> dict[str, Any]:
    return {
        "context": [
            context.chain_id.hex(),
            context.height,
            context.epoch,
            context.round,
            context.timestamp_ms,
            context.proposer.hex(),
            context.beacon_reveal.hex(),
            context.executed_height,
            context.ends_epoch,
            [key.hex() for key in context.missed],
        ],
        "batches": [data.hex() for data in batches],
    }


def read_context(row: list[Any]) -> BlockContext:
    """What `_block` wrote."""
    chain, height, epoch, round_, now_ms, proposer, reveal, executed, ends, missed = row
    return BlockContext(
        bytes.fromhex(chain),
        height,
        epoch,
        round_,
        now_ms,
        bytes.fromhex(proposer),
        bytes.fromhex(reveal),
        executed,
        ends,
        tuple(bytes.fromhex(key) for key in missed),
    )
