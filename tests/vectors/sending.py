"""Vectors of what nodes send each other and keep: consensus messages, frames, gossip, requests, the safety record."""

from __future__ import annotations

from typing import Any

from consensus.messages import (
    BlocksMessage,
    CommitVoteMessage,
    HandoverMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
    encode_message,
)
from consensus.safety import SafetyRecord
from consensus.types import (
    SyncInfo,
    TwoChain,
    encode_block,
    encode_handover,
    encode_proof,
    encode_sync_info,
)
from node import wire
from node.network.framing import encode_header
from node.recompute.jobs import AuditDone, AuditJob, IndexBuilt, IndexJob, JobRefused, pack_frame
from tests.vectors import ordering as o
from tests.vectors.notation import Encoding, Json, named

MESSAGES: tuple[tuple[int, Message], ...] = (
    (1, ProposalMessage(o.THREE, o.CC_ONE)),
    (1, ProposalMessage(o.ONE, None)),
    (2, VoteMessage(o.VOTE)),
    (3, CommitVoteMessage(o.COMMIT_VOTE, o.QC_ONE)),
    (4, TimeoutMessage(o.TIMEOUT, o.QC_ONE, o.TC_TWO, o.CC_ONE)),
    (4, TimeoutMessage(o.TIMEOUT, o.QC_ONE, None, None)),
    (5, SyncMessage(SyncInfo(o.QC_THREE, o.TC_TWO, o.CC_ONE))),
    (6, BlocksMessage((o.ONE, o.THREE))),
    (6, BlocksMessage(())),
    (7, HandoverMessage(o.HANDOVER)),
)
RECORD = SafetyRecord(0, 3, 1, 2, 3, o.VOTE, o.COMMIT_VOTE, o.TIMEOUT, o.QC_ONE)
RECEIPT = wire.StorageReceiptFrame(bytes([1]) * 32, 40, bytes([2]) * 32, 3, 8, o.KEYS[0], bytes([3]) * 64)
OFFER = wire.SnapshotOffer(b"manifest", encode_block(o.THREE), encode_proof(o.CC_ONE))
JOBS = (
    IndexJob("base", "adapter", bytes([1]) * 32, ("one", "two"), "index"),
    AuditJob(
        "base",
        "adapter",
        bytes([1]) * 32,
        "index",
        bytes([2]) * 32,
        ((bytes([3]) * 32, 4),),
        (1, 300),
        (2,),
        16,
        120_000,
    ),
)
RESULTS = (
    IndexBuilt(bytes([1]) * 32, 4),
    AuditDone(0, bytes([2]) * 32, ((bytes(32), 10**9),)),
    JobRefused("no"),
)


def encodings() -> list[Encoding]:
    """Messages, stored objects, requests, gossip."""
    made = [
        Encoding(
            f"message {tag} {type(message).__name__} {number}",
            (1, tag, _plain(message.to_obj())),
            encode_message(message),
        )
        for number, (tag, message) in enumerate(MESSAGES)
    ]
    info = SyncInfo(o.QC_ONE, None, o.CC_ONE)
    blocks = wire.BlockRange((wire.SyncedBlock(b"block", (b"batch", b"")),), b"proof")
    record = [1, 0, 3, 1, 2, 3, *(_plain(x.to_obj()) for x in (o.VOTE, o.COMMIT_VOTE, o.TIMEOUT, o.QC_ONE))]
    return [
        *made,
        Encoding("stored genesis block", (1, _plain(o.GENESIS.to_obj())), encode_block(o.GENESIS)),
        Encoding("stored block", (1, _plain(o.THREE.to_obj())), encode_block(o.THREE)),
        Encoding("commit proof, a certificate", (1, (0, _plain(o.CC_ONE.to_obj()))), encode_proof(o.CC_ONE)),
        Encoding(
            "commit proof, two chain",
            (1, (1, (_plain(o.QC_ONE.to_obj()), _plain(o.QC_THREE.to_obj())))),
            encode_proof(TwoChain(o.QC_ONE, o.QC_THREE)),
        ),
        Encoding("commit proof, hand-over", (1, (2, _plain(o.HANDOVER.to_obj()))), encode_proof(o.HANDOVER)),
        Encoding("stored hand-over", (1, _plain(o.HANDOVER.to_obj())), encode_handover(o.HANDOVER)),
        Encoding("root of the next epoch", (1, _plain(o.START.to_obj())), encode_block(o.START)),
        *(
            Encoding(
                f"evidence {kind}",
                (1, kind, _plain(evidence.first.to_obj()), _plain(evidence.second.to_obj())),
                evidence.to_bytes(),
            )
            for kind, evidence in enumerate(o.TWICE, start=1)
        ),
        Encoding("stored certificates", (1, _plain(info.to_obj())), encode_sync_info(info)),
        Encoding("safety record", record, RECORD.to_bytes()),
        Encoding(
            "empty safety record", [1, 0, 0, 0, 0, 0, None, None, None, None], SafetyRecord(0).to_bytes()
        ),
        Encoding("announcement", (7, o.ONE.id), wire.encode_announcement(wire.Announcement(7, o.ONE.id))),
        Encoding("transactions", (b"one", b"two"), wire.encode_transactions([b"one", b"two"])),
        Encoding("storage receipt frame", named(RECEIPT), wire.encode_storage_receipt(RECEIPT)),
        Encoding("range request", (300, 64), wire.encode_range_request(300, 64)),
        Encoding("range answer", (((b"block", (b"batch", b"")),), b"proof"), wire.encode_range(blocks)),
        Encoding("block request", (o.ONE.id, 3), wire.encode_block_request(o.ONE.id, 3)),
        Encoding("chunk request", (300, 7), wire.encode_chunk_request(300, 7)),
        Encoding("epochs request", (2, 5), wire.encode_epochs_request(2, 5)),
        Encoding("epochs answer", (b"row", b""), wire.encode_epoch_rows([b"row", b""])),
        Encoding("snapshot offer", named(OFFER), wire.encode_snapshot_offer(OFFER)),
        Encoding("index request", (o.ONE.id, 3, 1 << 18), wire.encode_index_request(o.ONE.id, 3, 1 << 18)),
        Encoding("blob request", (o.ONE.id, 1 << 18), wire.encode_blob_request(o.ONE.id, 1 << 18)),
        *(
            Encoding(f"worker job {type(job).__name__}", job.fields(), pack_frame(job.fields())[4:])
            for job in JOBS
        ),
        *(
            Encoding(f"worker result {type(x).__name__}", x.fields(), pack_frame(x.fields())[4:])
            for x in RESULTS
        ),
    ]


def derived() -> Json:
    """Headers of frames, big-endian: u32 length of kind and payload, u8 kind."""
    return {
        "frame_headers": [
            {"kind": kind, "payload_bytes": size, "header": encode_header(kind, size).hex()}
            for kind, size in ((1, 0), (3, 300), (255, 1 << 20))
        ]
    }


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
