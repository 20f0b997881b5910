"""A home's database while its daemon does not run: what lies there, whether it is whole, and a number of blocks taken back.

Nothing here writes the safety record or its guard: what a key has signed stays signed, whatever becomes of the chain below it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from consensus.errors import CodecError
from consensus.safety import SafetyRecord, record_from_bytes
from node.epochs import Epochs, first_row
from node.errors import NodeError
from node.home import Home, lock_home
from node.ledger.entries import ValidatorSet
from node.ledger.epochs import reveals_at
from node.ledger.errors import LedgerError
from node.pruning import subjects_of
from node.snapshot.files import Shelf
from node.snapshot.format import chunk_digest, lthash_of_rows
from node.startup import load_genesis, open_chain
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import SafetyRecordUnusable, StorageError
from node.storage.guard import ROUND_NAMES, SafetyGuard
from node.storage.upkeep import Upkeep

PREFIX_NAMES = {
    "b": "blocks",
    "h": "heights",
    "u": "uncommitted",
    "q": "proofs",
    "p": "batches",
    "n": "batch_uses",
    "o": "outcomes",
    "t": "transactions",
    "s": "state",
    "j": "replaced",
    "x": "snapshot_roots",
    "e": "epochs",
    "m": "values",
}
SNAPSHOTS_KEPT_MAX = 1 << 30


class OfflineFailed(NodeError):
    """A command on a home at rest could not do what it was asked; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Offline:
    """The rooms of a home's database."""

    home: Home
    store: ChainStore
    upkeep: Upkeep
    epochs: Epochs
    shelf: Shelf
    chain_id: bytes


@contextmanager
def open_offline(home: Home) -> Iterator[Offline]:
    """Hold the home and open its database. Raises HomeLocked where the daemon runs, OfflineFailed for what the disk says."""
    with lock_home(home):
        path = home.data_path / "chain"
        if not (path / "CURRENT").exists():
            raise OfflineFailed(f"{path} holds no database yet; `openledger start` makes one")
        try:
            document = load_genesis(home)
            database = Database(path)
            try:
                store = ChainStore(database)
                genesis = open_chain(store, document)
                chain = genesis.header.chain_id
                first = first_row(genesis, ValidatorSet(document.validators))
                epochs = Epochs(store, chain, first, dynamic=bool(document.params.epoch_heights))
                shelf = Shelf(home.snapshots_path, SNAPSHOTS_KEPT_MAX)
                yield Offline(home, store, Upkeep(database, store), epochs, shelf, chain)
            finally:
                database.close()
        except (StorageError, LedgerError, CodecError) as error:
            raise OfflineFailed(str(error)) from error


# --- rollback ---


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did: the executed and the committed height, before and after."""

    executed_before: int
    committed_before: int
    height: int


def rollback_target(offline: Offline, to: int | None) -> int:
    """The height that a rollback to `to` (None: one block) really ends at: the highest proven one that is not above it.

    Raises OfflineFailed where that is out of reach.
    """
    store, executed = offline.store, offline.store.executed().height
    wanted = executed - 1 if to is None else to
    if not 0 <= wanted <= executed:
        raise OfflineFailed(
            f"the executed height is {executed}: there is nothing to go back to {wanted} from"
        )
    target = wanted
    while target > 0 and store.proof_at(target) is None:
        target -= 1
    lowest, reached = executed, executed
    for height in offline.upkeep.replaced_heights():
        if height != reached:
            break
        lowest, reached = height - 1, height - 1
    lowest = max(lowest, store.pruned_below() - 1 if store.pruned_below() > 1 else 0)
    if target < lowest:
        raise OfflineFailed(
            f"blocks can be taken back down to {lowest}, not to {wanted} (proven: {target}); to go further, move {offline.home.data_path} "
            "away and sync again: a full node may, a validator needs a new key for that"
        )
    start = offline.epochs.current.start.height
    if target < start:
        raise OfflineFailed(
            f"epoch {offline.epochs.current.number} began at height {start}: a rollback does not go back into the one before"
        )
    return target


def roll_back(offline: Offline, target: int) -> RolledBack:
    """Take blocks back down to a height of `rollback_target`: state, chain, and snapshots above it. Never the safety record."""
    executed, committed = offline.store.executed().height, offline.store.committed_height()
    while offline.store.executed().height > target:
        offline.upkeep.take_back(subjects_of)
    offline.upkeep.cut_chain(target, reveals_at(offline.store, offline.epochs.current.validators))
    for height in offline.shelf.heights():
        if height > target:
            shutil.rmtree(offline.shelf.folder / str(height))
    return RolledBack(executed, committed, target)


# --- inspection ---


def summary(offline: Offline, *, deep: bool) -> dict[str, object]:
    """What lies in a home, as JSON. `deep` reads the whole state and every snapshot, and checks them against their digests."""
    store, head = offline.store, offline.store.executed()
    problems = damage(offline, deep=deep)
    rows = offline.upkeep.count_rows()
    return {
        "chain_id": offline.chain_id.hex(),
        "epoch": offline.epochs.current.number,
        "height_committed": store.committed_height(),
        "height_executed": head.height,
        "blocks_waiting": store.committed_height() - head.height,
        "blocks_uncommitted": len(store.uncommitted_blocks()),
        "pruned_below": store.pruned_below(),
        "rollback_lowest": next(iter(sorted(offline.upkeep.replaced_heights())), head.height + 1) - 1,
        "state_digest": head.state_digest.hex(),
        "installing": offline.upkeep.installing() is not None,
        "rows": [
            {"kind": PREFIX_NAMES.get(letter, letter), "rows": count, "bytes": size}
            for letter, (count, size) in sorted(rows.items())
        ],
        "snapshots": [_snapshot_row(offline, height) for height in offline.shelf.heights()],
        "safety": safety_summary(offline),
        "damage": problems,
        "whole": not problems,
    }


def _snapshot_row(offline: Offline, height: int) -> dict[str, object]:
    manifest = offline.shelf.manifest(height)
    return {
        "height": height,
        "chunks": 0 if manifest is None else len(manifest.digests),
        "root": "" if manifest is None else manifest.root.hex(),
    }


def safety_summary(offline: Offline) -> dict[str, object]:
    """The rounds of the safety record and of its guard; no key and no signature."""
    found: dict[str, object] = {"record": None, "guard": None}
    data = offline.store.safety_record()
    if data is not None:
        try:
            found["record"] = _rounds_of(record_from_bytes(data))
        except CodecError as error:
            found["record"] = {"damaged": str(error)}
    path = offline.home.safety_guard_path
    if path.is_file():
        try:
            mark = SafetyGuard(path).mark
            found["guard"] = {
                "epoch": mark.epoch,
                "sequence": mark.sequence,
                **dict(zip(_round_keys(), mark.rounds, strict=True)),
            }
        except SafetyRecordUnusable as error:
            found["guard"] = {"damaged": error.problem}
    return found


def _rounds_of(record: SafetyRecord) -> dict[str, int]:
    commit = 0 if record.last_commit_vote is None else record.last_commit_vote.round
    rounds = (record.last_voted, record.lock, record.highest_timeout, record.last_proposed, commit)
    return {"epoch": record.epoch, **dict(zip(_round_keys(), rounds, strict=True))}


def _round_keys() -> list[str]:
    return [name.replace(" ", "_") for name in ROUND_NAMES]


def damage(offline: Offline, *, deep: bool) -> list[str]:
    """What is missing or wrong, in words; empty where nothing was found."""
    store, head = offline.store, offline.store.executed()
    found: list[str] = []
    if offline.upkeep.installing() is not None:
        found.append("a snapshot is half installed; the next start finishes it")
    below = None
    for height in range(store.pruned_below(), store.committed_height() + 1):
        block = store.block_at(height)
        if block is None:
            found.append(f"block {height} is missing")
        elif block.height != height or (
            below is not None and block.header.epoch == below.header.epoch and block.header.parent != below.id
        ):
            found.append(f"block {height} does not follow the one before it")
        if height <= head.height and store.outcome(height) is None:
            found.append(f"the outcome of block {height} is missing")
        below = block
    if store.committed_height() and store.proof_at(store.committed_height()) is None:
        found.append("the last committed block has no proof")
    if deep:
        if lthash_of_rows(store.scan_state()) != head.lthash:
            found.append("the state does not add up to its digest")
        found += _damaged_snapshots(offline)
    return found


def _damaged_snapshots(offline: Offline) -> list[str]:
    found = []
    for height in offline.shelf.heights():
        manifest = offline.shelf.manifest(height)
        if manifest is None or manifest.height != height:
            found.append(f"the manifest of snapshot {height} is damaged")
            continue
        for index, name in enumerate(manifest.digests):
            data = offline.shelf.chunk(height, index)
            if data is None or chunk_digest(data, offline.chain_id) != name:
                found.append(f"chunk {index} of snapshot {height} is damaged")
    return found
