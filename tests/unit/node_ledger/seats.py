"""The small chain with short epochs: how its validators come, go, misbehave, and how an epoch is brought to its end."""

from __future__ import annotations

from dataclasses import replace

from consensus.crypto import sign
from consensus.evidence import make_evidence
from consensus.types import Vote
from consensus.verify import vote_message
from node.ledger.block import BlockOutcome
from node.ledger.bodies import EvidenceSubmit, ValidatorRegister
from node.ledger.entries import ValidatorEntry
from node.ledger.params import OPEN
from node.ledger.stakes import Stake, get_epoch, get_stake, sign_possession
from node.ledger.state import get_validators
from node.network.address import peer_id_of_seed
from tests.unit.node_ledger.world import PARAMS, World, address, consensus_key, seed

EPOCH_HEIGHTS = 3
EPOCHS = replace(
    PARAMS,
    epoch_heights=EPOCH_HEIGHTS,
    epoch_ms=3_000,
    unbonding_heights=10,
    unbonding_ms=10_000,
    evidence_heights=6,
    evidence_ms=6_000,
    jail_heights=4,
    jail_ms=4_000,
    stake_min=100 * OPEN,
    slash_equivocation_ppm=50_000,
)


def anchor(name: str) -> bytes:
    return seed(f"anchor {name}")


def peer(name: str) -> str:
    """A peer id; those of the genesis have a form that only a genesis may give them."""
    return peer_id_of_seed(seed(f"peer {name}"))


def registration(world: World, name: str, stake: int = 1_000 * OPEN) -> ValidatorRegister:
    key_seed = seed("consensus " + name)
    proof = sign_possession(key_seed, world.chain, address(name))
    return ValidatorRegister(consensus_key(name), proof, peer(name), anchor(name), stake)


def freeze(world: World) -> BlockOutcome:
    """Blocks until the next set is frozen; the outcome that names it."""
    for _ in range(60):
        if get_epoch(world.state).frozen_height:
            return world.outcomes[-1]
        world.block()
    raise AssertionError("never frozen")


def boundary(world: World, *items: bytes) -> BlockOutcome:
    """Blocks up to and with the one that ends the epoch."""
    freeze(world)
    return world.block(*items, context=replace(world.context(), ends_epoch=True))


def pass_epochs(world: World, count: int) -> None:
    for _ in range(count):
        boundary(world)


def seated(world: World) -> dict[bytes, ValidatorEntry]:
    """The set in force, by account."""
    return {entry.account: entry for entry in get_validators(world.state).validators}


def stake_of(world: World, name: str) -> Stake:
    found = get_stake(world.state, address(name))
    assert found is not None
    return found


def vote(world: World, name: str, epoch: int, round_: int, block: bytes) -> Vote:
    key_seed, parent = seed("consensus " + name), bytes(32)
    message = vote_message(world.chain, epoch, round_, block, parent, 0)
    return Vote(epoch, round_, block, parent, 0, consensus_key(name), sign(key_seed, message))


def two_votes(world: World, name: str, epoch: int, round_: int = 1) -> EvidenceSubmit:
    """Evidence that this validator voted twice in a round."""
    votes = [vote(world, name, epoch, round_, bytes([fill]) * 32) for fill in (1, 2)]
    return EvidenceSubmit(make_evidence(*votes).to_bytes())
