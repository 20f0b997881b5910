"""What happens once before a node runs: its keys, its chain's genesis, what an earlier run left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from consensus.config import ConsensusConfig
from consensus.core import RESULTS_MAX
from consensus.errors import CodecError
from consensus.recovery import ExecutionResult, RecoveredState
from consensus.safety import SafetyRecord, record_from_bytes
from consensus.types import Block, genesis_block
from node.config import Config
from node.directory import Identity
from node.epochs import EpochRow
from node.errors import ConfigInvalid
from node.home import Home, write_atomic
from node.keys import PlainKey, check_folder, load_seed, read_key
from node.ledger.accumulator import Accumulator, accumulator_root, encode_accumulator
from node.ledger.entries import ValidatorSet
from node.ledger.genesis import Genesis, chain_id, genesis_from_dict, genesis_state
from node.ledger.lthash import lthash_of, state_digest
from node.passphrase import node_unlock
from node.storage.chain import ChainStore, ExecutedHead
from node.storage.errors import SafetyRecordUnusable, StorageError
from node.storage.guard import SafetyGuard, first_mark

log = structlog.get_logger(__name__)

GENESIS_BYTES_MAX = 4 << 20

BEACON_REVEALS = 1 << 18
"""Blocks a validator can propose with one anchor: 24 days of a block each two seconds among four validators."""


def load_identity(home: Home, config: Config) -> Identity:
    """Read this node's keys, plain or encrypted; raises KeyFileInvalid, PassphraseInvalid."""
    validator = config.node.validator
    unlock = node_unlock(home.root, config.keys.passphrase_file)
    check_folder(home.node_key_path.parent)
    if isinstance(read_key(home.node_key_path), PlainKey):
        log.info(
            "keys_in_the_clear",
            folder=str(home.node_key_path.parent),
            remedy="openledger keys encrypt --node",
        )
    remote = _signer_key(home, config)
    return Identity(
        node_seed=load_seed(home.node_key_path, unlock),
        account_seed=load_seed(home.account_key_path, unlock),
        consensus_seed=load_seed(home.consensus_key_path, unlock) if validator and not remote else None,
        beacon_seed=load_seed(home.beacon_key_path, unlock) if validator else None,
        signer_key=remote,
    )


def _signer_key(home: Home, config: Config) -> bytes:
    """The validator id that a signer elsewhere signs with; empty where this process signs, or is no validator."""
    section = config.signer
    if not section.socket or not config.node.validator:
        return b""
    if not section.public_key:
        raise ConfigInvalid(
            "signer.public_key", "the key that signs at signer.socket, 64 lowercase hex digits"
        )
    if home.consensus_key_path.exists():
        # One key and two records: whichever process used this one would know nothing of what the other signed.
        raise ConfigInvalid(
            "signer.socket",
            f"no key in {home.consensus_key_path} beside it; `openledger signer init --take-over` moves it",
        )
    return bytes.fromhex(section.public_key)


def load_genesis(home: Home) -> Genesis:
    """Read the chain's genesis; raises ConfigInvalid, GenesisError, ParameterError."""
    return read_genesis(home.genesis_path)


def check_retention(genesis: Genesis, retain_heights: int) -> None:
    """Refuse a node that forgets blocks on a chain without snapshots: once all do so, nobody can join any more. Raises ConfigInvalid."""
    if retain_heights and not genesis.params.snapshot_heights:
        raise ConfigInvalid(
            "storage.retain_heights",
            "0, which keeps all blocks: this chain makes no snapshots (its genesis has snapshot_heights = 0), so who joins "
            "has to execute every block from the first",
            retain_heights,
        )


def read_genesis(path: Path) -> Genesis:
    """Read a chain's genesis.json; raises as `load_genesis` does, and OSError."""
    with path.open("rb") as file:
        data = file.read(GENESIS_BYTES_MAX + 1)
    if len(data) > GENESIS_BYTES_MAX:
        raise ConfigInvalid(str(path), f"at most {GENESIS_BYTES_MAX} bytes")
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(str(path), f"JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise ConfigInvalid(str(path), "a JSON object")
    return genesis_from_dict(values)


def first_head(genesis: Genesis) -> tuple[Block, dict[bytes, bytes], ExecutedHead]:
    """Return the chain's first block, the state after it, and how far the ledger has come with it."""
    chain = chain_id(genesis)
    state = genesis_state(genesis)
    lthash = lthash_of(state)
    digest = state_digest(lthash, chain)
    accumulator = Accumulator()
    root = accumulator_root(accumulator)
    block = genesis_block(chain, digest, timestamp_ms=genesis.timestamp_ms, receipts_accumulator=root)
    return block, state, ExecutedHead(0, block.id, digest, root, lthash, encode_accumulator(accumulator))


def open_chain(store: ChainStore, genesis: Genesis) -> Block:
    """Write the genesis into a new store, or check that an old one is of this chain; returns the genesis block."""
    block, state, head = first_head(genesis)
    chain, stored = block.header.chain_id, store.chain_id()
    if stored is None:
        store.create(chain, block, state, head)
    elif stored != chain:
        raise StorageError(
            f"the database is of chain {stored.hex()}, genesis.json of {chain.hex()}: one home, one chain"
        )
    return block


def check_validator(identity: Identity, validators: ValidatorSet) -> None:
    """Raise ConfigInvalid unless the genesis names this home's keys as those of one validator; observers pass."""
    if identity.consensus_key is None:
        return
    for entry in validators.validators:
        if entry.consensus_key == identity.consensus_key:
            if entry.account != identity.account:
                raise ConfigInvalid(
                    "keys/account.key", f"the account {entry.account.hex()} that genesis.json names"
                )
            return
    raise ConfigInvalid(
        "node.validator",
        f"a consensus key that genesis.json names, got {identity.consensus_key.hex()}; "
        "set it to false to run a full node",
    )


def refuse_lost_record(home: Home, store: ChainStore, chain: bytes) -> None:
    """Raise SafetyRecordUnusable where the database is new although this home's key was used on the chain before."""
    path = home.consensus_used_path
    if store.chain_id() is None and path.is_file() and path.read_text().strip() == chain.hex():
        raise SafetyRecordUnusable(
            f"{home.data_path} is empty, but this validator's key has been used on this chain",
            f"bring the folder back, or join with a new key (only if it certainly never voted: remove {path})",
        )


def guard_record(home: Home, store: ChainStore, chain: bytes, epoch: int) -> None:
    """Let the key sign from now on, with its guard outside the database, unless the two disagree.

    Raises SafetyRecordUnusable where the database's safety record is older than what the guard saw, or either is lost.
    """
    used, path = home.consensus_used_path, home.safety_guard_path
    was_used = used.is_file() and used.read_text().strip() == chain.hex()
    record = _safety_record(store, epoch)
    guard = SafetyGuard(path) if path.is_file() else None
    if guard is None or guard.mark.chain_id != chain:
        if was_used or record is not None:
            raise SafetyRecordUnusable(
                f"{path}, the second note of what this key signed on this chain, is missing",
                "bring the file back as it was when this daemon last stopped, or join with a new key",
            )
        write_atomic(path, first_mark(chain, epoch))
        guard = SafetyGuard(path)
    guard.check(None if record is None else record.to_bytes(), str(home.data_path))
    # Last: it says that the guard exists.
    if not was_used:
        write_atomic(used, f"{chain.hex()}\n".encode())
    store.guard = guard


def _safety_record(store: ChainStore, epoch: int) -> SafetyRecord | None:
    """Read the safety record, of this epoch or an earlier one; raises SafetyRecordUnusable."""
    data = store.safety_record()
    if data is None:
        return None
    remedy = "restore the database as it was when it stopped, or join with a new key"
    try:
        record = record_from_bytes(data)
    except CodecError as error:
        raise SafetyRecordUnusable(f"the safety record is damaged ({error})", remedy) from error
    if record.epoch > epoch:
        raise SafetyRecordUnusable(
            f"the safety record is of epoch {record.epoch}, the chain in {epoch}", remedy
        )
    return record


def recovered_state(store: ChainStore, epoch: EpochRow, config: ConsensusConfig) -> RecoveredState:
    """Read back what the replica of the current epoch has to know of its earlier life."""
    height = store.committed_height()
    committed = store.block_at(height)
    if committed is None:
        raise StorageError(f"the committed block at height {height} is missing")
    executed = store.executed().height
    results = []
    # Blocks to come may claim as little execution as the last committed one did.
    first = min(executed - config.lag_max, committed.header.executed_height)
    for past in range(max(1, first, executed - RESULTS_MAX), executed + 1):
        outcome = store.outcome(past)
        if outcome is not None:
            results.append(
                ExecutionResult(
                    past,
                    outcome.state_digest,
                    outcome.accumulator_root,
                    outcome.next_validators_hash,
                    outcome.snapshot_root,
                )
            )
    if committed.header.epoch > epoch.number:
        raise StorageError(
            f"block {height} is of epoch {committed.header.epoch}, which is not in the database"
        )
    begun = committed.header.epoch == epoch.number
    return RecoveredState(
        record=_safety_record(store, epoch.number),
        certificates=store.certificates(),
        committed=committed if begun else epoch.start,
        proof=store.proof_at(height) if begun else None,
        reveals=store.reveals() if begun else epoch.reveals,
        blocks=store.uncommitted_blocks(),
        executed=tuple(results),
    )


def consensus_config(config: Config) -> ConsensusConfig:
    """The replica's settings out of the node's configuration."""
    section = config.consensus
    if 2 * section.block_interval_ms > section.timeout_ms_base:
        # Payload that waits longer than its round ends every round by its timeout.
        raise ConfigInvalid(
            "consensus.block_interval_ms",
            f"at most half of consensus.timeout_ms_base ({section.timeout_ms_base})",
            section.block_interval_ms,
        )
    return ConsensusConfig(
        timeout_ms_base=section.timeout_ms_base,
        timeout_ms_floor=section.timeout_ms_base,
        timeout_ms_max=section.timeout_ms_max,
        heartbeat_ms=section.heartbeat_ms,
        drift_ms_max=section.drift_ms_max,
        vote_fanout="collector" if section.vote_fanout == "collector" else "all",
    )
