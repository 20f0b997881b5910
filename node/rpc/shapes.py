"""The shapes of RPC results, shared by the server, which builds them, and the client, which reads them.

Bytes are lowercase hex, amounts (units) decimal strings, heights, counts and times JSON integers. `node.rpc.schemas` turns
these classes into the JSON Schemas that ``rpc.discover`` serves; an `Annotated` string carries its pattern.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

Hash = Annotated[str, "^[0-9a-f]{64}$"]
"""32 bytes: a hash, a key, an address."""

Hex = Annotated[str, "^(?:[0-9a-f]{2})*$"]
"""Bytes of any length."""

Amount = Annotated[str, "^(?:0|[1-9][0-9]*)$"]
"""Units."""

TransactionStatus = Literal["ok", "failed", "invalid"]


class Peer(TypedDict):
    """A connected peer."""

    peer_id: str
    address: str
    validator: bool


class Status(TypedDict):
    """``status``. ``height`` is the executed height and ``state_digest`` the state there."""

    version: str
    chain_id: Hash
    moniker: str
    peer_id: str
    validator: bool
    consensus_key: Hash | None
    height: int
    height_committed: int
    round: int
    epoch: int
    state_digest: Hash
    syncing: bool
    ready: bool
    not_ready_reason: str
    mempool_transactions: int
    peers: list[Peer]


class Payout(TypedDict):
    """Units paid out of escrow; ``role`` is one of `node.ledger.entries.Role` in lower case."""

    role: str
    address: Hash
    amount: Amount


class Transaction(TypedDict):
    """``tx``, and each transaction of a ``block``.

    ``status`` and ``height`` are null while it is pending; ``code`` is the ledger's, "" when ok. ``kind`` is "" and
    ``sender`` null for bytes that are no transaction (a validator may have put them into a batch).
    """

    tx_hash: Hash
    state: Literal["pending", "committed"]
    status: TransactionStatus | None
    height: int | None
    code: str
    message: str
    fee: Amount
    kind: str
    sender: Hash | None
    nonce: int
    raw: Hex


class Event(TypedDict):
    """A step that the ledger took by itself; ``subject`` is an inference or an artefact."""

    subject: Hex
    code: str
    payouts: list[Payout]
    burned: Amount


class Block(TypedDict):
    """``block``. ``state_digest`` is the state after this block."""

    height: int
    block_hash: Hash
    parent_hash: Hex
    epoch: int
    round: int
    proposer: Hex
    timestamp_ms: int
    height_executed: int
    state_digest_executed: Hash
    receipts_root: Hash
    state_digest: Hash
    transactions: list[Transaction]
    events: list[Event]


class Account(TypedDict):
    """``account``. ``nonce`` is that of the state, ``nonce_next`` counts what is pending at this node."""

    address: Hash
    balance: Amount
    nonce: int
    nonce_next: int


class Validator(TypedDict):
    """One validator. ``leader_weight`` counts where the set's seed is not zeros."""

    consensus_key: Hash
    account: Hash
    peer_id: str
    stake: Amount
    beacon_anchor: Hash
    leader_weight: Amount


class Validators(TypedDict):
    """``validators``: the set in force, ascending by consensus key; ``set_hash`` is what consensus calls it."""

    epoch: int
    set_hash: Hash
    seed: Hash
    stake_total: Amount
    validators: list[Validator]


class Epoch(TypedDict):
    """``epoch``: it starts after the block ``start_height``.

    ``next_set_hash`` and ``next_validators`` (accounts) are null and empty until the next set is frozen, at
    ``frozen_height``. ``candidates`` are the accounts among which a set is chosen.
    """

    number: int
    start_height: int
    start_ms: int
    frozen_height: int | None
    next_set_hash: Hash | None
    next_validators: list[Hash]
    candidates: list[Hash]
    slashed: list[Hash]


class Unbonding(TypedDict):
    """Stake that secured epochs up to ``epoch`` and is paid out when the unbonding windows after its end are over."""

    epoch: int
    amount: Amount


class Registration(TypedDict):
    """A validator's registration; ``jailed_height`` is null for one that is not jailed."""

    consensus_key: Hash
    peer_id: str
    beacon_anchor: Hash
    anchor_spent: bool
    bonded: Amount
    leaving: bool
    jailed_height: int | None
    slashed: Amount
    unbonding: list[Unbonding]


class Stake(TypedDict):
    """``stake``: null for an account that is not registered as a validator."""

    address: Hash
    registration: Registration | None


class Contribution(TypedDict):
    """``contribution``.

    ``number`` is its place in the order of commitment; ``erased`` how many of its records were erased. Once their bytes are
    gone, ``blob_remaining`` names what is left of the blob; null before.
    """

    id: Hash
    contributor: Hash
    datanet: Hash
    records_root: Hash
    record_count: int
    token_count: int
    blob_digest: Hash
    blob_bytes: int
    licence: str
    height: int
    number: int
    erased: int
    blob_remaining: Hash | None


class Erasure(TypedDict):
    """Record numbers erased at ``height``; ``done_height`` is the block from which on their bytes go, null before it."""

    height: int
    done_height: int | None
    records: list[int]


class Erasures(TypedDict):
    """``erasures``: what was erased of a contribution, oldest first."""

    contribution: Hash
    erasures: list[Erasure]


class SpanPlace(TypedDict):
    """A record in which a span stands: the contribution, the record's number in it, the first of its tokens there."""

    contribution: Hash
    contributor: Hash
    record: int
    offset: int


class Span(TypedDict):
    """Tokens ``start`` to ``start + length`` of the text match records of the datanet word for word.

    ``occurrences`` counts all places, ``records`` the distinct records (null past 4,096 occurrences), of which ``places`` names
    the earliest. ``surprise`` is in 1/1024 bit: by how much chance would miss it. A match says nothing of causes.
    """

    datanet: Hash
    start: int
    length: int
    occurrences: int
    records: int | None
    surprise: int
    places: list[SpanPlace]


class Searched(TypedDict):
    """A datanet whose first ``contributions`` were searched, of ``contribution_count``."""

    datanet: Hash
    contributions: int
    contribution_count: int


class Spans(TypedDict):
    """``spans`` and ``inference_spans``: a page of the maximal matching spans of ``tokens`` tokens, long and rare first."""

    tokens: int
    searched: list[Searched]
    span_count: int
    first: int
    spans: list[Span]


class Datanet(TypedDict):
    """``datanet``: with the first of its contributions; ``datanet_contributions`` pages through all."""

    id: Hash
    creator: Hash
    name: str
    licences: list[str]
    description: str
    height: int
    contribution_count: int
    record_count: int
    token_count: int
    contributions: list[Contribution]


class ContributionPage(TypedDict):
    """``datanet_contributions``: contributions number ``first`` and following, in order of inclusion."""

    datanet: Hash
    first: int
    contribution_count: int
    contributions: list[Contribution]


class Base(TypedDict):
    """``base``. ``status`` is pending, active or expired; ``held_stake`` the stake of the validators in ``held``."""

    base_hash: Hash
    status: str
    registrant: Hash
    name: str
    height: int
    held: list[Hash]
    held_stake: Amount
    stake_total: Amount


class Adapter(TypedDict):
    """``adapter``. ``contributions`` are in training order, that of commitment; ``recipe`` is canonical bytes.

    ``trained_on_erased`` counts training records that were erased since: with one the training cannot be repeated.
    """

    id: Hash
    status: str
    owner: Hash
    name: str
    base_hash: Hash
    contributions: list[Hash]
    recipe: Hex
    adapter_hash: Hash
    blob_digest: Hash
    blob_bytes: int
    index_root: Hash
    trained_on_erased: int
    height: int
    held: list[Hash]
    held_stake: Amount
    stake_total: Amount


class Provider(TypedDict):
    """``provider``."""

    address: Hash
    name: str
    bond: Amount
    in_flight: int
    recorded: int
    slashed: Amount


class Voucher(TypedDict):
    """What the user signed."""

    user: Hash
    provider: Hash
    sequence: int
    adapter: Hash
    prompt_commitment: Hash
    new_tokens_max: int
    fee: Amount
    valid_until: int


class Share(TypedDict):
    """A part of 10^9; the treasury's (64 zeros) is what no record explains."""

    address: Hash
    share: int


class Opening(TypedDict):
    """One validator's opened attestation: in which attempt, and what it says."""

    account: Hash
    attempt: int
    status: str
    result_hash: Hash


class Receipt(TypedDict):
    """``receipt``: the whole life of one inference.

    ``result_status``, ``result_hash`` and ``shares`` are what more than 2/3 of stake attested, null, null and empty before.
    ``audited`` is null until the beacon has drawn. ``committed`` are the validators with a commitment in this attempt.
    """

    inference: Hash
    status: str
    audited: bool | None
    height: int
    timestamp_ms: int
    voucher: Voucher
    output_commitment: Hash
    prompt_tokens: int
    output_tokens: int
    drawn_height: int
    deadline_height: int
    deadline_ms: int
    blob_digest: Hash | None
    attempt: int
    committed: list[Hash]
    attesters: list[Opening]
    result_status: str | None
    result_hash: Hash | None
    shares: list[Share]
    payouts: list[Payout]
    burned: Amount
    bond_burned: Amount
    closed_height: int


class Supply(TypedDict):
    """``supply``: units; ``free`` is what accounts hold."""

    total: Amount
    burned: Amount
    escrowed: Amount
    bonded: Amount
    staked: Amount
    free: Amount


class VoucherSequence(TypedDict):
    """``voucher_sequence``: the highest sequence recorded between a user and a provider, 0 before the first."""

    user: Hash
    provider: Hash
    sequence: int


class SubmittedTransaction(TypedDict):
    """``tx_submit``."""

    tx_hash: Hash


class StoredBlob(TypedDict):
    """``blob_put``."""

    digest: Hash
    bytes: int


class Blob(TypedDict):
    """``blob_get``."""

    digest: Hash
    bytes: int
    data: Hex


Params = dict[str, int | Amount]
"""``params``: by name."""


class BlockEvent(TypedDict):
    """``/events``: a block was executed."""

    height: int
    block_hash: Hash
    state_digest: Hash
    proposer: Hex
    round: int
    timestamp_ms: int
    transaction_count: int
    receipt_count: int


class TransactionEvent(TypedDict):
    """``/events``: a transaction of an executed block; `tx` shows the rest of it."""

    height: int
    tx_hash: Hash
    kind: str
    sender: Hash | None
    nonce: int
    status: TransactionStatus
    code: str
    fee: Amount


class ReceiptEvent(TypedDict):
    """``/events``: a step that the ledger took by itself in an executed block; ``status`` is its code."""

    height: int
    subject: Hex
    status: str
    payouts: list[Payout]
    burned: Amount
