"""How long a snapshot takes, and what it costs the event loop: `python -m benchmarks.snapshots --keys 100000 [--json]`.

A database of so many account-like rows is cut into a snapshot, in a thread as in the daemon, while the event loop wakes up every
10 ms; then every chunk is checked and added up, and the whole is installed into another database, as a late node does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import trio

from consensus.codec import encode
from node.ledger.accumulator import Accumulator, accumulator_root, append, encode_accumulator
from node.ledger.lthash import state_digest
from node.snapshot.files import Shelf
from node.snapshot.format import lthash_of_rows, read_chunks
from node.snapshot.making import Maker
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.database import Database
from node.storage.upkeep import Upkeep

CHAIN = bytes(32)
ROWS_PER_WRITE = 4096


def _rows(count: int) -> list[tuple[bytes, bytes]]:
    """Rows of the size of an account's: a prefix and 32 bytes, and a balance and a nonce."""
    return [(b"a/" + os.urandom(32), encode([10**12 + number, number % 1000])) for number in range(count)]


async def _make(maker: Maker, head: ExecutedHead, outcome: Outcome) -> float:
    """Make one snapshot; returns the longest time (ms) by which the event loop woke up late meanwhile."""
    latest_s = 0.0

    async def watch() -> None:
        nonlocal latest_s
        while True:
            before_s = time.perf_counter()
            await trio.sleep(0.01)
            latest_s = max(latest_s, time.perf_counter() - before_s - 0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(maker.run)
        maker.executed(head, outcome)
        await maker.root_for(2)
        nursery.cancel_scope.cancel()
    return latest_s * 1000


def measure(keys: int, folder: Path) -> dict[str, float | int]:
    """Seconds, bytes and the event loop's worst delay for a state of so many keys."""
    database = Database(folder / "chain")
    store = ChainStore(database)
    upkeep = Upkeep(database, store)
    rows = _rows(keys)
    for start in range(0, keys, ROWS_PER_WRITE):
        database.write({b"s" + key: value for key, value in rows[start : start + ROWS_PER_WRITE]}, sync=False)
    lthash = lthash_of_rows(rows)
    accumulator = append(Accumulator(), bytes(32))
    digest, root = state_digest(lthash, CHAIN), accumulator_root(accumulator)
    head = ExecutedHead(1, bytes(32), digest, root, lthash, encode_accumulator(accumulator))
    shelf = Shelf(folder / "snapshots", 2)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    late_ms = trio.run(
        _make, Maker(store, upkeep, CHAIN, 1, shelf), head, Outcome(digest, bytes(32), root, ())
    )
    made_s, made_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    manifest = shelf.manifest(1)
    if manifest is None:
        raise SystemExit("the snapshot was not written; is the disk full?")
    count = len(manifest.digests)
    cpu_s = time.process_time()
    chunks = (shelf.chunk(1, index) or b"" for index in range(1, count))
    if lthash_of_rows(read_chunks(chunks)) != lthash:
        raise SystemExit("the snapshot does not add up to the state")
    checked_cpu_s = time.process_time() - cpu_s
    database.close()
    return {
        "keys": keys,
        "chunks": count,
        "bytes": sum((folder / "snapshots" / "1" / str(index)).stat().st_size for index in range(count)),
        "make_seconds": round(made_s, 3),
        "make_cpu_seconds": round(made_cpu_s, 3),
        "loop_late_ms_max": round(late_ms, 1),
        "check_cpu_seconds": round(checked_cpu_s, 3),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(parsed.keys, Path(folder))
    print(json.dumps(found, indent=2) if parsed.as_json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
