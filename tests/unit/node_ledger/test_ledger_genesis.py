import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from node.ledger.entries import ArtefactStatus
from node.ledger.errors import ExecutionError, GenesisError, LedgerError, ParameterError
from node.ledger.genesis import (
    chain_id,
    genesis_from_dict,
    genesis_state,
    genesis_to_dict,
    make_genesis,
    supply_total,
)
from node.ledger.params import (
    DEFAULTS,
    PPB,
    Params,
    check_params,
    decode_params,
    encode_params,
    params_bounds,
    params_from_dict,
    params_to_dict,
)
from node.ledger.serving import in_flight_max
from node.ledger.settlement import fee_parts
from node.ledger.state import get_account, get_base, get_head, get_params, get_supply, get_validators
from tests.unit.node_ledger.world import BALANCE, PARAMS, STAKE, address, genesis


def test_a_genesis_survives_json_with_the_same_chain_id() -> None:
    start = replace(genesis(), bases=(bytes([9]) * 32,))
    again = genesis_from_dict(json.loads(json.dumps(genesis_to_dict(start))))
    assert again == start
    assert chain_id(again) == chain_id(start)


def test_a_genesis_can_be_written_by_hand_as_toml_with_default_parameters() -> None:
    text = f"""
    chain = "mine"
    timestamp_ms = 5
    [[validators]]
    consensus_key = "{"0a" * 32}"
    account = "{"0b" * 32}"
    peer_id = "peer"
    stake = 7
    beacon_anchor = "{"0c" * 32}"
    [[accounts]]
    address = "{"0d" * 32}"
    balance = 11
    """
    start = genesis_from_dict(tomllib.loads(text))
    assert start.params == DEFAULTS
    assert supply_total(start) == 18


def test_the_order_of_a_table_does_not_change_the_chain() -> None:
    values = genesis_to_dict(genesis())
    turned = dict(reversed(list(values.items())))
    turned["accounts"] = list(reversed(values["accounts"]))  # type: ignore[call-overload]
    turned["validators"] = list(reversed(values["validators"]))  # type: ignore[call-overload]
    assert chain_id(genesis_from_dict(turned)) == chain_id(genesis())


def test_every_value_of_a_genesis_changes_the_chain() -> None:
    start = genesis()
    (first, *others), (account, *accounts) = start.validators, start.accounts
    variants = [
        start,
        replace(start, chain="other"),
        replace(start, timestamp_ms=start.timestamp_ms + 1),
        replace(start, params=replace(PARAMS, burn_ppm=1)),
        replace(start, validators=(replace(first, stake=first.stake + 1), *others)),
        replace(start, validators=(replace(first, peer_id="x"), *others)),
        replace(start, accounts=((account[0], account[1] + 1), *accounts)),
        replace(start, bases=(bytes(32),)),
    ]
    assert len({chain_id(variant) for variant in variants}) == len(variants)


def test_the_first_state_holds_what_the_genesis_says() -> None:
    base = bytes([9]) * 32
    state = genesis_state(replace(genesis(), bases=(base,)))
    assert get_account(state, address("ann")).balance == BALANCE
    assert get_supply(state).total == 10 * BALANCE + 4 * STAKE
    assert get_supply(state).staked == 4 * STAKE
    assert get_params(state) == PARAMS
    assert get_head(state).height == 0
    assert [entry.consensus_key for entry in get_validators(state).validators] == sorted(
        entry.consensus_key for entry in genesis().validators
    )
    found = get_base(state, base)
    assert found is not None
    assert found.status == ArtefactStatus.ACTIVE


def test_a_state_without_a_genesis_is_an_error() -> None:
    with pytest.raises(ExecutionError):
        get_params({})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("surprise",), 1),
        (("chain",), ""),
        (("chain",), 5),
        (("timestamp_ms",), -1),
        (("timestamp_ms",), "5"),
        (("timestamp_ms",), True),
        (("validators",), []),
        (("validators",), {}),
        (("validators", 0, "surprise"), 1),
        (("validators", 0, "stake"), 0),
        (("validators", 0, "stake"), 1.5),
        (("validators", 0, "account"), "00" * 32),
        (("validators", 0, "account"), "zz" * 32),
        (("validators", 0, "account"), "AA" * 32),
        (("validators", 0, "peer_id"), ""),
        (("accounts", 0, "balance"), -1),
        (("accounts", 0, "balance"), 2**63),
        (("accounts", 0), 5),
        (("bases",), "aa"),
        (("bases",), ["aa"]),
        (("params",), []),
        (("params", "surprise"), 1),
        (("params", "burn_ppm"), 10**6 + 1),
        (("params", "burn_ppm"), "5"),
        (("params", "burn_ppm"), True),
        (("params", "split_owner_ppm"), 200_001),
    ],
    ids=str,
)
def test_bad_values_are_refused_with_a_typed_error(path: tuple[str | int, ...], value: object) -> None:
    values = genesis_to_dict(genesis())
    at: object = values
    for step in path[:-1]:
        at = at[step]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    with pytest.raises((GenesisError, ParameterError)) as refused:
        genesis_from_dict(values)
    assert refused.value.code in {"bad-genesis", "bad-parameter"}


@pytest.mark.parametrize("name", ["chain", "timestamp_ms", "validators", "accounts"])
def test_missing_keys_are_refused(name: str) -> None:
    values = genesis_to_dict(genesis())
    del values[name]
    with pytest.raises(GenesisError):
        genesis_from_dict(values)


def test_what_must_be_distinct_is_and_the_supply_is_bounded() -> None:
    start = genesis()
    first, *others = start.validators
    for validators, accounts in (
        ((first, *others, replace(first, account=bytes([3]) * 32, peer_id="x")), start.accounts),
        ((first, *others, replace(first, consensus_key=bytes([3]) * 32, peer_id="x")), start.accounts),
        (
            (first, *others, replace(first, consensus_key=bytes([3]) * 32, account=bytes([3]) * 32)),
            start.accounts,
        ),
        (start.validators, (*start.accounts, start.accounts[0])),
        (start.validators, ((bytes([3]) * 32, 2**63 - 1), (bytes([4]) * 32, 1))),
    ):
        with pytest.raises(GenesisError):
            make_genesis("x", 0, tuple(validators), tuple(accounts))


def test_parameters_survive_bytes_and_tables() -> None:
    assert decode_params(encode_params(PARAMS)) == PARAMS
    assert params_from_dict(params_to_dict(PARAMS)) == PARAMS
    assert params_bounds().keys() == params_to_dict(DEFAULTS).keys()


def test_the_published_defaults_are_within_their_bounds() -> None:
    assert check_params(Params()) == DEFAULTS
    assert DEFAULTS.burn_ppm == 50_000
    assert DEFAULTS.audit_probability_ppb == 500_000_000


def test_an_error_shows_its_fields() -> None:
    error = LedgerError("some-code", "what", place=b"\x01", count=3)
    assert str(error) == "what (place=01, count=3)"
    assert error.code == "some-code"
    assert str(LedgerError("bare")) == "bare"


def test_the_document_states_every_parameter_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "economics.md").read_text()
    for name, value in params_to_dict(DEFAULTS).items():
        assert f"| `{name}` | {value:,} |" in text


def test_cheating_on_everything_in_flight_costs_more_than_it_gains_at_the_defaults() -> None:
    """docs/economics.md, audit arithmetic: S >= M * g / (1 - (1 - p)^M), in integers, for every M a bond allows."""
    bond = DEFAULTS.provider_bond_min
    calls_max, fees_max = in_flight_max(DEFAULTS, bond)
    _, (owner, provider, _, _) = fee_parts(DEFAULTS, fees_max)
    missed_ppb = PPB - DEFAULTS.audit_probability_ppb
    for calls in range(1, calls_max + 1):
        # with the denominators multiplied out: S * (10^9M - missed^M) >= gain * 10^9M
        assert bond * (PPB**calls - missed_ppb**calls) >= (owner + provider) * PPB**calls
