import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import codec
from node import wire
from node.wire import (
    Announcement,
    BlockRange,
    SnapshotOffer,
    StorageReceiptFrame,
    SyncedBlock,
    WireError,
)

DECODERS = [
    wire.decode_transactions,
    wire.decode_announcement,
    wire.decode_range_request,
    wire.decode_range,
    wire.decode_block_request,
    wire.decode_blob_request,
    wire.decode_index_request,
    wire.decode_storage_receipt,
    wire.decode_chunk_request,
    wire.decode_epochs_request,
    wire.decode_epoch_rows,
    wire.decode_snapshot_offer,
]


def test_everything_encoded_is_read_back() -> None:
    assert wire.decode_transactions(wire.encode_transactions([b"one", b"two"])) == [b"one", b"two"]
    announcement = Announcement(7, b"i" * 32)
    assert wire.decode_announcement(wire.encode_announcement(announcement)) == announcement
    assert wire.decode_range_request(wire.encode_range_request(5, 64)) == (5, 64)
    blocks = BlockRange((SyncedBlock(b"block", (b"batch",)), SyncedBlock(b"next", ())), b"proof")
    assert wire.decode_range(wire.encode_range(blocks)) == blocks
    assert wire.decode_block_request(wire.encode_block_request(b"i" * 32, 3)) == (b"i" * 32, 3)
    assert wire.decode_blob_request(wire.encode_blob_request(b"i" * 32, 3)) == (b"i" * 32, 3)
    assert wire.decode_index_request(wire.encode_index_request(b"i" * 32, 4, 7)) == (b"i" * 32, 4, 7)
    assert wire.decode_chunk_request(wire.encode_chunk_request(40, 3)) == (40, 3)
    assert wire.decode_epochs_request(wire.encode_epochs_request(1, 64)) == (1, 64)
    assert wire.decode_epoch_rows(wire.encode_epoch_rows([b"one", b"two"])) == [b"one", b"two"]
    offer = SnapshotOffer(b"manifest", b"block", b"proof")
    assert wire.decode_snapshot_offer(wire.encode_snapshot_offer(offer)) == offer
    receipt = StorageReceiptFrame(b"b" * 32, 9, b"r" * 32, 2, 7, b"v" * 32, b"s" * 64)
    assert wire.decode_storage_receipt(wire.encode_storage_receipt(receipt)) == receipt


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_and_nothing_else(data: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(data)
        except WireError:
            continue


@given(
    st.recursive(st.integers(-5, 2**40) | st.binary(max_size=40), lambda inner: st.lists(inner, max_size=6))
)
def test_well_formed_arrays_of_the_wrong_shape_are_a_wire_error(value: object) -> None:
    for decode in DECODERS:
        try:
            decode(codec.encode(value))
        except WireError:
            continue


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (wire.decode_range_request, wire.encode_range_request(0, 1)),
        (wire.decode_range_request, wire.encode_range_request(1, wire.RANGE_BLOCKS_MAX + 1)),
        (wire.decode_blob_request, wire.encode_blob_request(b"short", 0)),
        (wire.decode_index_request, wire.encode_index_request(b"short", 0, 0)),
        (wire.decode_index_request, wire.encode_index_request(b"i" * 32, len(wire.INDEX_FILES), 0)),
        (wire.decode_index_request, wire.encode_index_request(b"i" * 32, 0, wire.INDEX_BYTES_MAX)),
        (wire.decode_announcement, codec.encode([-1, b"i" * 32])),
        (wire.decode_transactions, codec.encode([b""] * (wire.TRANSACTIONS_MAX + 1))),
        (wire.decode_transactions, codec.encode([b"x" * wire.TRANSACTIONS_BYTES_MAX])),
    ],
)
def test_values_outside_their_range_are_refused(decode: object, data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)  # type: ignore[operator]
