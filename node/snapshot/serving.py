"""What a node tells of its snapshots and epochs to those who start late. Every answer is bounded; nothing is computed for it."""

from dataclasses import dataclass, field

from consensus.types import encode_block, encode_proof
from node.snapshot.files import Manifest, Shelf, encode_manifest
from node.storage.chain import ChainStore
from node.wire import (
    EPOCH_ROWS_BYTES_MAX,
    SnapshotOffer,
    encode_epoch_rows,
    encode_snapshot_offer,
)


@dataclass(slots=True)
class SnapshotServer:
    """Reads the shelf and the chain; its methods may run in any thread."""

    store: ChainStore
    shelf: Shelf | None
    _manifests: dict[int, tuple[bytes, Manifest]] = field(default_factory=dict)

    def offer(self) -> bytes:
        """The snapshot whose root the last committed header carries; empty where it is not here (or not yet)."""
        height = self.store.committed_height()
        block, proof = self.store.block_at(height), self.store.proof_at(height)
        if self.shelf is None or block is None or proof is None or not block.header.snapshot_root:
            return b""
        for at in self.shelf.heights():
            found = self._manifest(at)
            if found is not None and found[0] == block.header.snapshot_root:
                offer = SnapshotOffer(encode_manifest(found[1]), encode_block(block), encode_proof(proof))
                return encode_snapshot_offer(offer)
        return b""

    def chunk(self, height: int, index: int) -> bytes:
        """One chunk; empty where it is not here (any more)."""
        if self.shelf is None or self._manifest(height) is None:
            return b""
        return self.shelf.chunk(height, index) or b""

    def epochs(self, first: int, count: int) -> bytes:
        """The rows of consecutive epochs, as many as are here and fit, the first one always."""
        rows: list[bytes] = []
        size = 0
        for number in range(first, first + count):
            row = self.store.epoch(number)
            size += 0 if row is None else len(row)
            if row is None or (rows and size > EPOCH_ROWS_BYTES_MAX):
                break
            rows.append(row)
        return encode_epoch_rows(rows)

    def _manifest(self, height: int) -> tuple[bytes, Manifest] | None:
        """Root and manifest of a snapshot; remembered, since its files never change."""
        known = self._manifests.get(height)
        if known is None:
            manifest = None if self.shelf is None else self.shelf.manifest(height)
            if manifest is None:
                return None
            known = (manifest.root, manifest)
            while len(self._manifests) >= 4:
                del self._manifests[min(self._manifests)]
            self._manifests[height] = known
        return known
