"""What is installed besides a snapshot's state: epochs, blocks, the proof, the beacon; written down once everything was checked."""

from dataclasses import dataclass
from typing import Any

from consensus import codec, fields
from consensus.errors import CodecError
from consensus.tree import Reveals
from consensus.types import Block, CommitProof, decode_block, decode_proof, encode_block, encode_proof
from node.epochs import EpochRow, row_from_bytes
from node.ledger.entries import VALIDATORS_MAX
from node.ledger.errors import LedgerError
from node.snapshot.files import Incoming
from node.snapshot.format import SnapshotInvalid, decode_head_chunk, read_chunks
from node.storage.chain import ChainStore
from node.storage.errors import StorageError
from node.storage.upkeep import Installation, Upkeep

PLAN_VERSION = 1
PLAN_BYTES_MAX = 1 << 30
"""An epoch's row has up to 400 KiB, and a chain of many years has many thousands."""


@dataclass(frozen=True, slots=True)
class Plan:
    """See `node.storage.upkeep.Installation`; `epochs` are those after the first, up to that of the blocks."""

    root: bytes
    epochs: tuple[EpochRow, ...]
    blocks: tuple[Block, ...]
    proof: CommitProof
    reveals: Reveals

    def to_bytes(self) -> bytes:
        """Canonical bytes, version first."""
        return codec.encode(
            (
                PLAN_VERSION,
                self.root,
                tuple(row.to_bytes() for row in self.epochs),
                tuple(encode_block(block) for block in self.blocks),
                encode_proof(self.proof),
                self.reveals,
            )
        )


def plan_from_bytes(data: bytes) -> Plan:
    """Read `Plan.to_bytes`; raises CodecError, or LedgerError for a damaged set."""
    items = fields.array(codec.decode(data, PLAN_BYTES_MAX), 6, "plan")
    version, root, epochs, blocks, proof, reveals = items
    if type(version) is not int or version != PLAN_VERSION:
        raise CodecError("plan: another version")
    rows = fields.array_upto(epochs, codec.ELEMENTS_MAX, "plan: epochs")
    encoded = fields.array_upto(blocks, codec.ELEMENTS_MAX, "plan: blocks")
    last_of = fields.array_upto(reveals, VALIDATORS_MAX, "plan: reveals")
    if not encoded:
        raise CodecError("plan: no block")
    return Plan(
        fields.hash32(root, "root"),
        tuple(row_from_bytes(_bytes(row)) for row in rows),
        tuple(decode_block(_bytes(block)) for block in encoded),
        decode_proof(_bytes(proof)),
        tuple(_reveal(item) for item in last_of),
    )


def _bytes(item: Any) -> bytes:
    if type(item) is not bytes:
        fields.fail("plan: not bytes")
    return item


def _reveal(item: Any) -> tuple[int, bytes]:
    count, last = fields.array(item, 2, "plan: reveal")
    return fields.uint(count, "reveals"), fields.hash32(last, "reveal")


def install_ready(
    store: ChainStore, upkeep: Upkeep, incoming: Incoming, chain_id: bytes, every: int
) -> int | None:
    """Install the snapshot that lies ready, if one does and is ahead; returns the height of its state, or None.

    `every` is the chain's `snapshot_heights`. Interrupted at any point it is done again from the start. Raises StorageError where what was begun cannot be finished.
    """
    begun = upkeep.installing()
    found = incoming.plan(PLAN_BYTES_MAX)
    manifest = incoming.manifest()
    if found is None or manifest is None:
        if begun is not None:
            raise StorageError(
                f"a snapshot was half installed, and {incoming.folder} does not hold it any more: move the folder data away "
                "and start again; a validator must keep its safety record, so it joins with a new key instead"
            )
        return None
    try:
        plan = plan_from_bytes(found)
        if plan.root != manifest.root:
            raise SnapshotInvalid("the plan is of another snapshot")
        head = decode_head_chunk(next(incoming.chunks(manifest, chain_id)), chain_id)
        # Everything is read and checked once before anything is overwritten: a disk may rot.
        for _ in incoming.chunks(manifest, chain_id):
            pass
    except (CodecError, LedgerError, SnapshotInvalid, OSError) as error:
        if begun is not None:
            raise StorageError(
                f"the snapshot in {incoming.folder}, half installed, is damaged: {error}"
            ) from error
        incoming.clear()
        return None
    if begun is None and head.head.height <= store.executed().height:
        incoming.clear()
        return None
    roots = {manifest.height: manifest.root}
    for row in plan.epochs:
        store.put_epoch(row.number, row.to_bytes())
    if head.outcome.snapshot_root:
        roots[manifest.height - every] = head.outcome.snapshot_root
    chunks = incoming.chunks(manifest, chain_id)
    next(chunks)
    upkeep.install(
        Installation(plan.root, head.head, head.outcome, plan.blocks, plan.proof, plan.reveals, roots),
        read_chunks(chunks),
    )
    incoming.clear()
    return head.head.height
