"""`execute_block`: the ledger's one transition. Begin of block, transactions in their order, end of block.

`block_steps` is the same with pauses, for who has other things to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial

from attribution.merkle import merkle_root
from consensus.crypto import verify
from node.ledger.accumulator import Accumulator, accumulator_root, append
from node.ledger.admission import check_envelope
from node.ledger.audits import end_audits
from node.ledger.batch import (
    Batch,
    StorageReceipts,
    batch_digest,
    storage_claim,
    verify_batch,
    verify_storage_receipt,
)
from node.ledger.block import BlockContext, BlockOutcome, Receipt, ReceiptStatus, encode_receipt
from node.ledger.bodies import DUTY_KINDS, ContributionSubmit, InferenceReveal
from node.ledger.entries import ACCOUNT, BATCH_WINDOW, HEAD_KEY, PARAMS_KEY, Account, BatchWindow, Head
from node.ledger.environment import Environment
from node.ledger.epochs import check_epoch, end_epoch, next_validators_hash
from node.ledger.erasure import end_erasures
from node.ledger.errors import (
    ExecutionError,
    FailedTransactionError,
    InvalidCode,
    InvalidTransactionError,
    MalformedError,
)
from node.ledger.lthash import apply_changes, state_digest
from node.ledger.models import end_artefacts
from node.ledger.money import credit, debit
from node.ledger.overlay import Overlay, StateReader
from node.ledger.reading import Read, read_transaction
from node.ledger.results import TREASURY
from node.ledger.serving import draw_audits
from node.ledger.state import (
    get_account,
    get_batch_window,
    get_head,
    get_params,
    get_validators,
    put_batch_window,
)
from node.ledger.transaction import SignatureCheck, Transaction, hash_transaction_bytes
from node.ledger.transfers import AtOnce, transfers_at_once
from node.ledger.transitions import TRANSITIONS

STEP_SIGNATURES = 256
"""Of transactions and storage receipts between two pauses: some 4 ms of transfers, 16 where none is known. Shorter steps cost more than
they give (docs/adr/023)."""


def execute_block(
    reader: StateReader,
    lthash: bytes,
    accumulator: Accumulator,
    context: BlockContext,
    batches: Sequence[Batch],
    *,
    check: SignatureCheck = verify,
    read: Read | None = None,
) -> BlockOutcome:
    """Apply one block to the state behind `reader` and return what changed; nothing is written.

    `lthash` (2,048 bytes) and `accumulator` are those after the previous block. `check` judges every signature and
    may remember good ones (`consensus.crypto.Verifier`); it must answer as `consensus.crypto.verify` would. `read` reads
    transactions as `reading.read_transaction` on this chain would, and may remember those that it read.
    Raises :class:`ExecutionError` where the caller's context does not follow the state; bad batches and
    transactions never raise.
    """
    steps = block_steps(reader, lthash, accumulator, context, batches, check=check, read=read)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outcome: BlockOutcome = done.value
            return outcome


def block_steps(
    reader: StateReader,
    lthash: bytes,
    accumulator: Accumulator,
    context: BlockContext,
    batches: Sequence[Batch],
    *,
    check: SignatureCheck = verify,
    read: Read | None = None,
) -> Generator[None, None, BlockOutcome]:
    """`execute_block`, pausing after every `STEP_SIGNATURES`. The state behind `reader` may not change before it has returned."""
    overlay = Overlay(reader)
    env = _environment(overlay, accumulator, context, check)
    check_epoch(overlay, env)
    receipts = draw_audits(overlay, env)
    skipped = []
    read = read or partial(read_transaction, chain_id=context.chain_id)
    at_once = transfers_at_once(overlay, env)
    left = 0
    for batch in batches:
        if not _admit_batch(overlay, env, batch):
            skipped.append(batch_digest(batch, context.chain_id))
            continue
        for data, stored in batch.items:
            if left <= 0:
                yield
                left = STEP_SIGNATURES
            left -= 1 + len(stored)
            receipts += _execute_transaction(overlay, env, batch.author, data, stored, read, at_once)
    yield
    receipts += end_artefacts(overlay, env)
    receipts += end_audits(overlay, env)
    receipts += end_erasures(overlay, env)
    receipts += end_epoch(overlay, env)
    overlay.put_record(HEAD_KEY, Head(context.height, context.timestamp_ms))
    outcome = _outcome(reader, overlay, lthash, accumulator, context, tuple(receipts), tuple(skipped))
    return replace(outcome, next_validators_hash=next_validators_hash(overlay))


def _environment(
    overlay: Overlay, accumulator: Accumulator, context: BlockContext, check: SignatureCheck
) -> Environment:
    head, validators = get_head(overlay), get_validators(overlay)
    if context.height != head.height + 1 or accumulator.count != head.height:
        raise ExecutionError("not the next block", height=context.height, head=head.height)
    if context.timestamp_ms < head.timestamp_ms or not 0 <= context.executed_height < context.height:
        raise ExecutionError("a header that no voter accepts", height=context.height)
    if len(context.beacon_reveal) not in (0, 32):
        raise ExecutionError("a beacon reveal has 32 bytes", height=context.height)
    proposer = validators.by_consensus_key(context.proposer)
    if proposer is None:
        raise ExecutionError("the proposer is no validator", proposer=context.proposer)
    return Environment(context, get_params(overlay), validators, proposer.account, check)


def _admit_batch(overlay: Overlay, env: Environment, batch: Batch) -> bool:
    """Whether a validator signed this batch and it was never executed; then its sequence is used up.

    Sequences may arrive out of order and may have gaps: the last `BATCH_WINDOW` executed ones are remembered, and what
    is not above the lowest of those is closed. So nobody can charge an author twice for one batch.
    """
    if env.validators.by_account(batch.author) is None:
        return False
    window = get_batch_window(overlay, batch.author)
    if batch.sequence <= window.floor or batch.sequence in window.executed:
        return False
    if not verify_batch(batch, env.context.chain_id, env.check):
        return False
    executed = sorted((*window.executed, batch.sequence))
    floor = window.floor
    if len(executed) > BATCH_WINDOW:
        floor = executed.pop(0)
    put_batch_window(overlay, batch.author, BatchWindow(floor, tuple(executed)))
    return True


def _execute_transaction(
    overlay: Overlay,
    env: Environment,
    author: bytes,
    data: bytes,
    stored: StorageReceipts,
    read: Read,
    at_once: AtOnce,
) -> list[Receipt]:
    """One transaction's receipt, followed by those of the steps that it set off."""
    kind, chain_id = 0, env.context.chain_id
    try:
        known = read(data)
        transaction = known.transaction
        kind = transaction.kind
        if (done := at_once(known, len(data))) is not None:
            return [done]
        check_envelope(overlay, env.params, transaction, len(data), chain_id, env.context.height)
        _check_storage(env, transaction, stored)
        if not env.check(*known.signed):
            raise InvalidTransactionError(InvalidCode.BAD_SIGNATURE, sender=transaction.sender)
        return _perform(overlay, env, transaction, known.tx_hash)
    except (MalformedError, InvalidTransactionError) as error:
        paid = _charge_author(overlay, env, author, len(data))
        return [
            Receipt(hash_transaction_bytes(data, chain_id), ReceiptStatus.INVALID, kind, error.code, paid)
        ]


def _perform(overlay: Overlay, env: Environment, transaction: Transaction, tx_hash: bytes) -> list[Receipt]:
    """Take nonce and fee, then try the body on an overlay of its own."""
    sender, kind = transaction.sender, transaction.kind
    if kind not in DUTY_KINDS:
        account = get_account(overlay, sender)  # `check_envelope` found that it can pay
        paid = Account(account.balance - transaction.fee, account.nonce + 1)
        overlay.put_record(ACCOUNT + sender, paid)
        credit(overlay, env.proposer_account, transaction.fee)
    attempt = Overlay(overlay)
    try:
        events = TRANSITIONS[kind](attempt, env, sender, transaction.body, tx_hash)
    except FailedTransactionError as error:
        return [Receipt(tx_hash, ReceiptStatus.FAILED, kind, error.code, transaction.fee)]
    overlay.merge(attempt)
    return [Receipt(tx_hash, ReceiptStatus.OK, kind, "", transaction.fee), *events]


def _check_storage(env: Environment, transaction: Transaction, stored: StorageReceipts) -> None:
    """Bytes that everybody will need must be on the disks of > 2/3 of stake before the ledger speaks of them."""
    body = transaction.body
    if not isinstance(body, ContributionSubmit | InferenceReveal):
        return
    claim, chain_id = storage_claim(body), env.context.chain_id
    holders: set[bytes] = set()
    for account, signature in stored:
        if account in holders or env.validators.by_account(account) is None:
            continue
        if verify_storage_receipt(account, signature, claim, chain_id, env.check):
            holders.add(account)
    if not env.validators.is_quorum(frozenset(holders)):
        raise InvalidTransactionError(InvalidCode.MISSING_STORAGE_RECEIPTS, holders=len(holders))


def _charge_author(overlay: Overlay, env: Environment, author: bytes, size_bytes: int) -> int:
    """Bytes that were ordered for nothing cost the validator that ordered them, to the treasury."""
    paid = min(get_account(overlay, author).balance, env.params.fee_per_byte * size_bytes)
    debit(overlay, author, paid)
    credit(overlay, TREASURY, paid)
    return paid


def _outcome(
    reader: StateReader,
    overlay: Overlay,
    lthash: bytes,
    accumulator: Accumulator,
    context: BlockContext,
    receipts: tuple[Receipt, ...],
    skipped: tuple[bytes, ...],
) -> BlockOutcome:
    """Keep the writes that differ from before, and fold them into the two commitments."""
    changes: dict[bytes, bytes | None] = {}
    differences = []
    written = overlay.changes
    for key in sorted(written):
        old, new = reader.get(key), written[key]
        if old != new:
            if key == PARAMS_KEY:
                # Audits read the attribution floor from the state, each validator at a height of its own: a change
                # would make honest ones disagree. Whoever allows one has to pin it in each inference first.
                raise ExecutionError("parameters are set by the genesis alone", height=context.height)
            changes[key] = new
            differences.append((key, old, new))
    encoded = tuple([encode_receipt(receipt) for receipt in receipts])
    root = merkle_root(encoded)
    accumulator = append(accumulator, root)
    lthash = apply_changes(lthash, differences)
    return BlockOutcome(
        context.height,
        changes,
        receipts,
        root,
        accumulator,
        accumulator_root(accumulator),
        lthash,
        state_digest(lthash, context.chain_id),
        skipped,
        receipts_encoded=encoded,
    )
