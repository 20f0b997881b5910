"""The worker reads blobs by name and believes no other bytes: a verdict from a damaged disk would be a slander."""

from pathlib import Path

import pytest

from node.ledger.records import decode_records, encode_records
from node.recompute.worker import BlobDamaged, read_blob
from node.storage.blobs import BlobStore


def test_records_with_a_flipped_bit_decode_and_are_refused_all_the_same(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1 << 20)
    data = encode_records([[65, 66, 67], [68, 69]])
    path = store.path(store.put(data))
    assert read_blob(str(path)) == data
    damaged = bytearray(data)
    damaged[-1] ^= 1
    assert decode_records(bytes(damaged)) != decode_records(data)
    path.write_bytes(damaged)
    with pytest.raises(BlobDamaged):
        read_blob(str(path))
