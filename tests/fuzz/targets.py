"""Every decoder that reads from a peer, a client or a file, with valid inputs out of the golden vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from consensus import evidence, messages, safety, types
from consensus.errors import CodecError
from node import wire
from node.ledger import (
    accumulator,
    batch,
    block,
    entries,
    erased,
    erasure,
    fields,
    openings,
    order,
    overlay,
    params,
    reading,
    records,
    transaction,
)
from node.ledger.errors import MalformedError
from node.ledger.results import SHARES_TOTAL, AuditResult
from node.network.config import Limits
from node.network.errors import RemoteProtocolError
from node.network.framing import FrameDecoder, encode_header
from tests.fuzz.target import Target
from tests.vectors import paying, sending

A, B = paying.A, paying.B
SIGNED_CONTRIBUTION = transaction.encode_transaction(paying.transactions()[2])
STATE_RECORDS: tuple[object, ...] = (
    entries.Account(5, 2**62),
    entries.Supply(10**15, 1, 2, 3, 4),
    entries.ValidatorSet(paying.GENESIS.validators),
    entries.Head(7, 1_700_000_000_000),
    entries.Datanet(A, "docs", ("CC-BY-4.0", "MIT"), "text", 3, 1, 2, 3),
    entries.Contribution(A, B, A, 3, 8, B, 40, "MIT", 9),
    entries.BaseModel(1, A, "tiny", 4, (A, B)),
    entries.Adapter(2, A, "adapter", B, (A,), b"\x90", A, B, 9, A, 4, (B,)),
    entries.Provider("serves", 10**12, 1, 2, 3, 10**9),
    entries.Inference(
        6, paying.VOUCHER, A, 2, 2, 3, 4, A, 5, 6, 7, B, 90, 1, ((A, B),), (entries.Opened(A, 0, 0),),
        (AuditResult(0, A, ((A, SHARES_TOTAL),)),), 1, (entries.Payout(1, A, 5),), 6, 0, 9,
    ),
    entries.VoucherSequence(7),
    entries.BatchWindow(3, (5, 6)),
    entries.Draws((entries.DrawGroup(1, A, (B,), (A, B)),)),
    entries.Deadlines((entries.Deadline(A, 5, 6),)),
    erasure.Erasures(A, B, (erasure.Erasure(3, 9, (0, 7)), erasure.Erasure(5, 0, (300,)))),
    order.Number(7),
)  # fmt: skip


@cache
def encodings() -> dict[str, bytes]:
    """Valid bytes of everything that is sent or stored, by the vectors' names."""
    return {entry.name: entry.data for entry in (*sending.encodings(), *paying.encodings())}


def seeds(*prefixes: str) -> tuple[bytes, ...]:
    return tuple(data for name, data in encodings().items() if name.startswith(prefixes))


def _consensus(
    name: str, module: Any, kind: str, bytes_max: int, valid: tuple[bytes, ...], sender: str = "peer"
) -> Target:
    decode, encode = getattr(module, f"decode_{kind}"), getattr(module, f"encode_{kind}")
    return Target(name, decode, encode, valid, (CodecError,), bytes_max, _file(module), sender)


def _ledger(
    name: str, module: Any, kind: str, bytes_max: int, valid: tuple[bytes, ...], sender: str = "peer"
) -> Target:
    decode, encode = getattr(module, f"decode_{kind}"), getattr(module, f"encode_{kind}")
    return Target(name, decode, encode, valid, (MalformedError,), bytes_max, _file(module), sender)


def _wire(
    name: str, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], bytes_max: int, *valid: str
) -> Target:
    return Target(name, decode, encode, seeds(*valid), (wire.WireError,), bytes_max, _file(wire))


def _file(module: Any) -> str:
    return str(module.__name__).replace(".", "/") + ".py"


def consensus_targets() -> list[Target]:
    """Messages between validators, and what consensus stores."""
    certificate = types.CERTIFICATE_BYTES_MAX
    return [
        _consensus("message", messages, "message", messages.MESSAGE_BYTES_MAX, seeds("message ")),
        _consensus("block", types, "block", types.BLOCK_BYTES_MAX, seeds("stored block", "stored genesis")),
        _consensus("proof", types, "proof", types.PROOF_BYTES_MAX, seeds("commit proof")),
        _consensus("hand-over", types, "handover", types.PROOF_BYTES_MAX, seeds("stored hand-over")),
        Target(
            "evidence",
            evidence.evidence_from_bytes,
            evidence.Evidence.to_bytes,
            seeds("evidence "),
            (CodecError,),
            evidence.EVIDENCE_BYTES_MAX,
            _file(evidence),
            "client, peer",
        ),
        _consensus("certificates", types, "sync_info", 3 * certificate, seeds("stored certificates"), "disk"),
        Target(
            "safety-record",
            safety.record_from_bytes,
            safety.SafetyRecord.to_bytes,
            seeds("safety record", "empty safety record"),
            (CodecError,),
            safety.RECORD_BYTES_MAX,
            _file(safety),
            "disk",
        ),
    ]


def ledger_targets() -> list[Target]:
    """Transactions and what they carry; blobs; receipts; the state."""
    opening, records_, receipt = seeds("opening"), seeds("records"), seeds("receipt")
    return [
        _ledger("transaction", transaction, "transaction", transaction.TRANSACTION_BYTES_MAX, seeds("transaction "), "client, peer"),
        Target(
            "transaction-read",
            lambda data: reading.read_transaction(data, paying.CHAIN).transaction,
            transaction.encode_transaction,
            seeds("transaction "),
            (MalformedError,),
            transaction.TRANSACTION_BYTES_MAX,
            _file(reading),
            "client, peer",
        ),
        Target(
            "account",
            overlay.decode_account,
            overlay.encode_account,
            (overlay.encode_account(entries.Account(5, 2**62)),),
            (MalformedError,),
            entries.VALUE_BYTES_MAX,
            _file(overlay),
            "disk",
        ),
        _ledger("batch", batch, "batch", batch.BATCH_BYTES_MAX, (*seeds("batch"), _large_batch())),
        _ledger("voucher", openings, "voucher", openings.VOUCHER_BYTES_MAX, seeds("voucher"), "client"),
        _ledger("opening", openings, "opening", openings.OPENING_BYTES_MAX, opening, "peer (blob)"),
        _ledger("records", records, "records", records.RECORDS_BYTES_MAX, records_, "client, peer (blob)"),
        _remaining(),
        _ledger("receipt", block, "receipt", block.RECEIPT_BYTES_MAX, receipt, "disk"),
        _ledger("accumulator", accumulator, "accumulator", accumulator.ACCUMULATOR_BYTES_MAX, seeds("accumulator"), "disk"),
        _ledger("params", params, "params", params.PARAMS_BYTES_MAX, seeds("params"), "disk"),
        *(_state_record(record) for record in STATE_RECORDS),
    ]  # fmt: skip


def _remaining() -> Target:
    """What a peer says is left of a contribution, against its Merkle root."""
    root, blob = records.records_root(paying.RECORDS), records.encode_records(paying.RECORDS)
    valid = (blob, erased.erase_records(blob, root, (1,)), erased.erase_records(blob, root, (0, 1, 2)))
    return Target(
        "remaining-records",
        lambda data: erased.read_remaining(data, root),
        erased.encode_remaining,
        valid,
        (MalformedError,),
        records.RECORDS_BYTES_MAX,
        _file(records),
        "peer (blob)",
    )


def _large_batch() -> bytes:
    items: tuple[batch.Item, ...] = tuple(
        (SIGNED_CONTRIBUTION, ((A, bytes(64)), (B, bytes(64)))) for _ in range(20)
    )
    return batch.encode_batch(batch.sign_batch(paying.VALIDATOR_SEED, paying.CHAIN, 1, items))


def _state_record(record: object) -> Target:
    cls = type(record)

    def decode(data: bytes) -> Any:
        return fields.from_bytes(cls, data, entries.VALUE_BYTES_MAX)

    valid = (fields.to_bytes(record),)
    limit, where = entries.VALUE_BYTES_MAX, _file(entries)
    return Target(
        f"state-{cls.__name__}", decode, fields.to_bytes, valid, (MalformedError,), limit, where, "disk"
    )


def wire_targets() -> list[Target]:
    """Direct frames, gossip, requests and answers."""
    limits = Limits()
    return [
        _wire("transactions", wire.decode_transactions, wire.encode_transactions, wire.TRANSACTIONS_BYTES_MAX, "transactions"),
        _wire("announcement", wire.decode_announcement, wire.encode_announcement, 128, "announcement"),
        _wire("range-request", wire.decode_range_request, lambda value: wire.encode_range_request(*value), 64, "range request"),
        _wire("range", wire.decode_range, wire.encode_range, 2 * wire.RANGE_BYTES_MAX, "range answer"),
        _wire("block-request", wire.decode_block_request, lambda value: wire.encode_block_request(*value), 64, "block request"),
        _wire("blob-request", wire.decode_blob_request, lambda value: wire.encode_blob_request(*value), 64, "blob request"),
        _wire("index-request", wire.decode_index_request, lambda value: wire.encode_index_request(*value), 64, "index request"),
        _wire("chunk-request", wire.decode_chunk_request, lambda value: wire.encode_chunk_request(*value), 64, "chunk request"),
        _wire("epochs-request", wire.decode_epochs_request, lambda value: wire.encode_epochs_request(*value), 64, "epochs request"),
        _wire("epoch-rows", wire.decode_epoch_rows, wire.encode_epoch_rows, 2 * wire.EPOCH_ROWS_BYTES_MAX, "epochs answer"),
        _wire("snapshot-offer", wire.decode_snapshot_offer, wire.encode_snapshot_offer, wire.SNAPSHOT_OFFER_BYTES_MAX, "snapshot offer"),
        _wire("storage-receipt", wire.decode_storage_receipt, wire.encode_storage_receipt, 512, "storage receipt"),
        Target(
            "frames",
            lambda data: _frames(data, 4096),
            _unframed,
            (encode_header(3, 2) + b"ab", encode_header(1, 0) + encode_header(9, 300) + bytes(300), b"\0\0"),
            (RemoteProtocolError,),
        ),
        Target(
            "direct-stream",
            lambda data: _frames(data, limits.frame_bytes_max),
            _unframed,
            (encode_header(1, len(seeds("message 2")[0])) + seeds("message 2")[0],),
            (RemoteProtocolError,),
        ),
    ]  # fmt: skip


def _frames(data: bytes, bytes_max: int) -> tuple[list[tuple[int, bytes]], bytes]:
    """Frames of a stream that came in pieces, and what is left of an unfinished one."""
    decoder, found, read = FrameDecoder(bytes_max), [], 0
    for at in range(0, len(data), 7):
        for kind, payload in decoder.feed(data[at : at + 7]):
            found.append((kind, payload))
            read += 5 + len(payload)
    if decoder.buffered_bytes != len(data) - read:
        raise AssertionError("bytes of a stream were lost")
    return found, data[read:]


def _unframed(value: tuple[list[tuple[int, bytes]], bytes]) -> bytes:
    frames, rest = value
    return b"".join(encode_header(kind, len(payload)) + payload for kind, payload in frames) + rest


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    # Those of files and of JSON need torch or a whole ledger; they are imported when they are wanted.
    from tests.fuzz.documents import document_targets
    from tests.fuzz.late import late_targets
    from tests.fuzz.signing import signing_targets

    made = [
        *consensus_targets(),
        *ledger_targets(),
        *wire_targets(),
        *late_targets(),
        *document_targets(),
        *signing_targets(),
    ]
    return {target.name: target for target in made}
