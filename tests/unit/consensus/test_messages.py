"""The wire and disk codecs: every kind comes back equal, nothing malformed comes through."""

from dataclasses import replace

import pytest

from consensus.codec import decode, encode
from consensus.errors import CodecError
from consensus.messages import (
    BLOCKS_PER_MESSAGE_MAX,
    MESSAGE_BYTES_MAX,
    BlocksMessage,
    CommitVoteMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
    decode_message,
    encode_message,
)
from consensus.safety import SafetyRules, record_from_bytes
from consensus.types import (
    BLOCK_BYTES_MAX,
    QC,
    TC,
    SyncInfo,
    TwoChain,
    decode_block,
    decode_proof,
    decode_sync_info,
    encode_block,
    encode_proof,
    encode_sync_info,
    header_id,
)
from consensus.validators import VALIDATORS_MAX
from tests.unit.consensus.lab import (
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    SEEDS,
    Chain,
    cc_of,
    commit_vote_by,
    qc_of,
    quorum_tc,
    timeout_from,
    vote_by,
)

CHAIN_OF = Chain()
ONE = CHAIN_OF.block(GENESIS, 1, payload=(bytes([1]) * 32, bytes([2]) * 32))
THREE = CHAIN_OF.block(ONE, 3, tc=quorum_tc(2, qc_of(ONE)))
MESSAGES: list[Message] = [
    ProposalMessage(THREE, cc_of(ONE)),
    ProposalMessage(ONE, None),
    VoteMessage(vote_by(0, ONE)),
    CommitVoteMessage(commit_vote_by(1, ONE), qc_of(ONE)),
    timeout_from(2, 3, qc_of(ONE), quorum_tc(2, qc_of(ONE))),
    TimeoutMessage(timeout_from(2, 3, qc_of(ONE)).timeout, qc_of(ONE), None, cc_of(ONE)),
    SyncMessage(SyncInfo(qc_of(ONE), quorum_tc(2, qc_of(ONE)), cc_of(ONE))),
    SyncMessage(SyncInfo(GENESIS_QC, None, None)),
    BlocksMessage((ONE, THREE)),
    BlocksMessage(()),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_round_trip(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_field_may_be_missing_added_or_of_another_type(message: Message) -> None:
    """Every array made longer or shorter, every leaf replaced by one of another type."""

    def variants(value: object) -> list[object]:
        if not isinstance(value, list):
            wrong: list[object] = [None if value is not None else 1, "text", -1, True, b"short"]
            return wrong
        made: list[object] = [[*value, 0], value[:-1]]
        for index, item in enumerate(value):
            made.extend([*value[:index], variant, *value[index + 1 :]] for variant in variants(item))
        return made

    whole = decode(encode_message(message), MESSAGE_BYTES_MAX)
    refused = accepted = 0
    for variant in variants(whole):
        if variant == whole:
            continue
        data = encode(variant)
        try:
            changed = decode_message(data)
        except CodecError:
            refused += 1
        else:
            # What is still well-formed (a shorter list, no TC) must be another message with its own bytes.
            accepted += 1
            assert changed != message
            assert encode_message(changed) == data
    assert refused > 5 * accepted


def test_unknown_versions_and_kinds_are_refused() -> None:
    version, tag, body = decode(encode_message(MESSAGES[0]), MESSAGE_BYTES_MAX)
    for bad in ((version + 1, tag, body), (version, 99, body), (version, True, body), (True, tag, body)):
        with pytest.raises(CodecError):
            decode_message(encode(bad))


def test_lists_are_limited_and_signers_ascend() -> None:
    qc = qc_of(ONE)
    first, second, third = qc.signatures
    for rows in ((second, first, third), (first, first, third)):
        with pytest.raises(CodecError, match="ascending"):
            decode_message(encode_message(SyncMessage(SyncInfo(replace(qc, signatures=rows), None, None))))
    many = tuple((index, bytes(64)) for index in range(VALIDATORS_MAX + 1))
    with pytest.raises(CodecError):
        decode_message(encode_message(SyncMessage(SyncInfo(replace(qc, signatures=many), None, None))))
    with pytest.raises(CodecError):
        decode_message(encode_message(BlocksMessage((ONE,) * (BLOCKS_PER_MESSAGE_MAX + 1))))
    twice = replace(ONE, header=replace(ONE.header, payload=(bytes(32), bytes(32))))
    with pytest.raises(CodecError, match="twice"):
        decode_message(encode_message(BlocksMessage((twice,))))


def test_the_largest_allowed_objects_fit_their_limits() -> None:
    rows = tuple((index, bytes(64)) for index in range(VALIDATORS_MAX))
    big = (1 << 64) - 1
    qc = QC(big, big, bytes(32), bytes(32), big, rows)
    tc = TC(big, big, tuple((index, big, bytes(64)) for index in range(VALIDATORS_MAX)), qc)
    payload = tuple(index.to_bytes(32, "big") for index in range(64))
    header = replace(
        ONE.header,
        epoch=big,
        round=big,
        height=big,
        timestamp_ms=big,
        executed_height=big,
        payload=payload,
        next_validators_hash=bytes(32),
    )
    block = replace(ONE, header=header, qc=qc, tc=tc)
    assert len(encode_block(block)) <= BLOCK_BYTES_MAX
    data = encode_message(BlocksMessage((block,) * BLOCKS_PER_MESSAGE_MAX))
    assert len(data) <= MESSAGE_BYTES_MAX
    assert decode_message(data) == BlocksMessage((block,) * BLOCKS_PER_MESSAGE_MAX)
    proof = TwoChain(qc, qc)
    assert decode_proof(encode_proof(proof)) == proof
    info = SyncInfo(qc, tc, cc_of(ONE))
    assert decode_sync_info(encode_sync_info(info)) == info


def test_stored_objects_round_trip() -> None:
    assert decode_block(encode_block(THREE)) == THREE
    assert decode_block(encode_block(GENESIS)).id == GENESIS.id
    for proof in (cc_of(ONE), TwoChain(qc_of(ONE), qc_of(THREE))):
        assert decode_proof(encode_proof(proof)) == proof
    info = SyncInfo(qc_of(ONE), None, cc_of(ONE))
    assert decode_sync_info(encode_sync_info(info)) == info
    signer = SafetyRules(SEEDS[0], CONTEXT)
    signer.sign_vote(ONE)
    signer.sign_commit_vote(qc_of(ONE), ONE.header)
    signer.sign_timeout(3, qc_of(ONE), quorum_tc(2, qc_of(ONE)))
    assert record_from_bytes(signer.record.to_bytes()) == signer.record
    with pytest.raises(CodecError):
        record_from_bytes(signer.record.to_bytes()[:-1])


def test_a_block_id_covers_every_header_field() -> None:
    header = ONE.header
    changes: list[dict[str, object]] = [
        {"chain_id": bytes([9]) * 32},
        {"epoch": 1},
        {"round": 2},
        {"height": 2},
        {"parent": bytes([9]) * 32},
        {"proposer": bytes([9]) * 32},
        {"timestamp_ms": 1},
        {"payload": ()},
        {"beacon_reveal": bytes([9]) * 32},
        {"executed_height": 1},
        {"state_digest": bytes([9]) * 32},
        {"receipts_accumulator": bytes([9]) * 32},
        {"next_validators_hash": bytes([9]) * 32},
        {"snapshot_root": bytes([9]) * 32},
    ]
    assert len(changes) == len(header.__slots__)
    ids = {header_id(replace(header, **change)) for change in changes}  # type: ignore[arg-type]
    assert len(ids | {header_id(header)}) == len(changes) + 1
