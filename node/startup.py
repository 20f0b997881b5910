"""What happens once before a node runs: its keys, its chain's genesis, what an earlier run left."""

import json
from collections.abc import Mapping
from typing import Any

from consensus.config import ConsensusConfig
from consensus.recovery import ExecutionResult, RecoveredState
from consensus.safety import record_from_bytes
from consensus.types import Block, genesis_block
from node.config import Config
from node.directory import Identity
from node.errors import ConfigInvalid
from node.home import Home
from node.keys import load_seed
from node.ledger.accumulator import Accumulator, accumulator_root, encode_accumulator
from node.ledger.genesis import Genesis, chain_id, genesis_from_dict, genesis_state
from node.ledger.lthash import lthash_of, state_digest
from node.storage.chain import ChainStore, ExecutedHead
from node.storage.errors import StorageError

GENESIS_BYTES_MAX = 4 << 20

BEACON_REVEALS = 1 << 18
"""Blocks a validator can propose with one anchor: 24 days of a block each two seconds among four validators."""


def load_identity(home: Home, config: Config) -> Identity:
    """Read this node's keys; raises KeyFileInvalid."""
    validator = config.node.validator
    return Identity(
        node_seed=load_seed(home.node_key_path),
        account_seed=load_seed(home.account_key_path),
        consensus_seed=load_seed(home.consensus_key_path) if validator else None,
        beacon_seed=load_seed(home.beacon_key_path) if validator else None,
    )


def load_genesis(home: Home) -> Genesis:
    """Read the chain's genesis; raises ConfigInvalid, GenesisError, ParameterError."""
    data = home.genesis_path.read_bytes()
    if len(data) > GENESIS_BYTES_MAX:
        raise ConfigInvalid(str(home.genesis_path), f"at most {GENESIS_BYTES_MAX} bytes", len(data))
    try:
        values: Any = json.loads(data)
    except ValueError as error:
        raise ConfigInvalid(str(home.genesis_path), f"JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise ConfigInvalid(str(home.genesis_path), "a JSON object")
    return genesis_from_dict(values)


def open_chain(store: ChainStore, genesis: Genesis) -> Block:
    """Write the genesis into a new store, or check that an old one is of this chain; returns the genesis block."""
    chain = chain_id(genesis)
    state = genesis_state(genesis)
    lthash = lthash_of(state)
    digest = state_digest(lthash, chain)
    accumulator = Accumulator()
    root = accumulator_root(accumulator)
    block = genesis_block(chain, digest, timestamp_ms=genesis.timestamp_ms, receipts_accumulator=root)
    stored = store.chain_id()
    if stored is None:
        head = ExecutedHead(0, block.id, digest, root, lthash, encode_accumulator(accumulator))
        store.create(chain, block, state, head)
    elif stored != chain:
        raise StorageError(
            f"the database is of chain {stored.hex()}, genesis.json of {chain.hex()}: one home, one chain"
        )
    return block


def recovered_state(store: ChainStore, config: ConsensusConfig) -> RecoveredState:
    """Read back what the replica has to know of its earlier life."""
    height = store.committed_height()
    committed = store.block_at(height)
    if committed is None:
        raise StorageError(f"the committed block at height {height} is missing")
    record = store.safety_record()
    executed = store.executed().height
    results = []
    for past in range(max(1, executed - config.lag_max), executed + 1):
        outcome = store.outcome(past)
        if outcome is not None:
            results.append(ExecutionResult(past, outcome.state_digest, outcome.accumulator_root))
    return RecoveredState(
        record=None if record is None else record_from_bytes(record),
        certificates=store.certificates(),
        committed=committed,
        proof=store.proof_at(height),
        reveals=store.reveals(),
        blocks=store.uncommitted_blocks(),
        executed=tuple(results),
    )


def consensus_config(config: Config) -> ConsensusConfig:
    """The replica's settings out of the node's configuration."""
    section = config.consensus
    return ConsensusConfig(
        timeout_ms_base=section.timeout_ms_base,
        timeout_ms_floor=section.timeout_ms_base,
        timeout_ms_max=section.timeout_ms_max,
        heartbeat_ms=section.heartbeat_ms,
        drift_ms_max=section.drift_ms_max,
    )
