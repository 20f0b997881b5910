"""Closing an audited call: settle by shares, refund, or slash. Exact in every unit; see docs/economics.md."""

from __future__ import annotations

from dataclasses import replace

from node.ledger.block import Receipt, SystemCode
from node.ledger.entries import INFERENCE, PROVIDER, Inference, InferenceStatus, Payout, Role, ValidatorSet
from node.ledger.environment import Environment, event
from node.ledger.errors import ExecutionError
from node.ledger.money import burn_bond, release, split
from node.ledger.overlay import Overlay
from node.ledger.params import PPM, Params
from node.ledger.results import TREASURY, Shares
from node.ledger.serving import land
from node.ledger.state import get_adapter, get_provider


def fee_parts(params: Params, fee: int) -> tuple[int, tuple[int, int, int, int]]:
    """(burned, (owner, provider, validators, contributors)) in units; the five sum to `fee`."""
    burned = fee * params.burn_ppm // PPM
    owner, provider, validators, contributors = split(
        fee - burned,
        (
            params.split_owner_ppm,
            params.split_provider_ppm,
            params.split_validators_ppm,
            params.split_contributors_ppm,
        ),
    )
    return burned, (owner, provider, validators, contributors)


def validator_payouts(validators: ValidatorSet, amount: int, paid: frozenset[bytes]) -> list[Payout]:
    """`amount` by stake over all validators; the part of one that is not in `paid` goes to the treasury."""
    parts = split(amount, [entry.stake for entry in validators.validators])
    payouts, absent = [], 0
    for entry, part in zip(validators.validators, parts, strict=True):
        if entry.account in paid:
            payouts.append(Payout(Role.VALIDATOR, entry.account, part))
        else:
            absent += part
    if absent:
        payouts.append(Payout(Role.ABSENT_VALIDATOR, TREASURY, absent))
    return payouts


def contributor_payouts(amount: int, shares: Shares) -> list[Payout]:
    """`amount` by attribution shares; the treasury's share is what no record explains."""
    parts = split(amount, [share for _, share in shares])
    return [
        Payout(Role.UNATTRIBUTED if address == TREASURY else Role.CONTRIBUTOR, address, part)
        for (address, _), part in zip(shares, parts, strict=True)
    ]


def settle(overlay: Overlay, env: Environment, name: bytes, inference: Inference) -> Receipt:
    """Pay a call whose output the quorum found right: burn, owner, provider, validators, contributors."""
    voucher, result = inference.voucher, inference.result
    adapter = get_adapter(overlay, voucher.adapter)
    if adapter is None or result is None:
        raise ExecutionError("a call to settle has no adapter or no result", inference=name)
    burned, (owner, provider, validators, contributors) = fee_parts(env.params, voucher.fee)
    in_time = frozenset(
        entry.account
        for entry in inference.openings
        if entry.attempt == 0 and entry.result == inference.winner - 1
    )
    payouts = [
        Payout(Role.OWNER, adapter.owner, owner),
        Payout(Role.PROVIDER, voucher.provider, provider),
        *validator_payouts(env.validators, validators, in_time),
        *contributor_payouts(contributors, result.shares),
    ]
    return _close(
        overlay, env, name, inference, InferenceStatus.SETTLED, SystemCode.SETTLED, tuple(payouts), burned
    )


def refund(overlay: Overlay, env: Environment, name: bytes, inference: Inference) -> Receipt:
    """Give the whole fee back to the user."""
    payouts = (Payout(Role.REFUND, inference.voucher.user, inference.voucher.fee),)
    return _close(overlay, env, name, inference, InferenceStatus.REFUNDED, SystemCode.REFUNDED, payouts, 0)


def slash(overlay: Overlay, env: Environment, name: bytes, inference: Inference, code: str) -> Receipt:
    """Burn the provider's whole bond and give the user the fee back."""
    account = inference.voucher.provider
    provider = get_provider(overlay, account)
    if provider is None:
        raise ExecutionError("a call has no provider", inference=name)
    burn_bond(overlay, provider.bond)
    overlay.put_record(
        PROVIDER + account, replace(provider, bond=0, slashed=provider.slashed + provider.bond)
    )
    inference = replace(inference, bond_burned=provider.bond)
    payouts = (Payout(Role.REFUND, inference.voucher.user, inference.voucher.fee),)
    return _close(overlay, env, name, inference, InferenceStatus.SLASHED, code, payouts, 0)


def _close(
    overlay: Overlay,
    env: Environment,
    name: bytes,
    inference: Inference,
    status: InferenceStatus,
    code: str,
    payouts: tuple[Payout, ...],
    burned: int,
) -> Receipt:
    release(overlay, [(payout.address, payout.amount) for payout in payouts], burned)
    land(overlay, inference.voucher)
    closed = replace(
        inference, status=status, payouts=payouts, burned=burned, closed_height=env.context.height
    )
    overlay.put_record(INFERENCE + name, closed)
    return event(name, code, payouts, burned + closed.bond_burned)
