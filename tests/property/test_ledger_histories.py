"""Random histories of valid, invalid and meaningless transactions: nothing is lost, and replicas agree."""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.digest import digest
from node.ledger.accumulator import Accumulator
from node.ledger.batch import StorageReceipts, decode_batch, encode_batch
from node.ledger.block import BlockOutcome, ReceiptStatus, decode_receipt, encode_receipt
from node.ledger.bodies import (
    DUTY_KINDS,
    AttestOpen,
    BaseRegister,
    Body,
    DatanetCreate,
    Held,
    InferenceReveal,
    ProviderBond,
    RecordsErase,
    Transfer,
)
from node.ledger.entries import (
    ARTEFACTS_KEY,
    AUDITS_KEY,
    INFERENCE,
    VALUE_BYTES_MAX,
    Inference,
    InferenceStatus,
)
from node.ledger.erasure import ERASURES_KEY, get_erasures
from node.ledger.execute import execute_block
from node.ledger.fields import from_bytes
from node.ledger.genesis import genesis_state
from node.ledger.lthash import lthash_of, state_digest
from node.ledger.openings import sign_voucher
from node.ledger.params import OPEN
from node.ledger.results import AuditStatus
from node.ledger.state import (
    get_account,
    get_adapter,
    get_base,
    get_deadlines,
    get_draws,
    get_provider,
    get_supply,
)
from tests.profiles import examples
from tests.unit.node_ledger.world import (
    BASE_HASH,
    INDEX_ROOT,
    PARAMS,
    PEOPLE,
    VALIDATORS,
    World,
    address,
    genesis,
    seed,
)

HISTORY_PARAMS = replace(
    PARAMS,
    audit_probability_ppb=700_000_000,
    reveal_window_heights=4,
    reveal_window_ms=2_000,
    commit_window_heights=2,
    commit_window_ms=2_000,
    open_window_heights=2,
    open_window_ms=2_000,
    in_flight_per_bond_max=3,
    inferences_open_max=6,
)
FINAL = {InferenceStatus.SETTLED, InferenceStatus.REFUNDED, InferenceStatus.SLASHED}
OPEN_STATUSES = {
    InferenceStatus.AWAITING_REVEAL,
    InferenceStatus.COMMITTING,
    InferenceStatus.OPENING,
}

Choice = tuple[str, int, int, int]


class Story:
    """Interprets choices against a world: (action, three small numbers) -> one transaction."""

    def __init__(self) -> None:
        self.world = World(HISTORY_PARAMS)
        self.adapter = self.world.active_adapter()
        self.contributions = tuple(
            outcome.receipts[0].subject for outcome in self.world.outcomes[1:4] if outcome.receipts
        )
        self.datanet = self.world.outcomes[0].receipts[0].subject
        self.nonces: dict[str, int] = {}
        self.sequence = 0
        self.total = get_supply(self.world.state).total + get_supply(self.world.state).burned

    def inferences(self) -> list[tuple[bytes, Inference]]:
        return [
            (key[2:], from_bytes(Inference, value, VALUE_BYTES_MAX))
            for key, value in sorted(self.world.state.items())
            if key.startswith(INFERENCE)
        ]

    def send(self, name: str, body: Body, spoil: int = 0) -> bytes:
        """A transaction, in two of eleven cases with a field spoiled."""
        if body.KIND in DUTY_KINDS:
            return self.world.tx(name, body, **({"nonce": 1} if spoil % 11 == 1 else {}))
        nonce = self.nonces.get(name, get_account(self.world.state, address(name)).nonce)
        overrides = {1: {"nonce": nonce + 1}, 2: {"fee": 7}, 3: {"valid_until": 0}}.get(spoil % 11, {})
        if not overrides:
            self.nonces[name] = nonce + 1
        return self.world.tx(name, body, **({"nonce": nonce} | overrides))

    def inference(self, at: int) -> tuple[bytes, Inference]:
        known = [
            entry for entry in self.inferences() if entry[1].status in OPEN_STATUSES
        ] or self.inferences()
        return known[at % len(known)] if known else (bytes(32), self.blank())

    def blank(self) -> Inference:
        return Inference(1, self.world.voucher(self.adapter), bytes(32), 1, 1, 0, 0)

    def transfer(self, a: int, b: int, c: int) -> bytes:
        amount = (1, OPEN, 9_000 * OPEN, 2**62)[b % 4]
        return self.send(PEOPLE[a % 6], Transfer(address((*PEOPLE, *VALIDATORS)[b % 10]), amount), c)

    def data(self, a: int, b: int, c: int) -> bytes:
        datanet = self.datanet if b % 5 else bytes(32)
        return self.send(PEOPLE[a % 3], self.world.contribution(datanet, f"text {b}"), c)

    def artefact(self, a: int, b: int, c: int) -> bytes:
        bodies: list[Body] = [
            BaseRegister(bytes([b % 3]) * 32, "base"),
            self.world.adapter_body(self.contributions, f"adapter {b % 3}"),
            DatanetCreate(f"net {b}", ("MIT",), ""),
        ]
        return self.send(PEOPLE[a % 6], bodies[b % 3], c)

    def erase(self, a: int, b: int, c: int) -> bytes:
        contribution = self.contributions[b % 3] if b % 8 else bytes(32)
        return self.send(PEOPLE[a % 3], RecordsErase(contribution, ((0,), (1,), (0, 1), (2,))[c % 4]), c)

    def held(self, a: int, b: int, c: int) -> bytes:
        pending = [entry.id for entry in get_deadlines(self.world.state, b"q/artefacts")] or [BASE_HASH]
        artefact = pending[b % len(pending)]
        root = INDEX_ROOT if get_adapter(self.world.state, artefact) else b""
        return self.send(VALIDATORS[a % 4], Held(artefact, root), c)

    def bond(self, a: int, b: int, c: int) -> bytes:
        return self.send("provider", ProviderBond((1, HISTORY_PARAMS.provider_bond_min)[b % 2], "again"), c)

    def record(self, a: int, b: int, c: int) -> bytes:
        self.sequence += b % 2
        voucher = self.world.voucher(self.adapter, max(self.sequence, 1), (OPEN, 12_345_679, 1, 2**50)[a % 4])
        body = self.world.record_body(voucher)
        if b % 7 == 1:
            body = replace(body, voucher_signature=sign_voucher(seed("ann"), voucher))
        return self.send("provider", body, c)

    def reveal(self, a: int, b: int, c: int) -> bytes:
        name, _ = self.inference(a)
        return self.send("provider", InferenceReveal(name, digest("blob", b"opening"), 100), c)

    def commit(self, a: int, b: int, c: int) -> bytes:
        name, inference = self.inference(b)
        answer = self.answer(name, inference, a, c)
        return self.send(VALIDATORS[a % 4], self.world.commit_body(name, answer, VALIDATORS[a % 4]), c)

    def open(self, a: int, b: int, c: int) -> bytes:
        name, inference = self.inference(b)
        return self.send(VALIDATORS[a % 4], self.answer(name, inference, a, c), c)

    def answer(self, name: bytes, inference: Inference, validator: int, c: int) -> AttestOpen:
        """Mostly one result; one validator errs on odd attempts, and some inferences are the provider's fault."""
        result = b"wrong" if validator % 4 == 3 and c % 2 else b"right"
        status = (AuditStatus.OK, AuditStatus.OK, AuditStatus.OUTPUT_DIFFERS, AuditStatus.NON_FINITE)[
            name[0] % 4
        ]
        return self.world.answer(name, result, status, inference.attempt)

    def garbage(self, a: int, b: int, c: int) -> bytes:
        good = bytearray(self.world.tx("ann", Transfer(address("ben"), 1), nonce=10**6))
        good[(a * 97 + b) % len(good)] ^= 1 + c % 255
        return bytes(good) if a % 3 else bytes([a, b % 256, c % 256])

    def run(self, choices: list[Choice], author: int, proposer: int, step_ms: int) -> BlockOutcome:
        """One block, with receipts of storage from a varying set of validators."""
        self.nonces = {}
        items: list[tuple[bytes, StorageReceipts] | bytes] = []
        for action, a, b, c in choices:
            made = ACTIONS[action](self, a, b, c)
            if action in {"data", "reveal"}:
                items.append((made, self.world.stored(made, VALIDATORS[: 2 + c % 5])))
            else:
                items.append(made)
        context = self.world.context(VALIDATORS[proposer % 4], step_ms=step_ms)
        if author % 9 == 8:
            items.append(b"")
        return self.world.block(*items, context=context, author=VALIDATORS[author % 4])


ACTIONS: dict[str, Callable[[Story, int, int, int], bytes]] = {
    "transfer": Story.transfer,
    "data": Story.data,
    "artefact": Story.artefact,
    "erase": Story.erase,
    "held": Story.held,
    "bond": Story.bond,
    "record": Story.record,
    "reveal": Story.reveal,
    "commit": Story.commit,
    "open": Story.open,
    "garbage": Story.garbage,
}
WEIGHTED = [*ACTIONS, "record", "record", "reveal", "reveal", *["commit"] * 5, *["open"] * 5]

SMALL = st.integers(0, 40)
BLOCKS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(WEIGHTED), SMALL, SMALL, SMALL), max_size=8),
        SMALL,
        SMALL,
        st.integers(0, 1_500),
    ),
    min_size=5,
    max_size=30,
)


def check_erasures(story: Story) -> None:
    """Audits stand in the order of their records, and what is done is needed by nothing that is still open."""
    state = story.world.state
    audits = [get_deadlines(state, AUDITS_KEY), get_deadlines(state, ARTEFACTS_KEY)]
    records = dict(story.inferences())
    heights = [records[entry.id].height for entry in audits[0]]
    heights += [group.height for group in get_draws(state)]
    assert heights == sorted(heights)
    published = [entry.height - HISTORY_PARAMS.artefact_window_heights for entry in audits[1]]
    assert published == sorted(published)
    waiting = {(entry.id, entry.height) for entry in get_deadlines(state, ERASURES_KEY)}
    for name in story.contributions:
        found = get_erasures(state, name)
        for erasure in found.entries if found else ():
            assert ((name, erasure.height) in waiting) == (erasure.done_height == 0)
            assert not erasure.done_height or erasure.height < min((*heights, *published, 10**9))


def check_conservation(story: Story) -> None:
    world, supply = story.world, get_supply(story.world.state)
    assert supply.total + supply.burned == story.total
    assert world.accounted() == supply.total
    inferences = dict(story.inferences())
    escrowed = sum(entry.voucher.fee for entry in inferences.values() if entry.status not in FINAL)
    assert supply.escrowed == escrowed
    waiting = {name for group in get_draws(world.state) for name in group.inferences}
    audits = {entry.id for entry in get_deadlines(world.state, AUDITS_KEY)}
    assert waiting == {name for name, entry in inferences.items() if entry.status == InferenceStatus.RECORDED}
    assert audits == {name for name, entry in inferences.items() if entry.status in OPEN_STATUSES}
    assert len(waiting) + len(audits) <= HISTORY_PARAMS.inferences_open_max
    provider = get_provider(world.state, address("provider"))
    assert provider is not None
    assert provider.in_flight == len(waiting) + len(audits)
    flying = waiting | audits
    assert provider.in_flight_fees == sum(inferences[name].voucher.fee for name in flying)


@settings(max_examples=examples(40))
@given(BLOCKS)
def test_histories_conserve_the_supply_and_replicas_agree_on_every_digest(
    blocks: list[tuple[list[Choice], int, int, int]],
) -> None:
    story = Story()
    for choices, author, proposer, step_ms in blocks:
        outcome = story.run(choices, author, proposer, step_ms)
        check_conservation(story)
        check_erasures(story)
        for receipt in outcome.receipts:
            assert decode_receipt(encode_receipt(receipt)) == receipt
            assert receipt.status != ReceiptStatus.FAILED or receipt.code
    replay(story.world)


def replay(world: World) -> None:
    """A replica that starts from nothing, checks every signature itself, reads batches from bytes and keeps its state
    in another order: same digests, receipts and accumulator at every height."""
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
    assert lthash_of(state) == lthash
    assert state_digest(lthash, world.chain) == world.outcomes[-1].state_digest


@settings(max_examples=examples(10))
@given(BLOCKS, st.integers(0, 10**6))
def test_the_digest_of_a_reached_state_depends_on_every_key(
    blocks: list[tuple[list[Choice], int, int, int]], pick: int
) -> None:
    story = Story()
    for choices, author, proposer, step_ms in blocks:
        story.run(choices, author, proposer, step_ms)
    state = story.world.state
    key = sorted(state)[pick % len(state)]
    without = {other: value for other, value in state.items() if other != key}
    changed = state | {key: state[key] + b"\x00"}
    digests = {state_digest(lthash_of(variant), story.world.chain) for variant in (state, without, changed)}
    assert len(digests) == 3


def test_the_actions_of_histories_reach_every_final_status() -> None:
    """The generator is worth its name only if the interesting states are reachable by it."""
    reached: set[int] = set()
    for number in range(12):
        story = Story()
        story.world.blocks(number)  # another height is another draw
        story.run([("record", 0, 3, 0)] * 3, number, number, 500)
        for step in range(14):
            every = range(4)
            choices: list[Choice] = [("reveal", at, 0, 4) for at in range(3)]
            choices += [("commit", validator, at, 4) for validator in every for at in range(3)]
            choices += [("open", validator, at, 4) for validator in every for at in range(3)]
            if number % 4 == 0:
                choices = []
            story.run(choices, number, number + step, 700)
        check_conservation(story)
        reached |= {entry.status for _, entry in story.inferences()}
    assert {int(status) for status in FINAL} | {int(InferenceStatus.UNAUDITED)} <= reached
    assert get_base(story.world.state, BASE_HASH) is not None
