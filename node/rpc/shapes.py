"""The shapes of RPC results, shared by the server, which builds them, and the client, which reads them.

Bytes are lowercase hex, amounts (units) decimal strings, heights, counts and times JSON integers.
"""

from __future__ import annotations

from typing import Literal, TypedDict

TransactionStatus = Literal["ok", "failed", "invalid"]


class Peer(TypedDict):
    """A connected peer."""

    peer_id: str
    address: str
    validator: bool


class Status(TypedDict):
    """``status``. ``height`` is the executed height and ``state_digest`` the state there."""

    version: str
    chain_id: str
    moniker: str
    peer_id: str
    validator: bool
    consensus_key: str | None
    height: int
    height_committed: int
    round: int
    epoch: int
    state_digest: str
    syncing: bool
    ready: bool
    not_ready_reason: str
    mempool_transactions: int
    peers: list[Peer]


class Payout(TypedDict):
    """Units paid out of escrow; ``role`` is one of `node.ledger.state.Role` in lower case."""

    role: str
    address: str
    amount: str


class Transaction(TypedDict):
    """``tx``, and each transaction of a ``block``.

    ``status`` and ``height`` are null while it is pending; ``code`` is the ledger's, "" when ok. ``kind`` is "" and
    ``sender`` null for bytes that are no transaction (a validator may have put them into a batch).
    """

    tx_hash: str
    state: Literal["pending", "committed"]
    status: TransactionStatus | None
    height: int | None
    code: str
    message: str
    fee: str
    kind: str
    sender: str | None
    nonce: int
    raw: str


class Event(TypedDict):
    """A step that the ledger took by itself; ``subject`` is an inference or an artefact."""

    subject: str
    code: str
    payouts: list[Payout]
    burned: str


class Block(TypedDict):
    """``block``. ``state_digest`` is the state after this block."""

    height: int
    block_hash: str
    parent_hash: str
    epoch: int
    round: int
    proposer: str
    timestamp_ms: int
    height_executed: int
    state_digest_executed: str
    receipts_root: str
    state_digest: str
    transactions: list[Transaction]
    events: list[Event]


class Account(TypedDict):
    """``account``. ``nonce`` is that of the state, ``nonce_next`` counts what is pending at this node."""

    address: str
    balance: str
    nonce: int
    nonce_next: int


class Validator(TypedDict):
    """One validator."""

    consensus_key: str
    account: str
    peer_id: str
    stake: str


class Validators(TypedDict):
    """``validators``."""

    stake_total: str
    validators: list[Validator]


class Contribution(TypedDict):
    """``contribution``."""

    id: str
    contributor: str
    datanet: str
    records_root: str
    record_count: int
    token_count: int
    blob_digest: str
    blob_bytes: int
    licence: str
    height: int


class Datanet(TypedDict):
    """``datanet``: with the first of its contributions; ``datanet_contributions`` pages through all."""

    id: str
    creator: str
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

    datanet: str
    first: int
    contribution_count: int
    contributions: list[Contribution]


class Base(TypedDict):
    """``base``. ``status`` is pending, active or expired; ``held_stake`` the stake of the validators in ``held``."""

    base_hash: str
    status: str
    registrant: str
    name: str
    height: int
    held: list[str]
    held_stake: str
    stake_total: str


class Adapter(TypedDict):
    """``adapter``. ``contributions`` are in training order; ``recipe`` is canonical bytes."""

    id: str
    status: str
    owner: str
    name: str
    base_hash: str
    contributions: list[str]
    recipe: str
    adapter_hash: str
    blob_digest: str
    blob_bytes: int
    index_root: str
    height: int
    held: list[str]
    held_stake: str
    stake_total: str


class Provider(TypedDict):
    """``provider``."""

    address: str
    name: str
    bond: str
    in_flight: int
    recorded: int
    slashed: str


class Voucher(TypedDict):
    """What the user signed."""

    user: str
    provider: str
    sequence: int
    adapter: str
    prompt_commitment: str
    new_tokens_max: int
    fee: str
    valid_until: int


class Share(TypedDict):
    """A part of 10^9; the treasury's (64 zeros) is what no record explains."""

    address: str
    share: int


class Opening(TypedDict):
    """One validator's opened attestation: in which attempt, and what it says."""

    account: str
    attempt: int
    status: str
    result_hash: str


class Receipt(TypedDict):
    """``receipt``: the whole life of one inference.

    ``result_status``, ``result_hash`` and ``shares`` are what more than 2/3 of stake attested, null, null and empty before.
    ``audited`` is null until the beacon has drawn. ``committed`` are the validators with a commitment in this attempt.
    """

    inference: str
    status: str
    audited: bool | None
    height: int
    timestamp_ms: int
    voucher: Voucher
    output_commitment: str
    prompt_tokens: int
    output_tokens: int
    drawn_height: int
    deadline_height: int
    deadline_ms: int
    blob_digest: str | None
    attempt: int
    committed: list[str]
    attesters: list[Opening]
    result_status: str | None
    result_hash: str | None
    shares: list[Share]
    payouts: list[Payout]
    burned: str
    bond_burned: str
    closed_height: int


class Supply(TypedDict):
    """``supply``: units; ``free`` is what accounts hold."""

    total: str
    burned: str
    escrowed: str
    bonded: str
    staked: str
    free: str


class VoucherSequence(TypedDict):
    """``voucher_sequence``: the highest sequence recorded between a user and a provider, 0 before the first."""

    user: str
    provider: str
    sequence: int


class SubmittedTransaction(TypedDict):
    """``tx_submit``."""

    tx_hash: str


class StoredBlob(TypedDict):
    """``blob_put``."""

    digest: str
    bytes: int


class Blob(TypedDict):
    """``blob_get``."""

    digest: str
    bytes: int
    data: str
