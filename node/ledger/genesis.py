"""The first state: parameters, validators, balances, bases. Its digest is the chain id.

As a table (TOML or JSON), keys and hashes in lowercase hex, amounts as integers of units::

    chain = "openledger-devnet"
    timestamp_ms = 1700000000000
    bases = ["<32-byte hash>"]              # optional: bases that every validator is shipped with, active from the start
    [params]                                # optional: names of node.ledger.params, absent ones take their defaults
    audit_probability_ppb = 500000000
    [[validators]]
    consensus_key = "<hex>"; account = "<hex>"; peer_id = "16Uiu2..."; stake = 1000000000000; beacon_anchor = "<hex>"
    [[accounts]]
    address = "<hex>"; balance = 1000000000000

Unknown keys are refused everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consensus.digest import digest
from node.ledger.entries import (
    ACCOUNT,
    BASE,
    HEAD_KEY,
    PARAMS_KEY,
    SUPPLY_KEY,
    VALIDATORS_KEY,
    VALIDATORS_MAX,
    Account,
    ArtefactStatus,
    BaseModel,
    Head,
    Supply,
    ValidatorEntry,
    ValidatorSet,
)
from node.ledger.errors import GenesisError, LedgerError
from node.ledger.fields import U63_MAX, fixed, many, nested, row, text, to_bytes, uint, validate
from node.ledger.params import (
    AMOUNT_MAX,
    DEFAULTS,
    Params,
    check_params,
    params_from_dict,
    params_to_dict,
)
from node.ledger.results import ADDRESS_BYTES, HASH_BYTES, TREASURY
from node.ledger.stakes import genesis_stakes

CHAIN_NAME_BYTES_MAX = 64
ACCOUNTS_MAX = 100_000
BASES_MAX = 64


@dataclass(frozen=True, slots=True)
class Genesis:
    """What everybody starts from. Lists are kept in ascending order, so that equal content has one chain id."""

    chain: str = field(metadata=text(CHAIN_NAME_BYTES_MAX))
    timestamp_ms: int = field(metadata=uint(U63_MAX))
    params: Params = field(metadata=nested(Params))
    validators: tuple[ValidatorEntry, ...] = field(metadata=many(nested(ValidatorEntry), VALIDATORS_MAX, 1))
    accounts: tuple[tuple[bytes, int], ...] = field(
        metadata=many(row(fixed(ADDRESS_BYTES), uint(AMOUNT_MAX)), ACCOUNTS_MAX)
    )
    bases: tuple[bytes, ...] = field(default=(), metadata=many(fixed(HASH_BYTES), BASES_MAX))


def make_genesis(
    chain: str,
    timestamp_ms: int,
    validators: tuple[ValidatorEntry, ...],
    accounts: tuple[tuple[bytes, int], ...],
    params: Params = DEFAULTS,
    bases: tuple[bytes, ...] = (),
) -> Genesis:
    """Sort and check; raises :class:`GenesisError` (or :class:`ParameterError`)."""
    genesis = Genesis(
        chain,
        timestamp_ms,
        check_params(params),
        tuple(sorted(validators, key=lambda entry: entry.consensus_key)),
        tuple(sorted(accounts)),
        tuple(sorted(bases)),
    )
    try:
        validate(genesis)
        for entry in genesis.validators:
            validate(entry)
    except LedgerError as error:
        raise GenesisError(error.message, str(error.fields.get("where", ""))) from error
    _check_distinct("consensus_key", [entry.consensus_key for entry in genesis.validators])
    _check_distinct("account", [entry.account for entry in genesis.validators])
    _check_distinct("peer_id", [entry.peer_id for entry in genesis.validators])
    _check_distinct("address", [address for address, _ in genesis.accounts])
    _check_distinct("bases", list(genesis.bases))
    if any(entry.account == TREASURY for entry in genesis.validators):
        raise GenesisError("a validator's account is the treasury", "validators.account")
    if any(entry.leader_weight for entry in genesis.validators):
        raise GenesisError("leaders of the first epoch take turns by stake", "validators.leader_weight")
    if params.epoch_heights and min(entry.stake for entry in genesis.validators) < params.stake_min:
        raise GenesisError(f"a stake below stake_min, {params.stake_min} units", "validators.stake")
    if supply_total(genesis) > AMOUNT_MAX:
        raise GenesisError(f"more than {AMOUNT_MAX} units in all", "accounts")
    return genesis


def _check_distinct(where: str, values: list[bytes] | list[str]) -> None:
    if len(set(values)) != len(values):
        raise GenesisError(f"{where} is given twice", where)


def supply_total(genesis: Genesis) -> int:
    """Units at the start: all balances and all stakes."""
    return sum(balance for _, balance in genesis.accounts) + sum(entry.stake for entry in genesis.validators)


def chain_id(genesis: Genesis) -> bytes:
    """The 32 bytes that bind every signature and hash to this chain."""
    return digest("genesis", to_bytes(genesis))


def genesis_state(genesis: Genesis) -> dict[bytes, bytes]:
    """The state at height 0; its digest is ``state_digest(lthash_of(state), chain_id)``."""
    supply = Supply(supply_total(genesis), staked=sum(entry.stake for entry in genesis.validators))
    records: dict[bytes, object] = {
        PARAMS_KEY: genesis.params,
        SUPPLY_KEY: supply,
        VALIDATORS_KEY: ValidatorSet(genesis.validators),
        HEAD_KEY: Head(0, genesis.timestamp_ms),
    }
    for address, balance in genesis.accounts:
        records[ACCOUNT + address] = Account(balance)
    for base in genesis.bases:
        records[BASE + base] = BaseModel(ArtefactStatus.ACTIVE, TREASURY, "genesis", 0)
    if genesis.params.epoch_heights:
        records |= genesis_stakes(ValidatorSet(genesis.validators), genesis.timestamp_ms)
    return {key: record if isinstance(record, bytes) else to_bytes(record) for key, record in records.items()}


def genesis_to_dict(genesis: Genesis) -> dict[str, object]:
    """The table described above, ready for TOML or JSON."""
    return {
        "chain": genesis.chain,
        "timestamp_ms": genesis.timestamp_ms,
        "bases": [base.hex() for base in genesis.bases],
        "params": params_to_dict(genesis.params),
        "validators": [
            {
                "consensus_key": entry.consensus_key.hex(),
                "account": entry.account.hex(),
                "peer_id": entry.peer_id,
                "stake": entry.stake,
                "beacon_anchor": entry.beacon_anchor.hex(),
            }
            for entry in genesis.validators
        ],
        "accounts": [{"address": address.hex(), "balance": balance} for address, balance in genesis.accounts],
    }


def genesis_from_dict(values: Mapping[str, object]) -> Genesis:
    """Read the table; raises :class:`GenesisError` or :class:`ParameterError` for anything else."""
    table = _table(
        values, "genesis", {"chain", "timestamp_ms", "validators", "accounts"}, {"params", "bases"}
    )
    validators = tuple(
        ValidatorEntry(
            _hex(entry, "consensus_key"),
            _hex(entry, "account"),
            _text(entry, "peer_id"),
            _int(entry, "stake"),
            _hex(entry, "beacon_anchor"),
        )
        for entry in _tables(
            table, "validators", {"consensus_key", "account", "peer_id", "stake", "beacon_anchor"}
        )
    )
    accounts = tuple(
        (_hex(entry, "address"), _int(entry, "balance"))
        for entry in _tables(table, "accounts", {"address", "balance"})
    )
    bases = table.get("bases", [])
    if not isinstance(bases, list):
        raise GenesisError("bases is not a list", "bases")
    params = table.get("params", {})
    if not isinstance(params, Mapping):
        raise GenesisError("params is not a table", "params")
    return make_genesis(
        _text(table, "chain"),
        _int(table, "timestamp_ms"),
        validators,
        accounts,
        params_from_dict(params),
        tuple(_hex({"bases": base}, "bases") for base in bases),
    )


def _table(value: object, where: str, required: set[str], optional: set[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise GenesisError(f"{where} is not a table", where)
    unknown = sorted(str(key) for key in value if key not in required | optional)
    missing = sorted(required - set(value))
    if unknown or missing:
        raise GenesisError(f"{where}: unknown keys {unknown}, missing keys {missing}", where)
    return value


def _tables(table: Mapping[str, object], name: str, required: set[str]) -> list[Mapping[str, object]]:
    entries = table[name]
    if not isinstance(entries, list):
        raise GenesisError(f"{name} is not a list", name)
    return [_table(entry, f"{name}[{number}]", required, set()) for number, entry in enumerate(entries)]


def _hex(table: Mapping[str, object], name: str) -> bytes:
    value = table[name]
    if not isinstance(value, str) or len(value) != 64 or value.strip("0123456789abcdef"):
        raise GenesisError(f"{name} is not 64 lowercase hex digits", name)
    return bytes.fromhex(value)


def _text(table: Mapping[str, object], name: str) -> str:
    value = table[name]
    if not isinstance(value, str):
        raise GenesisError(f"{name} is not text", name)
    return value


def _int(table: Mapping[str, object], name: str) -> int:
    value = table[name]
    if type(value) is not int:
        raise GenesisError(f"{name} is not an integer", name)
    return value
