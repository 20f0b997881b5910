"""A small chain in memory: four validators of equal stake, a handful of named accounts, and every step of the story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.crypto import Verifier, public_key
from consensus.digest import digest
from node.ledger.accumulator import Accumulator
from node.ledger.batch import Batch, StorageReceipts, sign_batch, sign_storage_receipt, storage_claim
from node.ledger.block import BlockContext, BlockOutcome, Receipt, ReceiptStatus
from node.ledger.bodies import (
    DUTY_KINDS,
    AdapterPublish,
    AttestCommit,
    AttestOpen,
    BaseRegister,
    Body,
    ContributionSubmit,
    DatanetCreate,
    Held,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
)
from node.ledger.entries import (
    ACCOUNT,
    PROVIDER,
    Account,
    Inference,
    InferenceStatus,
    Provider,
    ValidatorEntry,
)
from node.ledger.execute import execute_block
from node.ledger.fields import from_bytes
from node.ledger.genesis import Genesis, chain_id, genesis_state, make_genesis
from node.ledger.lthash import lthash_of
from node.ledger.openings import Voucher, inference_id, output_commitment, prompt_commitment, sign_voucher
from node.ledger.params import OPEN, Params
from node.ledger.records import encode_records, records_root, token_count
from node.ledger.results import TREASURY, AuditStatus, Shares, attestation_commitment
from node.ledger.stakes import STAKE as STAKE_KEY
from node.ledger.stakes import Stake, get_epoch
from node.ledger.state import get_account, get_inference, get_supply, get_validators
from node.ledger.transaction import (
    decode_transaction,
    encode_transaction,
    fee_estimate,
    hash_transaction_bytes,
    sign_transaction,
)

VALIDATORS = ("val0", "val1", "val2", "val3")
PEOPLE = ("ann", "ben", "cid", "owner", "provider", "user")
STAKE = 1_000 * OPEN
BALANCE = 10_000 * OPEN
PARAMS = Params(
    audit_probability_ppb=10**9,
    reveal_window_heights=6,
    reveal_window_ms=6_000,
    commit_window_heights=6,
    commit_window_ms=6_000,
    open_window_heights=6,
    open_window_ms=6_000,
    artefact_window_heights=5,
    artefact_window_ms=5_000,
)
BASE_HASH = digest("blob", b"base")
INDEX_ROOT = digest("blob", b"index")
PROMPT, OUTPUT = (104, 105), (33, 34, 35)
SALT = bytes(range(32))
VERIFIER = Verifier()


def seed(name: str) -> bytes:
    return digest("blob", name.encode())


def address(name: str) -> bytes:
    return public_key(seed(name))


def consensus_key(name: str) -> bytes:
    return public_key(seed("consensus " + name))


def genesis(params: Params = PARAMS, stakes: Sequence[int] = (STAKE,) * 4) -> Genesis:
    validators = tuple(
        ValidatorEntry(consensus_key(name), address(name), f"peer-{name}", stake, digest("blob", b"anchor"))
        for name, stake in zip(VALIDATORS, stakes, strict=True)
    )
    accounts = tuple((address(name), BALANCE) for name in (*PEOPLE, *VALIDATORS))
    return make_genesis("test", 1_000_000, validators, accounts, params)


@dataclass
class World:
    """State, commitments and clock of one replica, with the keys of everybody."""

    params: Params = PARAMS
    stakes: Sequence[int] = (STAKE,) * 4
    state: dict[bytes, bytes] = field(init=False)
    lthash: bytes = field(init=False)
    accumulator: Accumulator = field(default_factory=Accumulator)
    height: int = 0
    now_ms: int = 1_000_000
    sequence: int = 0
    chain: bytes = field(init=False)
    outcomes: list[BlockOutcome] = field(default_factory=list)
    inputs: list[tuple[BlockContext, tuple[Batch, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        start = genesis(self.params, self.stakes)
        self.chain = chain_id(start)
        self.state = genesis_state(start)
        self.lthash = lthash_of(self.state)

    # --- building ---

    def tx(self, name: str, body: Body, **overrides: int) -> bytes:
        """A transaction of `name` that would execute in the next block, unless `overrides` spoil it."""
        duty = body.KIND in DUTY_KINDS
        fields = {
            "nonce": 0 if duty else get_account(self.state, address(name)).nonce,
            "fee": 0 if duty else fee_estimate(self.params, body),
            "valid_until": self.height + 50,
        } | overrides
        return encode_transaction(sign_transaction(seed(name), chain_id=self.chain, body=body, **fields))

    def stored(self, tx: bytes, holders: Sequence[str] = VALIDATORS) -> StorageReceipts:
        body = decode_transaction(tx).body
        assert isinstance(body, ContributionSubmit | InferenceReveal)
        claim = storage_claim(body)
        return tuple((address(name), sign_storage_receipt(seed(name), claim, self.chain)) for name in holders)

    def id(self, tx: bytes) -> bytes:
        return hash_transaction_bytes(tx, self.chain)

    # --- running ---

    def context(
        self, proposer: str | None = None, reveal: bytes | None = None, step_ms: int = 1_000
    ) -> BlockContext:
        """The next block's, proposed by a validator in turn."""
        height, seated = self.height + 1, get_validators(self.state).validators
        turns = [entry.consensus_key for entry in seated]
        key = consensus_key(proposer) if proposer else turns[height % len(turns)]
        preimage = digest("blob", b"%d" % height) if reveal is None else reveal
        return BlockContext(
            self.chain,
            height,
            get_epoch(self.state).number,
            height,
            self.now_ms + step_ms,
            key,
            preimage,
            self.height,
        )

    def batch(self, *items: tuple[bytes, StorageReceipts] | bytes, author: str | None = None) -> Batch:
        """Signed by the first person that validates, unless an author is named."""
        self.sequence += 1
        if author is None:
            seated = get_validators(self.state).accounts
            author = next(name for name in (*VALIDATORS, *PEOPLE) if address(name) in seated)
        pairs = tuple((item, ()) if isinstance(item, bytes) else item for item in items)
        return sign_batch(seed(author), self.chain, self.sequence, pairs)

    def execute(self, context: BlockContext, batches: Sequence[Batch]) -> BlockOutcome:
        outcome = execute_block(self.state, self.lthash, self.accumulator, context, batches, check=VERIFIER)
        for key, value in outcome.changes.items():
            if value is None:
                del self.state[key]
            else:
                self.state[key] = value
        self.lthash, self.accumulator = outcome.lthash, outcome.accumulator
        self.height, self.now_ms = context.height, context.timestamp_ms
        self.outcomes.append(outcome)
        self.inputs.append((context, tuple(batches)))
        return outcome

    def block(
        self,
        *items: tuple[bytes, StorageReceipts] | bytes,
        context: BlockContext | None = None,
        author: str | None = None,
    ) -> BlockOutcome:
        batches = [self.batch(*items, author=author)] if items else []
        return self.execute(context or self.context(), batches)

    def blocks(self, count: int) -> None:
        for _ in range(count):
            self.block()

    def submit(self, name: str, body: Body, **overrides: int) -> Receipt:
        """Execute one transaction alone in a block, with storage receipts where its kind needs them."""
        tx = self.tx(name, body, **overrides)
        needs = isinstance(body, ContributionSubmit | InferenceReveal)
        outcome = self.block((tx, self.stored(tx) if needs else ()))
        return next(receipt for receipt in outcome.receipts if receipt.subject == self.id(tx))

    def accept(self, name: str, body: Body) -> bytes:
        """Execute a transaction that must succeed; returns its hash."""
        receipt = self.submit(name, body)
        assert receipt.status == ReceiptStatus.OK, receipt
        return receipt.subject

    # --- the story ---

    def contribution(self, datanet: bytes, text: str, licence: str = "MIT") -> ContributionSubmit:
        records = [list(text.encode()), [1, 2, 3]]
        blob = encode_records(records)
        return ContributionSubmit(
            datanet,
            records_root(records),
            len(records),
            token_count(records),
            digest("blob", blob),
            len(blob),
            licence,
        )

    def adapter_body(self, contributions: tuple[bytes, ...], name: str = "adapter") -> AdapterPublish:
        return AdapterPublish(
            name,
            BASE_HASH,
            contributions,
            b"\x90",
            digest("blob", name.encode()),
            digest("blob", b"file"),
            10,
            INDEX_ROOT,
        )

    def hold(self, artefact: bytes, index_root: bytes, holders: Sequence[str] = VALIDATORS) -> BlockOutcome:
        return self.block(*[self.tx(name, Held(artefact, index_root)) for name in holders])

    def active_adapter(self) -> bytes:
        """Datanet, three contributions, an active base and adapter, a bonded provider; returns the adapter's id."""
        datanet = self.accept("ann", DatanetCreate("docs", ("CC-BY-4.0", "MIT"), "what tests read"))
        contributions = tuple(
            self.accept(name, self.contribution(datanet, name)) for name in ("ann", "ben", "cid")
        )
        self.accept("owner", BaseRegister(BASE_HASH, "tiny"))
        self.hold(BASE_HASH, b"")
        adapter = self.accept("owner", self.adapter_body(contributions))
        self.hold(adapter, INDEX_ROOT)
        self.accept("provider", ProviderBond(self.params.provider_bond_min, "serves"))
        return adapter

    def voucher(self, adapter: bytes, sequence: int = 1, fee: int = OPEN) -> Voucher:
        return Voucher(
            self.chain,
            address("user"),
            address("provider"),
            sequence,
            adapter,
            prompt_commitment(SALT, PROMPT),
            16,
            fee,
            self.height + 50,
        )

    def record_body(self, voucher: Voucher) -> InferenceRecord:
        signature = sign_voucher(seed("user"), voucher)
        return InferenceRecord(voucher, signature, output_commitment(SALT, OUTPUT), len(PROMPT), len(OUTPUT))

    def record(self, adapter: bytes, sequence: int = 1, fee: int = OPEN) -> bytes:
        """A recorded inference; returns its id."""
        voucher = self.voucher(adapter, sequence, fee)
        self.accept("provider", self.record_body(voucher))
        return inference_id(voucher)

    def drawn(self, adapter: bytes, sequence: int = 1, fee: int = OPEN) -> bytes:
        """A recorded inference after its draw: two equal proposers of four are more than a third."""
        name = self.record(adapter, sequence, fee)
        while self.inference(name).status == InferenceStatus.RECORDED and self.height < 1_000:
            self.block()
        return name

    def revealed(self, adapter: bytes, sequence: int = 1, fee: int = OPEN) -> bytes:
        """A drawn inference whose provider answered."""
        name = self.drawn(adapter, sequence, fee)
        self.accept("provider", InferenceReveal(name, digest("blob", b"opening"), 100))
        return name

    def inference(self, name: bytes) -> Inference:
        found = get_inference(self.state, name)
        assert found is not None
        return found

    def shares(self, **parts: int) -> Shares:
        """Shares by contributor's name; "treasury" is what nobody explains."""
        named = {TREASURY if name == "treasury" else address(name): part for name, part in parts.items()}
        return tuple(sorted(named.items()))

    def commit_body(self, inference: bytes, answer: AttestOpen, name: str) -> AttestCommit:
        commitment = attestation_commitment(
            inference, answer.status_code, answer.result_hash, answer.shares, address(name), answer.salt
        )
        return AttestCommit(inference, answer.attempt, commitment)

    def answer(
        self, inference: bytes, result: bytes = b"right", status: int = AuditStatus.OK, attempt: int = 0
    ) -> AttestOpen:
        shares = self.shares(ann=600_000_000, ben=150_000_000, treasury=250_000_000) if not status else ()
        return AttestOpen(inference, attempt, status, digest("blob", result), shares, SALT)

    def attest(self, inference: bytes, answers: dict[str, AttestOpen]) -> None:
        """All commit in one block, wait for the window where some are missing, then open in one block."""
        self.block(
            *[self.tx(name, self.commit_body(inference, answer, name)) for name, answer in answers.items()]
        )
        self.until(inference, InferenceStatus.OPENING)
        self.block(*[self.tx(name, answer) for name, answer in answers.items()])

    def until(self, inference: bytes, status: InferenceStatus) -> None:
        """Empty blocks until the inference is there, at most forty."""
        for _ in range(40):
            if self.inference(inference).status == status:
                return
            self.block()
        raise AssertionError(f"still {InferenceStatus(self.inference(inference).status).name}")

    # --- looking ---

    def balance(self, name: str) -> int:
        return get_account(self.state, TREASURY if name == "treasury" else address(name)).balance

    def accounted(self) -> int:
        """Units found by scanning the whole state, which execution never does."""
        supply = get_supply(self.state)
        balances = sum(
            from_bytes(Account, value, 1_000).balance
            for key, value in self.state.items()
            if key.startswith(ACCOUNT)
        )
        bonds = sum(
            from_bytes(Provider, value, 1_000).bond
            for key, value in self.state.items()
            if key.startswith(PROVIDER)
        )
        assert bonds == supply.bonded
        if self.params.epoch_heights:
            stakes = [
                from_bytes(Stake, value, 1_000)
                for key, value in self.state.items()
                if key.startswith(STAKE_KEY)
            ]
            unbonding = sum(entry.amount for stake in stakes for entry in stake.unbondings)
            assert sum(stake.bonded for stake in stakes) + unbonding == supply.staked
        return balances + supply.escrowed + supply.bonded + supply.staked


def codes(outcome: BlockOutcome) -> list[str]:
    return [receipt.code for receipt in outcome.receipts]
