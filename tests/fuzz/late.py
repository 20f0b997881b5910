"""What a late node reads: rows of epochs, manifests, chunks, and the plan of what to install; from peers, and again from disk."""

from __future__ import annotations

from functools import partial
from typing import Any

from consensus import codec, fields
from consensus.digest import digest
from consensus.errors import CodecError, ConsensusError
from node import epochs
from node.ledger.accumulator import Accumulator, accumulator_root, append, encode_accumulator
from node.ledger.entries import ValidatorSet
from node.ledger.errors import LedgerError
from node.ledger.fields import to_bytes
from node.ledger.lthash import state_digest
from node.snapshot import files, format, plan
from node.snapshot.format import SnapshotInvalid
from node.storage.chain import ExecutedHead, Outcome
from tests.fuzz.target import Target
from tests.unit.node.rooms import cc_of
from tests.unit.node.test_node_epochs import CHAIN, FIRST, second_row

Rows = tuple[tuple[bytes, bytes], ...]

HEIGHT = 3
SECOND = second_row().to_bytes()
LONG = bytes(format.VALUE_PART_BYTES + 7)
STATE: Rows = ((b"a\0one", b"\x91\x05"), (b"a\0two", b""), (b"long", LONG), (b"x", b"value"))


def head_chunk() -> bytes:
    """A first chunk that does not contradict itself."""
    accumulator = Accumulator(0, ())
    for number in range(HEIGHT):
        accumulator = append(accumulator, digest("test-receipts", bytes([number])))
    lthash = format.lthash_of_rows(STATE)
    state, root = state_digest(lthash, CHAIN), accumulator_root(accumulator)
    head = ExecutedHead(HEIGHT, FIRST.start.id, state, root, lthash, encode_accumulator(accumulator))
    outcome = Outcome(state, digest("test-receipts", b"\x02"), root, (), b"", digest("test-root", b""))
    return format.encode_head_chunk(format.SnapshotHead(CHAIN, head, outcome))


def late_targets() -> list[Target]:
    """Targets of this file."""
    chunks = tuple(format.state_chunks(STATE))
    names = tuple(format.chunk_digest(chunk, CHAIN) for chunk in (head_chunk(), *chunks))
    row = second_row()
    start = row.start
    installed = plan.Plan(
        names[0], (row,), (FIRST.start, start), cc_of(start), ((0, names[0]), (5, names[1]))
    )
    epochs_file, format_file, limit = "node/epochs.py", "node/snapshot/format.py", epochs.ROW_BYTES_MAX
    refused: tuple[type[Exception], ...] = (CodecError, LedgerError)
    return [
        Target("epoch-row", epochs.row_from_bytes, epochs.EpochRow.to_bytes, (FIRST.to_bytes(), row.to_bytes()), refused, limit, epochs_file),
        Target("epoch-row-checked", _checked, to_bytes, (to_bytes(row.validators),), (ConsensusError, LedgerError)),
        Target("manifest", files.decode_manifest, files.encode_manifest, (files.encode_manifest(files.Manifest(8, names)),), (CodecError,), files.MANIFEST_BYTES_MAX, "node/snapshot/files.py", "peer, disk"),
        Target("snapshot-head", partial(format.decode_head_chunk, chain_id=CHAIN), format.encode_head_chunk, (head_chunk(),), (SnapshotInvalid,), format.CHUNK_BYTES_MAX, format_file),
        # A chunk need not be cut where we would cut it: the root that a quorum signed says where.
        Target("snapshot-chunk", lambda data: tuple(format.read_chunks([data])), None, (*chunks, codec.encode([b"k", b"v"])), (SnapshotInvalid,), format.CHUNK_BYTES_MAX, format_file),
        Target("snapshot-chunks", _state, _chunks, (_chunks(STATE), codec.encode([codec.encode([*pair]) for pair in STATE[:2]])), (CodecError, SnapshotInvalid), same=lambda one, two: bool(one == two)),
        Target("install-plan", plan.plan_from_bytes, plan.Plan.to_bytes, (installed.to_bytes(),), refused, plan.PLAN_BYTES_MAX, "node/snapshot/plan.py", "disk"),
    ]  # fmt: skip


def _checked(data: bytes) -> ValidatorSet:
    """A set in a row that a stranger sent with a hand-over that is true, read and held against the epoch before."""
    version, number, start, _, reveals, handover = codec.decode(SECOND, epochs.ROW_BYTES_MAX)
    row = epochs.row_from_bytes(codec.encode([version, number, start, data, reveals, handover]))
    epochs.check_row(FIRST, row, CHAIN)
    return row.validators


def _state(data: bytes) -> Rows:
    chunks: list[Any] = fields.array_upto(codec.decode(data, 4 * format.CHUNK_BYTES_MAX), 64, "chunks")
    if not all(isinstance(chunk, bytes) for chunk in chunks):
        raise CodecError("not bytes")
    return tuple(format.read_chunks(chunks))


def _chunks(rows: Rows) -> bytes:
    return codec.encode(list(format.state_chunks(rows)))
