"""The ledger's parameters: integers with bounds, held in the state, set by the genesis.

Amounts are in units (1 OPEN = 10^9 units), parts in ppm (10^-6) or ppb (10^-9). Every window is given in heights
**and** milliseconds and has passed only when both have. What each parameter does to a payment is in docs/economics.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from node.ledger.errors import MalformedError, ParameterError
from node.ledger.fields import Rule, from_bytes, to_bytes, uint

OPEN = 10**9
"""Units in one OPEN."""

PPM = 10**6
PPB = 10**9
AMOUNT_MAX = 2**63 - 1
PARAMS_BYTES_MAX = 4096
EPOCHS_KEPT_MAX = 2048
"""Ended epochs that are remembered while stake of them unbonds: `check_params` keeps the windows within it."""

_FEE = uint(10**6 * OPEN)
_SPLIT = uint(PPM)
_HEIGHTS = uint(10**7, 1)
_HEIGHTS_OR_OFF = uint(10**7)
_MILLISECONDS = uint(366 * 86_400_000)


@dataclass(frozen=True, slots=True)
class Params:
    """Everything governed. A field's metadata holds its bounds; `check_params` holds the rules between fields."""

    fee_per_byte: int = field(default=1_000, metadata=_FEE)
    fee_transfer: int = field(default=100_000, metadata=_FEE)
    fee_datanet_create: int = field(default=10_000_000, metadata=_FEE)
    fee_contribution: int = field(default=1_000_000, metadata=_FEE)
    fee_base_register: int = field(default=10_000_000, metadata=_FEE)
    fee_adapter_publish: int = field(default=10_000_000, metadata=_FEE)
    fee_provider_bond: int = field(default=100_000, metadata=_FEE)
    fee_inference_record: int = field(default=100_000, metadata=_FEE)
    fee_inference_reveal: int = field(default=100_000, metadata=_FEE)
    valid_until_heights_max: int = field(default=100_000, metadata=_HEIGHTS)
    nonce_gap_max: int = field(default=256, metadata=uint(65_536))

    inference_fee_min: int = field(default=10_000_000, metadata=_FEE)
    prompt_tokens_max: int = field(default=1_024, metadata=uint(32_768, 1))
    new_tokens_max: int = field(default=512, metadata=uint(32_768, 1))
    audit_probability_ppb: int = field(default=500_000_000, metadata=uint(PPB))
    reveal_window_heights: int = field(default=30, metadata=_HEIGHTS)
    reveal_window_ms: int = field(default=30_000, metadata=_MILLISECONDS)
    commit_window_heights: int = field(default=30, metadata=_HEIGHTS)
    commit_window_ms: int = field(default=30_000, metadata=_MILLISECONDS)
    open_window_heights: int = field(default=30, metadata=_HEIGHTS)
    open_window_ms: int = field(default=30_000, metadata=_MILLISECONDS)
    artefact_window_heights: int = field(default=600, metadata=_HEIGHTS)
    artefact_window_ms: int = field(default=600_000, metadata=_MILLISECONDS)

    burn_ppm: int = field(default=50_000, metadata=_SPLIT)
    split_owner_ppm: int = field(default=200_000, metadata=_SPLIT)
    split_provider_ppm: int = field(default=200_000, metadata=_SPLIT)
    split_validators_ppm: int = field(default=100_000, metadata=_SPLIT)
    split_contributors_ppm: int = field(default=500_000, metadata=_SPLIT)

    provider_bond_min: int = field(default=100 * OPEN, metadata=uint(AMOUNT_MAX, 1))
    in_flight_per_bond_max: int = field(default=64, metadata=uint(1_024, 1))
    in_flight_fees_max_ppm: int = field(default=PPM, metadata=uint(100 * PPM, 1))
    """Most fees a provider may have unsettled, in ppm of its bond."""
    inferences_open_max: int = field(default=1_024, metadata=uint(2_048, 1))
    artefacts_pending_max: int = field(default=64, metadata=uint(1_024, 1))
    contributions_per_adapter_max: int = field(default=256, metadata=uint(512, 1))
    contributors_per_adapter_max: int = field(default=64, metadata=uint(128, 1))
    attribution_floor_ppm: int = field(default=120_000, metadata=_SPLIT)
    """Cosine, in ppm, that a record's score must exceed before it is paid."""

    epoch_heights: int = field(default=0, metadata=_HEIGHTS_OR_OFF)
    """Least length of an epoch; 0: one epoch for ever, and no staking transaction succeeds."""
    epoch_ms: int = field(default=0, metadata=_MILLISECONDS)
    snapshot_heights: int = field(default=0, metadata=_HEIGHTS_OR_OFF)
    """Distance of snapshots of the state; 0: none."""
    unbonding_heights: int = field(default=0, metadata=_HEIGHTS_OR_OFF)
    """From the end of the last epoch that a stake secured to its return."""
    unbonding_ms: int = field(default=0, metadata=_MILLISECONDS)
    evidence_heights: int = field(default=0, metadata=_HEIGHTS_OR_OFF)
    """From the end of the offence's epoch; never longer than the unbonding, so that there is stake to slash."""
    evidence_ms: int = field(default=0, metadata=_MILLISECONDS)
    jail_heights: int = field(default=0, metadata=_HEIGHTS_OR_OFF)
    jail_ms: int = field(default=0, metadata=_MILLISECONDS)
    stake_min: int = field(default=0, metadata=uint(AMOUNT_MAX))
    slash_equivocation_ppm: int = field(default=0, metadata=_SPLIT)
    """Part of a stake that one epoch's conflicting signatures burn, in ppm."""
    fee_validator_register: int = field(default=10_000_000, metadata=_FEE)
    fee_validator_bond: int = field(default=100_000, metadata=_FEE)
    fee_validator_unbond: int = field(default=100_000, metadata=_FEE)
    fee_validator_leave: int = field(default=100_000, metadata=_FEE)
    fee_validator_unjail: int = field(default=1_000_000, metadata=_FEE)
    fee_validator_anchor: int = field(default=1_000_000, metadata=_FEE)
    fee_evidence: int = field(default=100_000, metadata=_FEE)


DEFAULTS = Params()


def check_params(params: Params) -> Params:
    """Return `params` if every value is within its bounds and the splits sum to one; raises :class:`ParameterError`."""
    for entry in dataclasses.fields(params):
        try:
            entry.metadata["check"](getattr(params, entry.name), entry.name)
        except MalformedError as error:
            raise ParameterError(error.message, entry.name) from error
    split = (
        params.split_owner_ppm
        + params.split_provider_ppm
        + params.split_validators_ppm
        + params.split_contributors_ppm
    )
    if split != PPM:
        raise ParameterError(f"the four splits sum to {split} ppm, not {PPM}", "split_owner_ppm")
    _check_staking(params)
    return params


def _check_staking(params: Params) -> None:
    """Rules between epochs, evidence and unbonding."""
    for name, evidence, unbonding in (
        ("evidence_heights", params.evidence_heights, params.unbonding_heights),
        ("evidence_ms", params.evidence_ms, params.unbonding_ms),
    ):
        if evidence > unbonding:
            raise ParameterError("evidence would come after the stake is gone", name)
    if not params.epoch_heights:
        return
    if not params.stake_min:
        raise ParameterError("with epochs a validator needs a least stake", "stake_min")
    # An epoch takes at least epoch_heights and epoch_ms, so no more of them than this end within a window.
    heights = -(-params.unbonding_heights // params.epoch_heights)
    times = -(-params.unbonding_ms // params.epoch_ms) if params.epoch_ms else params.unbonding_ms
    if heights > EPOCHS_KEPT_MAX - 2:
        raise ParameterError(f"over {EPOCHS_KEPT_MAX - 2} epochs long", "unbonding_heights")
    if times > EPOCHS_KEPT_MAX - 2:
        raise ParameterError(f"over {EPOCHS_KEPT_MAX - 2} epochs long", "unbonding_ms")


def params_from_dict(values: Mapping[str, object]) -> Params:
    """Parameters from a table of a genesis file: absent names take their defaults, unknown names are refused."""
    known = {entry.name for entry in dataclasses.fields(Params)}
    for name in values:
        if name not in known:
            raise ParameterError(f"unknown parameter {name!r}", str(name))
    for name, value in values.items():
        if type(value) is not int:
            raise ParameterError(f"{name} is not an integer", name)
    return check_params(dataclasses.replace(DEFAULTS, **values))  # type: ignore[arg-type]


def params_to_dict(params: Params) -> dict[str, int]:
    """All parameters by name."""
    return {entry.name: getattr(params, entry.name) for entry in dataclasses.fields(params)}


def params_bounds() -> dict[str, Rule]:
    """The check of each parameter by name, for tools that offer to change one."""
    return {entry.name: entry.metadata for entry in dataclasses.fields(Params)}


def encode_params(params: Params) -> bytes:
    """Canonical bytes."""
    return to_bytes(params)


@lru_cache(maxsize=8)
def decode_params(data: bytes) -> Params:
    """Read parameters from state bytes; remembered, since every transaction asks for them."""
    return from_bytes(Params, data, PARAMS_BYTES_MAX)
