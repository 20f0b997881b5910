"""One form plays what `material.py` wrote: `python -m tests.compiled.player MATERIAL` prints all that came out, a line for each thing.

The first line says which form it is. Refusals are results: their class, code and words must be the same as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from consensus.digest import digest
from node.form import form
from node.ledger.accumulator import Accumulator, encode_accumulator
from node.ledger.batch import Batch, decode_batch
from node.ledger.block import BlockOutcome
from node.ledger.errors import LedgerError
from node.ledger.execute import execute_block
from node.ledger.lthash import lthash_of
from node.ledger.reading import TransactionReader, read_transaction
from tests.compiled.material import decoders, read_context


def play(material: dict[str, Any]) -> Iterator[str]:
    """Yield what becomes of each input and each block."""
    known = decoders()
    for name, data in material["inputs"]:
        yield f"{name} {data[:64]} {_decoded(known[name], bytes.fromhex(data))}"
    for number, history in enumerate(material["histories"]):
        for line in _played(history):
            yield f"history {number} {line}"


def _decoded(target: Any, data: bytes) -> str:
    try:
        value = target.decode(data)
    except target.refusals as error:
        return f"{type(error).__name__} {error}"
    return f"{value!r} {target.encode(value).hex()}"


def _played(history: dict[str, Any]) -> Iterator[str]:
    state = {bytes.fromhex(key): bytes.fromhex(value) for key, value in history["state"]}
    lthash, accumulator = lthash_of(state), Accumulator()
    reader = None
    for block in history["blocks"]:
        context = read_context(block["context"])
        batches: list[Batch] = []
        for data in block["batches"]:
            try:
                batches.append(decode_batch(bytes.fromhex(data)))
            except LedgerError as error:
                yield f"{context.height} {type(error).__name__} {error}"
        for raw in (raw for batch in batches for raw, _ in batch.items):
            yield f"{context.height} {_read(raw, context.chain_id)}"
        # Every other block by a reader with a memory, as the daemon has one.
        reader = reader or TransactionReader(context.chain_id)
        read = reader if context.height % 2 else partial(read_transaction, chain_id=context.chain_id)
        try:
            outcome = execute_block(state, lthash, accumulator, context, batches, read=read)
        except LedgerError as error:
            yield f"{context.height} {type(error).__name__} {error}"
            continue
        yield f"{context.height} {_told(outcome)}"
        for key, value in outcome.changes.items():
            if value is None:
                del state[key]
            else:
                state[key] = value
        lthash, accumulator = outcome.lthash, outcome.accumulator
        yield f"{context.height} state {lthash_of(state) == lthash}"


def _read(raw: bytes, chain: bytes) -> str:
    try:
        return repr(read_transaction(raw, chain))
    except LedgerError as error:
        return f"{type(error).__name__} {error.code} {error}"


def _told(outcome: BlockOutcome) -> str:
    """All of an outcome, as bytes."""
    changes = [
        f"{key.hex()}={None if value is None else value.hex()}" for key, value in outcome.changes.items()
    ]
    parts = [
        outcome.receipts_root.hex(),
        encode_accumulator(outcome.accumulator).hex(),
        outcome.accumulator_root.hex(),
        digest("state", outcome.lthash).hex(),
        outcome.state_digest.hex(),
        outcome.next_validators_hash.hex(),
        *(name.hex() for name in outcome.skipped),
        *(receipt.hex() for receipt in outcome.receipts_encoded),
        *changes,
    ]
    return " ".join(parts)


if __name__ == "__main__":
    print(form())
    for told in play(json.loads(Path(sys.argv[1]).read_text())):
        print(told)
