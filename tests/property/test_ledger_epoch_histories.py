"""Random histories of stakes, epochs and slashes: nothing is lost, nobody is slashed twice, replicas agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.epochs import carry_reveals
from node.ledger.accumulator import Accumulator
from node.ledger.batch import decode_batch, encode_batch
from node.ledger.block import BlockOutcome
from node.ledger.bodies import (
    Body,
    Transfer,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.entries import VALIDATORS_KEY
from node.ledger.epochs import consensus_set, reveals_at
from node.ledger.execute import execute_block
from node.ledger.fields import from_bytes
from node.ledger.genesis import genesis_state
from node.ledger.lthash import lthash_of
from node.ledger.params import OPEN
from node.ledger.stakes import (
    CANDIDATES_MAX,
    KEY_OWNER,
    NEXT_VALIDATORS_KEY,
    PEER_OWNER,
    STAKE,
    Stake,
    get_candidates,
    get_epoch,
    get_past_epoch,
    get_unbonders,
)
from node.ledger.state import get_account, get_supply, get_validators
from tests.profiles import examples
from tests.unit.node_ledger.seats import EPOCHS, registration, two_votes
from tests.unit.node_ledger.world import PEOPLE, VALIDATORS, World, address, genesis, seed

STAKING = replace(EPOCHS, epoch_ms=1_500, unbonding_ms=5_000, evidence_ms=4_000, jail_heights=2, jail_ms=0)
EVERYBODY = (*VALIDATORS, *PEOPLE)
AMOUNTS = (1, OPEN, 100 * OPEN, 450 * OPEN, 20_000 * OPEN)


class Story:
    """A chain in which anybody may try anything with stakes."""

    def __init__(self) -> None:
        self.world = World(STAKING)
        self.nonces: dict[str, int] = {}
        self.slashes: set[tuple[bytes, int]] = set()
        self.total = get_supply(self.world.state).total

    def send(self, name: str, body: Body) -> bytes:
        nonce = self.nonces.get(name, get_account(self.world.state, address(name)).nonce)
        self.nonces[name] = nonce + 1
        return self.world.tx(name, body, nonce=nonce)

    def register(self, name: str, a: int, b: int) -> bytes:
        body = registration(self.world, EVERYBODY[b % 10] if a % 3 == 0 else name, AMOUNTS[2 + a % 3])
        return self.send(name, body)

    def report(self, name: str, a: int, b: int) -> bytes:
        """Evidence against anybody, of this epoch or one of the last, also of the next."""
        epoch = max(0, get_epoch(self.world.state).number + 1 - a % 5)
        return self.send(name, two_votes(self.world, EVERYBODY[b % 10], epoch, 1 + a % 2))


ACTIONS: dict[str, Callable[[Story, str, int, int], bytes]] = {
    "register": Story.register,
    "report": Story.report,
    "bond": lambda story, name, a, b: story.send(name, ValidatorBond(AMOUNTS[a % 5])),
    "unbond": lambda story, name, a, b: story.send(name, ValidatorUnbond(AMOUNTS[a % 5])),
    "leave": lambda story, name, a, b: story.send(name, ValidatorLeave()),
    "unjail": lambda story, name, a, b: story.send(name, ValidatorUnjail()),
    "anchor": lambda story, name, a, b: story.send(name, ValidatorAnchor(seed(f"anchor {a % 3}"))),
    "transfer": lambda story, name, a, b: story.send(
        name, Transfer(address(EVERYBODY[b % 10]), AMOUNTS[a % 5])
    ),
}
SMALL = st.integers(0, 40)
CHOICE = st.tuples(
    st.sampled_from([*ACTIONS, "report", "register"]), st.sampled_from(EVERYBODY), SMALL, SMALL
)
BLOCK = st.tuples(
    st.lists(CHOICE, max_size=5), SMALL, st.integers(0, 2_000), st.booleans(), st.lists(SMALL, max_size=3)
)
BLOCKS = st.lists(BLOCK, min_size=8, max_size=40)
Choice = tuple[str, str, int, int]
Planned = tuple[list[Choice], int, int, bool, list[int]]


def run(story: Story, planned: Planned) -> BlockOutcome:
    """One block; where the next set is frozen it may be the boundary."""
    choices, proposer, step_ms, ends, missed = planned
    world, story.nonces = story.world, {}
    items = [ACTIONS[action](story, name, a, b) for action, name, a, b in choices]
    keys = [entry.consensus_key for entry in get_validators(world.state).validators]
    context = replace(
        world.context(step_ms=step_ms),
        proposer=keys[proposer % len(keys)],
        missed=tuple(keys[at % len(keys)] for at in missed),
        ends_epoch=ends and NEXT_VALIDATORS_KEY in world.state,
    )
    return world.block(*items, context=context)


def stakes(world: World) -> dict[bytes, Stake]:
    return {
        key[2:]: from_bytes(Stake, value, 4_096)
        for key, value in world.state.items()
        if key.startswith(STAKE)
    }


def check_stakes(story: Story) -> None:
    world, supply = story.world, get_supply(story.world.state)
    assert supply.total + supply.burned == story.total
    assert world.accounted() == supply.total
    held = stakes(world)
    assert sum(stake.slashed for stake in held.values()) <= supply.burned
    for prefix, names in (
        (KEY_OWNER, {stake.consensus_key: account for account, stake in held.items()}),
        (PEER_OWNER, {stake.peer_id.encode(): account for account, stake in held.items()}),
    ):
        assert {key[2:]: value for key, value in world.state.items() if key.startswith(prefix)} == names
        assert len(names) == len(held)
    candidates = get_candidates(world.state)
    assert len(candidates) == len(set(candidates)) <= CANDIDATES_MAX
    assert set(candidates) == {account for account, stake in held.items() if not stake.leaving}
    epoch = get_epoch(world.state)
    waiting = {
        (account, number)
        for number in range(epoch.oldest, epoch.number + 2)
        for account in get_unbonders(world.state, number)
    }
    assert waiting == {
        (account, entry.epoch) for account, stake in held.items() for entry in stake.unbondings
    }
    assert all(get_past_epoch(world.state, number) for number in range(epoch.oldest, epoch.number))
    validators = get_validators(world.state).validators
    assert 1 <= len(validators) <= 10
    assert len({entry.account for entry in validators}) == len(validators)
    assert len({entry.peer_id for entry in validators}) == len(validators)


def note_slashes(story: Story, before: dict[bytes, Stake], outcome: BlockOutcome) -> None:
    """An epoch's record and the units burned agree; no key is twice in a record, and none leaves one."""
    epoch = get_epoch(story.world.state)
    found = {(key, epoch.number) for key in epoch.slashed}
    for number in range(epoch.oldest, epoch.number):
        past = get_past_epoch(story.world.state, number)
        assert past is not None
        assert len(set(past.slashed)) == len(past.slashed)
        assert set(past.slashed) <= set(past.members)
        found |= {(key, number) for key in past.slashed}
    events = [receipt for receipt in outcome.receipts if receipt.code == "slashed-equivocation"]
    assert len(found - story.slashes) == len(events)
    for receipt in events:
        assert receipt.burned <= before[receipt.subject].bonded + sum(
            entry.amount for entry in before[receipt.subject].unbondings
        ) + sum(AMOUNTS), "what was there, and what the same block added"
    story.slashes |= found


@settings(max_examples=examples(12))
@given(BLOCKS)
def test_histories_of_stakes_conserve_the_supply_and_slash_once(blocks: list[Planned]) -> None:
    story = Story()
    for planned in blocks:
        world = story.world
        before, old = stakes(world), get_validators(world.state)
        number = get_epoch(world.state).number
        frozen, reveals = world.state.get(NEXT_VALIDATORS_KEY), reveals_at(world.state, old)
        outcome = run(story, planned)
        note_slashes(story, before, outcome)
        check_stakes(story)
        if get_epoch(world.state).number == number:
            assert frozen in (None, world.state.get(NEXT_VALIDATORS_KEY))
            continue
        assert frozen == world.state[VALIDATORS_KEY]
        context = world.inputs[-1][0]
        ended = list(reveals)
        at = [entry.consensus_key for entry in old.validators].index(context.proposer)
        ended[at] = (ended[at][0] + 1, context.beacon_reveal)
        new = get_validators(world.state)
        carried = carry_reveals(consensus_set(old, number), tuple(ended), consensus_set(new, number + 1))
        assert reveals_at(world.state, new) == carried
    replay(story.world)


def replay(world: World) -> None:
    """A replica that reads batches from bytes and keeps its state in another order comes to the same outcomes."""
    state = dict(reversed(genesis_state(genesis(world.params)).items()))
    lthash, accumulator = lthash_of(state), Accumulator()
    for (context, batches), expected in zip(world.inputs, world.outcomes, strict=True):
        again = [decode_batch(encode_batch(batch)) for batch in batches]
        outcome = execute_block(state, lthash, accumulator, context, again)
        assert outcome == expected
        merged = {**outcome.changes, **{key: state[key] for key in state if key not in outcome.changes}}
        state = {key: value for key, value in reversed(merged.items()) if value is not None}
        lthash, accumulator = outcome.lthash, outcome.accumulator
    assert state == world.state


def test_the_actions_of_histories_reach_every_fate_of_a_validator() -> None:
    """The generator is worth its name only if joins, exits, slashes, pay-outs and new anchors all happen by it."""
    story, seen = Story(), set()
    plan: list[list[Choice]] = [
        [("register", "ann", 1, 0), ("report", "ben", 1, 0), ("leave", "val1", 0, 0)],
        [("register", "ben", 1, 0), ("anchor", "val2", 1, 0)],
        *([[]] * 12),
        [("unjail", "val0", 0, 0), ("report", "ann", 2, 2)],
        *([[]] * 12),
    ]
    for choices in plan:
        outcome = run(story, (choices, 1, 1_500, True, [0]))
        check_stakes(story)
        seen |= {receipt.code for receipt in outcome.receipts}
    assert {"slashed-equivocation", "unbonded", "epoch-frozen", "epoch-began"} <= seen
    accounts = get_validators(story.world.state).accounts
    assert address("ann") in accounts
    assert address("val1") not in accounts
    replay(story.world)
