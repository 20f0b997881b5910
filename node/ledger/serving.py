"""Providers and paid calls: bond, record, the beacon's draw, the reveal of a drawn call."""

from __future__ import annotations

from dataclasses import replace

from consensus.digest import digest
from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import InferenceRecord, InferenceReveal, ProviderBond
from node.ledger.entries import (
    AUDITS_KEY,
    BEACON,
    DRAWS_KEY,
    INFERENCE,
    PROVIDER,
    SEQUENCE,
    ArtefactStatus,
    Deadline,
    Deadlines,
    DrawGroup,
    Draws,
    Inference,
    InferenceStatus,
    Provider,
    Reveal,
    VoucherSequence,
)
from node.ledger.environment import Environment, event
from node.ledger.errors import ExecutionError, FailedTransactionError, FailureCode
from node.ledger.money import bond, escrow
from node.ledger.openings import Voucher, inference_id
from node.ledger.overlay import Overlay
from node.ledger.params import PPB, PPM, Params
from node.ledger.state import (
    get_adapter,
    get_deadlines,
    get_draws,
    get_inference,
    get_provider,
    get_reveal,
    get_voucher_sequence,
)


def add_bond(
    overlay: Overlay, env: Environment, sender: bytes, body: ProviderBond, tx_hash: bytes
) -> list[Receipt]:
    """Add to the sender's bond; serving needs at least params.provider_bond_min."""
    bond(overlay, sender, body.amount)
    provider = get_provider(overlay, sender) or Provider(body.name)
    overlay.put_record(PROVIDER + sender, replace(provider, name=body.name, bond=provider.bond + body.amount))
    return []


def in_flight_max(params: Params, bond_units: int) -> tuple[int, int]:
    """(calls, units of fees) that a bond may have unsettled at once: burst-and-exit must cost more than it gains."""
    calls = params.in_flight_per_bond_max * (bond_units // params.provider_bond_min)
    return calls, bond_units * params.in_flight_fees_max_ppm // PPM


def record_inference(
    overlay: Overlay, env: Environment, sender: bytes, body: InferenceRecord, tx_hash: bytes
) -> list[Receipt]:
    """Take a voucher's fee into escrow and let the call wait for its draw."""
    voucher, inference = body.voucher, inference_id(body.voucher)
    _check_voucher(overlay, env, sender, body, inference)
    provider = _check_provider(overlay, env, sender, voucher.fee)
    adapter = get_adapter(overlay, voucher.adapter)
    if adapter is None:
        raise FailedTransactionError(FailureCode.UNKNOWN_ADAPTER, adapter=voucher.adapter)
    if adapter.status != ArtefactStatus.ACTIVE:
        raise FailedTransactionError(FailureCode.ADAPTER_NOT_ACTIVE, adapter=voucher.adapter)
    params = env.params
    if body.prompt_tokens > params.prompt_tokens_max:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, prompt_tokens=body.prompt_tokens)
    if voucher.new_tokens_max > params.new_tokens_max or body.output_tokens > voucher.new_tokens_max:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, output_tokens=body.output_tokens)
    escrow(overlay, voucher.user, voucher.fee)
    _await_draw(overlay, env, inference)
    overlay.put_record(SEQUENCE + voucher.user + sender, VoucherSequence(voucher.sequence))
    overlay.put_record(
        PROVIDER + sender,
        replace(
            provider,
            in_flight=provider.in_flight + 1,
            in_flight_fees=provider.in_flight_fees + voucher.fee,
            recorded=provider.recorded + 1,
        ),
    )
    overlay.put_record(
        INFERENCE + inference,
        Inference(
            InferenceStatus.RECORDED,
            voucher,
            body.output_commitment,
            body.prompt_tokens,
            body.output_tokens,
            env.context.height,
            env.context.timestamp_ms,
        ),
    )
    return []


def _check_voucher(
    overlay: Overlay, env: Environment, sender: bytes, body: InferenceRecord, inference: bytes
) -> None:
    voucher: Voucher = body.voucher
    if voucher.chain_id != env.context.chain_id:
        raise FailedTransactionError(FailureCode.VOUCHER_WRONG_CHAIN)
    if voucher.provider != sender:
        raise FailedTransactionError(FailureCode.VOUCHER_WRONG_PROVIDER, provider=voucher.provider)
    if env.context.height > voucher.valid_until:
        raise FailedTransactionError(FailureCode.VOUCHER_EXPIRED, valid_until=voucher.valid_until)
    if voucher.fee < env.params.inference_fee_min:
        raise FailedTransactionError(FailureCode.VOUCHER_FEE_TOO_LOW, fee=voucher.fee)
    last = get_voucher_sequence(overlay, voucher.user, sender)
    if voucher.sequence <= last:
        raise FailedTransactionError(FailureCode.VOUCHER_SEQUENCE_USED, last=last)
    if not env.check(voucher.user, inference, body.voucher_signature):
        raise FailedTransactionError(FailureCode.VOUCHER_BAD_SIGNATURE, user=voucher.user)


def _check_provider(overlay: Overlay, env: Environment, account: bytes, fee: int) -> Provider:
    provider = get_provider(overlay, account)
    if provider is None or provider.bond < env.params.provider_bond_min:
        raise FailedTransactionError(FailureCode.BOND_TOO_LOW, bond=provider.bond if provider else 0)
    calls_max, fees_max = in_flight_max(env.params, provider.bond)
    if provider.in_flight >= calls_max or provider.in_flight_fees + fee > fees_max:
        raise FailedTransactionError(
            FailureCode.IN_FLIGHT_FULL, in_flight=provider.in_flight, in_flight_fees=provider.in_flight_fees
        )
    return provider


def _await_draw(overlay: Overlay, env: Environment, inference: bytes) -> None:
    """Join the group of this height. All indices together are bounded here, at the only door in."""
    groups = get_draws(overlay)
    waiting = sum(len(group.inferences) for group in groups) + len(get_deadlines(overlay, AUDITS_KEY))
    if waiting >= env.params.inferences_open_max:
        raise FailedTransactionError(FailureCode.BACKLOG_FULL, waiting=waiting)
    if groups and groups[-1].height == env.context.height:
        last = replace(groups[-1], inferences=(*groups[-1].inferences, inference))
        groups = (*groups[:-1], last)
    else:
        groups = (*groups, DrawGroup(env.context.height, bytes(32), (), (inference,)))
    overlay.put_record(DRAWS_KEY, Draws(groups))


def draw_audits(overlay: Overlay, env: Environment) -> list[Receipt]:
    """Mix this block's beacon reveal into every group it may count for, and draw those that have heard enough.

    A reveal counts only if its header had executed the group's height: its proposer's preimage was fixed before, and the
    recorded call was committed before it was known. Once proposers of more than a third of the stake have
    revealed (at least one of them honest), the mix decides; it is never decided twice.
    """
    context = env.context
    if not context.beacon_reveal:
        return []
    _note_reveal(overlay, env)
    groups, events, waiting = get_draws(overlay), [], []
    deadlines = list(get_deadlines(overlay, AUDITS_KEY))
    for group in groups:
        if group.height <= context.executed_height:
            group = _mix(env, group)
            if _enough_proposers(env, group.proposers):
                for inference in group.inferences:
                    events.append(_draw(overlay, env, inference, group.mix, deadlines))
                continue
        waiting.append(group)
    if groups:
        overlay.put_record(DRAWS_KEY, Draws(tuple(waiting)))
        overlay.put_record(AUDITS_KEY, Deadlines(tuple(deadlines)))
    return events


def _note_reveal(overlay: Overlay, env: Environment) -> None:
    """Count the reveal on its chain: another anchor is another chain, and begins anew."""
    proposer = env.context.proposer
    entry, known = env.validators.by_consensus_key(proposer), get_reveal(overlay, proposer)
    anchor = entry.beacon_anchor if entry else bytes(32)
    count = known.count if known is not None and known.anchor == anchor else 0
    overlay.put_record(BEACON + proposer, Reveal(count + 1, env.context.beacon_reveal, anchor))


def _mix(env: Environment, group: DrawGroup) -> DrawGroup:
    """Mix the reveal in. Proposers that are validators no more are left out, so that a set's size bounds the group."""
    mix = digest("beacon-mix", group.mix + env.context.beacon_reveal, env.context.chain_id)
    keys = {entry.consensus_key for entry in env.validators.validators}
    known = tuple(key for key in group.proposers if key in keys and key != env.context.proposer)
    return replace(group, mix=mix, proposers=(*known, env.context.proposer))


def _enough_proposers(env: Environment, proposers: tuple[bytes, ...]) -> bool:
    stake = sum(entry.stake for entry in env.validators.validators if entry.consensus_key in proposers)
    return 3 * stake > env.validators.stake_total


def is_audited(params: Params, value: bytes) -> bool:
    """Whether a draw's value (32 bytes) falls below the audit probability."""
    return int.from_bytes(value[:8], "big") < params.audit_probability_ppb * 2**64 // PPB


def _draw(overlay: Overlay, env: Environment, name: bytes, mix: bytes, deadlines: list[Deadline]) -> Receipt:
    value = digest("audit-draw", mix + name, env.context.chain_id)
    inference = replace(existing(overlay, name), draw=value, drawn_height=env.context.height)
    if not is_audited(env.params, value):
        overlay.put_record(INFERENCE + name, replace(inference, status=InferenceStatus.UNAUDITED))
        land(overlay, inference.voucher)
        return event(name, SystemCode.UNAUDITED)
    inference = replace(inference, status=InferenceStatus.AWAITING_REVEAL)
    params = env.params
    deadlines.append(
        schedule(overlay, env, name, inference, params.reveal_window_heights, params.reveal_window_ms)
    )
    return event(name, SystemCode.DRAWN)


def reveal_inference(
    overlay: Overlay, env: Environment, sender: bytes, body: InferenceReveal, tx_hash: bytes
) -> list[Receipt]:
    """Take the provider's answer to a draw; the commit window opens with it."""
    inference = get_inference(overlay, body.inference)
    if inference is None:
        raise FailedTransactionError(FailureCode.UNKNOWN_INFERENCE, inference=body.inference)
    if inference.voucher.provider != sender:
        raise FailedTransactionError(FailureCode.NOT_THE_PROVIDER, provider=inference.voucher.provider)
    if inference.status != InferenceStatus.AWAITING_REVEAL:
        raise FailedTransactionError(FailureCode.REVEAL_NOT_AWAITED, status=inference.status)
    inference = replace(
        inference,
        status=InferenceStatus.COMMITTING,
        blob_digest=body.blob_digest,
        blob_bytes=body.blob_bytes,
    )
    params = env.params
    put_deadline(
        overlay,
        schedule(
            overlay, env, body.inference, inference, params.commit_window_heights, params.commit_window_ms
        ),
    )
    return []


def existing(overlay: Overlay, name: bytes) -> Inference:
    """An inference that an index names, so that must be there."""
    inference = get_inference(overlay, name)
    if inference is None:
        raise ExecutionError("an index names an inference that the state does not hold", inference=name)
    return inference


def schedule(
    overlay: Overlay, env: Environment, name: bytes, inference: Inference, heights: int, ms: int
) -> Deadline:
    """Write an inference with its next deadline, counted from this block; the index's entry is the caller's to set."""
    height, at_ms = env.context.height + heights, env.context.timestamp_ms + ms
    overlay.put_record(INFERENCE + name, replace(inference, deadline_height=height, deadline_ms=at_ms))
    return Deadline(name, height, at_ms)


def put_deadline(overlay: Overlay, deadline: Deadline) -> None:
    """Change the deadline under which the end of a block looks at an inference, keeping the index's order."""
    entries = get_deadlines(overlay, AUDITS_KEY)
    entries = tuple(deadline if entry.id == deadline.id else entry for entry in entries)
    overlay.put_record(AUDITS_KEY, Deadlines(entries))


def land(overlay: Overlay, voucher: Voucher) -> None:
    """The call of this voucher is no longer in flight."""
    provider = get_provider(overlay, voucher.provider)
    if provider is None or not provider.in_flight:
        raise ExecutionError("a call in flight has no provider", provider=voucher.provider)
    landed = replace(
        provider,
        in_flight=provider.in_flight - 1,
        in_flight_fees=provider.in_flight_fees - voucher.fee,
    )
    overlay.put_record(PROVIDER + voucher.provider, landed)
