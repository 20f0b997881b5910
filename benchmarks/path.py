"""What each step of a transfer's way costs in CPU on one node, one thread, with the floor of its parts beside it.

python -m benchmarks.path [--transfers 2000] [--block 200] [--runs 1] [--compiled DIR] [--json]

Of several runs, each step's least. Everything runs in this process with the daemon's own functions: no sockets, no other tasks. What a daemon pays beyond the sum
(event loop, frames, HTTP, consensus messages) is the difference to `benchmarks.throughput`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from nacl.signing import VerifyKey

from benchmarks.chain import SENDER_BALANCE, sender_of
from benchmarks.compiled import add_option, go_on_compiled
from benchmarks.load import signed_transfer
from consensus.digest import digest
from node.executor import Recent, Remembering, SharedVerifier, tell_apart
from node.ledger.accumulator import Accumulator, encode_accumulator
from node.ledger.batch import Batch, decode_batch, make_batch
from node.ledger.block import BlockContext, BlockOutcome
from node.ledger.entries import ValidatorEntry
from node.ledger.execute import execute_block
from node.ledger.genesis import Genesis, chain_id, make_genesis
from node.ledger.params import Params
from node.ledger.reading import TransactionReader
from node.mempool import Mempool, Pooled
from node.rpc.methods import METHODS
from node.rpc.protocol import answer
from node.startup import open_chain
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.database import Database
from node.wire import decode_transactions, encode_transactions

SENDERS = 1200
CALLS = 50


class Steps:
    """CPU microseconds a transfer of each step, and the floor: what its irreducible part takes alone."""

    def __init__(self, transfers: int) -> None:
        self._transfers = transfers
        self.rows: dict[str, dict[str, float]] = {}

    def measure(
        self, name: str, step: Callable[[], object], floor: Callable[[], object] | None = None
    ) -> None:
        """Run a step once over all transfers, and its floor."""
        row = {"us": self._us(step), "floor_us": 0.0 if floor is None else self._us(floor)}
        self.rows[name] = row

    def _us(self, run: Callable[[], object]) -> float:
        began_s = time.process_time()
        run()
        return round(1e6 * (time.process_time() - began_s) / self._transfers, 2)


class _Taking:
    """A backend that takes every transaction: what is measured is the RPC's own work."""

    async def submit_transactions(self, raws: list[bytes]) -> list[bytes | Exception]:
        return [raw[:32] for raw in raws]


def _genesis() -> tuple[Genesis, bytes]:
    """A chain with one validator and the senders, and the seed of that validator's account."""
    author = sender_of(10**6)
    entry = ValidatorEntry(author.address, author.address, "validator", 10**12, bytes(32))
    balances = tuple((sender_of(index).address, SENDER_BALANCE) for index in range(SENDERS))
    return make_genesis("path", 0, (entry,), balances, Params()), author.seed


def measure(transfers: int, block: int) -> dict[str, dict[str, float]]:
    """CPU microseconds a transfer, by step."""
    genesis, seed = _genesis()
    chain = chain_id(genesis)
    senders = [sender_of(index) for index in range(SENDERS)]
    raws = [
        signed_transfer(chain, senders[at % SENDERS], at // SENDERS, senders[(at + 7) % SENDERS].address)
        for at in range(transfers)
    ]
    steps = Steps(transfers)
    _entering(steps, raws)
    read, check = TransactionReader(chain), SharedVerifier()
    rows = [read(raw) for raw in raws]
    fresh = TransactionReader(chain)
    steps.measure(
        "read: decode, hash, what is signed",
        lambda: [fresh(raw) for raw in raws],
        lambda: [(digest("transaction", raw, chain), digest("transaction-sign", raw, chain)) for raw in raws],
    )
    keys = [(VerifyKey(row.signed[0]), row.signed) for row in rows]
    steps.measure(
        "signature",
        lambda: [check(*row.signed) for row in rows],
        lambda: [key.verify(message, signature) for key, (_, message, signature) in keys],
    )
    pool = Mempool()
    pooled: list[Pooled] = []
    steps.measure(
        "mempool: add",
        lambda: pooled.extend(
            pool.add(raw, row.tx_hash, row.transaction, duty=False)
            for raw, row in zip(raws, rows, strict=True)
        ),
    )
    steps.measure(
        "mempool: select (leader)",
        lambda: pool.select(lambda sender: 0, lambda row: True, frozenset(), 1 << 30, 1 << 20),
    )
    with tempfile.TemporaryDirectory(prefix="openledger-path-") as folder:
        database = Database(Path(folder) / "chain")
        store = ChainStore(database)
        open_chain(store, genesis)
        _ordering(steps, chain, seed, raws, block, store, read, check)
        database.close()
    hashes = {row.tx_hash for row in rows}
    steps.measure(
        "mempool: settle", lambda: pool.settle(hashes, lambda sender: 2, 1, [row.address for row in senders])
    )
    return steps.rows


def _entering(steps: Steps, raws: list[bytes]) -> None:
    """The public RPC's part at the node where a transfer enters, and the frames between validators."""
    import trio

    bodies = [
        json.dumps(
            [
                {"jsonrpc": "2.0", "id": at, "method": "tx_submit", "params": {"tx": raw.hex()}}
                for at, raw in enumerate(raws[first : first + CALLS])
            ]
        ).encode()
        for first in range(0, len(raws), CALLS)
    ]

    async def answer_all() -> None:
        for body in bodies:
            await answer(body, METHODS, _Taking(), CALLS, 1 << 26)  # type: ignore[arg-type]

    steps.measure(
        "RPC: JSON in and out (entry node)",
        lambda: trio.run(answer_all),
        lambda: [json.loads(body) for body in bodies],
    )
    groups = [raws[first : first + CALLS] for first in range(0, len(raws), CALLS)]
    steps.measure(
        "pass on: frame out and in",
        lambda: [decode_transactions(encode_transactions(group)) for group in groups],
        lambda: [b"".join(group) for group in groups],
    )


def _ordering(
    steps: Steps,
    chain: bytes,
    seed: bytes,
    raws: list[bytes],
    block: int,
    store: ChainStore,
    read: TransactionReader,
    check: SharedVerifier,
) -> None:
    """Batches made, read, executed and stored."""
    groups = [tuple((raw, ()) for raw in raws[first : first + block]) for first in range(0, len(raws), block)]
    batches: list[Batch] = []
    datas: list[bytes] = []

    def make() -> None:
        for sequence, items in enumerate(groups, 1):
            name, batch, data = make_batch(seed, chain, sequence, items)
            batches.append(batch)
            datas.append(data)
            check.note_good(batch.author, name, batch.signature)

    steps.measure("batch: make (leader)", make)
    steps.measure(
        "batch: read",
        lambda: [decode_batch(data) for data in datas],
        lambda: [blake3(data).digest() for data in datas],
    )
    done: list[tuple[Remembering, BlockContext, BlockOutcome]] = []
    author = sender_of(10**6).address

    def execute() -> None:
        lthash, accumulator, recent = store.executed().lthash, Accumulator(), Recent(store)
        for height, batch in enumerate(batches, 1):
            context = BlockContext(chain, height, 0, height, height, author, b"", height - 1)
            before = Remembering(recent)
            outcome = execute_block(before, lthash, accumulator, context, [batch], check=check, read=read)
            lthash, accumulator = outcome.lthash, outcome.accumulator
            done.append((before, context, outcome))
            _store(store, *done[-1])
            recent.wrote(outcome.changes)

    steps.measure("execute and store", execute)

    def store_again() -> None:
        for row in done:
            _store(store, *row)

    steps.measure("of it: told apart, encoded, written", store_again)


def _store(store: ChainStore, before: Remembering, context: BlockContext, outcome: BlockOutcome) -> None:
    """What `node.executor.Executor` does of an executed block."""
    told = tell_apart(outcome, lambda subject: store.transaction_place(subject) is not None)
    head = ExecutedHead(
        context.height,
        outcome.receipts_root,
        outcome.state_digest,
        outcome.accumulator_root,
        outcome.lthash,
        encode_accumulator(outcome.accumulator),
    )
    kept = Outcome(
        outcome.state_digest, outcome.receipts_root, outcome.accumulator_root, outcome.receipts_encoded
    )
    store.record_execution(head, outcome.changes, kept, told.places, before.seen)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transfers", type=int, default=2000)
    parser.add_argument("--block", type=int, default=200, help="transfers in a block")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    options = parser.parse_args()
    if options.compiled is not None:
        go_on_compiled("benchmarks.path", options.compiled)
    runs = [measure(options.transfers, options.block) for _ in range(options.runs)]
    rows = {name: {key: min(run[name][key] for run in runs) for key in row} for name, row in runs[0].items()}
    if options.json:
        print(json.dumps(rows))
    else:
        print(f"{'step':40} {'us':>8} {'floor':>8}")
        for name, row in rows.items():
            print(f"{name:40} {row['us']:8.2f} {row['floor_us']:8.2f}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
