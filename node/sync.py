"""Catching up: serves blocks, batches and blobs to peers, and fetches committed ranges that this node lacks.

Runs beside consensus. A full node lives on it alone; a validator uses it when it was away.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from consensus.config import ConsensusConfig
from consensus.digest import DIGEST_BYTES
from consensus.errors import ConsensusError, InvalidBlock
from consensus.inputs import BlocksSynced, Input, MessageReceived
from consensus.messages import BLOCKS_PER_MESSAGE_MAX, BlocksMessage, decode_message, encode_message
from consensus.rules import verify_block
from consensus.types import (
    Block,
    CommitProof,
    decode_block,
    decode_proof,
    encode_block,
    encode_proof,
    is_boundary,
)
from consensus.verify import verify_commit_proof
from node.clock import now_ms
from node.directory import Directory
from node.epochs import Epochs
from node.executor import Executor
from node.fetch import Fetcher, store_batch
from node.ledger.errors import LedgerError
from node.network.errors import NetworkError, RequestRefused
from node.network.network import Network
from node.snapshot.files import Shelf
from node.snapshot.serving import SnapshotServer
from node.storage.blobs import BLOB_BYTES_MAX, BlobStore
from node.storage.chain import ChainStore
from node.storage.errors import BlobDigestMismatch
from node.wire import (
    BLOB_PART_BYTES,
    RANGE_BLOCKS_MAX,
    RANGE_BYTES_MAX,
    Announcement,
    BlockRange,
    Request,
    SyncedBlock,
    WireError,
    decode_announcement,
    decode_blob_request,
    decode_block_request,
    decode_chunk_request,
    decode_epochs_request,
    decode_index_request,
    decode_range,
    decode_range_request,
    encode_announcement,
    encode_block_request,
    encode_range,
    encode_range_request,
)

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 8.0
POLL_S = 2.0
# While blocks come through consensus, peers are asked how far they are once in so many times.
POLLS_SPARED_MAX = 8
WRONG_BYTES_POINTS = 40
REFUSED_UNKNOWN = 1
REFUSED_MALFORMED = 2
REFUSED_PRUNED = 17
EXECUTION_WAIT_S_MAX = 30.0
# A peer whose range came to nothing is left alone for so long, twice as long each time, whatever it announces.
REST_S_MIN = 1.0
REST_S_MAX = 64.0
RESTING_PEERS_MAX = 1024
RANGES_OUTSTANDING_MAX = 4
# Committed blocks that may wait for execution while further ones are fetched.
WAITING_BLOCKS_MAX = 4 * RANGE_BLOCKS_MAX


@dataclass(frozen=True, slots=True)
class Range:
    """Consecutive committed blocks as a peer sent them, checked, and the proof of the last one."""

    peer_id: str
    blocks: tuple[Block, ...]
    proof: CommitProof


class Sync:
    """Answers requests (`answer`) and follows announcements (`run`)."""

    def __init__(
        self,
        network: Network,
        store: ChainStore,
        blobs: BlobStore,
        fetcher: Fetcher,
        executor: Executor,
        directory: Directory,
        epochs: Epochs,
        chain_id: bytes,
        tell: Callable[[Input], None],
        tell_and_wait: Callable[[Input], Awaitable[None]],
        uncommitted: Callable[[bytes, int], tuple[Block, ...]],
        lead_blocks_min: Callable[[], int],
        shelf: Shelf | None = None,
        late: Callable[[int, bool], Awaitable[None]] | None = None,
        index_part: Callable[[bytes, int, int], bytes] | None = None,
    ) -> None:
        """Join the rooms.

        `index_part` reads from the indices that lie here (adapter, file, offset). `shelf` holds the snapshots that are served. `late` is asked, with the height of a peer that is ahead and whether blocks in
        between were refused as pruned, before each range; it may end the node, to start anew from a snapshot.

        `uncommitted` answers for blocks that only consensus holds; `lead_blocks_min` says how far ahead a peer must be before a range is fetched (consensus closes small gaps).
        """
        self._network = network
        self._store = store
        self._blobs = blobs
        self._fetcher = fetcher
        self._executor = executor
        self._directory = directory
        self._epochs = epochs
        self._chain_id = chain_id
        self._tell = tell
        self._tell_and_wait = tell_and_wait
        self._uncommitted = uncommitted
        self._lead_blocks_min = lead_blocks_min
        self._wanted_height = 0  # consensus cannot go on without the blocks up to here
        self._heights: dict[str, int] = {}
        # Per peer until when it rests, and how long that rest is (s).
        self._resting: dict[str, tuple[float, float]] = {}
        self._served = SnapshotServer(store, shelf)
        self._late = late
        self._index_part = index_part
        self._pruned: set[str] = set()  # peers that do not have the next block any more
        self._wake = trio.Event()
        self._polls_spared = 0
        self.syncing = False

    # --- what peers ask ---

    async def answer(self, peer_id: str, kind: int, payload: bytes) -> bytes:
        """Answer one request; raises RequestRefused (typed for the peer)."""
        try:
            match kind:
                case Request.STATUS:
                    return encode_announcement(self.announcement())
                case Request.BLOCK:
                    return encode_message(BlocksMessage(self._blocks(*decode_block_request(payload))))
                case Request.RANGE:
                    return await trio.to_thread.run_sync(self._range, *decode_range_request(payload))
                case Request.BATCH:
                    if len(payload) != DIGEST_BYTES:
                        raise WireError(f"expected the {DIGEST_BYTES} bytes of a batch's digest")
                    return self._store.batch(payload) or b""
                case Request.BLOB:
                    return await trio.to_thread.run_sync(self._blob_part, *decode_blob_request(payload))
                case Request.SNAPSHOT:
                    return await trio.to_thread.run_sync(self._served.offer)
                case Request.CHUNK:
                    return await trio.to_thread.run_sync(self._served.chunk, *decode_chunk_request(payload))
                case Request.EPOCHS:
                    return await trio.to_thread.run_sync(self._served.epochs, *decode_epochs_request(payload))
                case Request.INDEX:
                    asked = decode_index_request(payload)
                    return (
                        b""
                        if self._index_part is None
                        else await trio.to_thread.run_sync(self._index_part, *asked)
                    )
        except WireError as error:
            raise RequestRefused(REFUSED_MALFORMED, str(error)) from error
        raise RequestRefused(REFUSED_MALFORMED, f"unknown request kind {kind}")

    def announcement(self) -> Announcement:
        """How far this node has committed."""
        height = self._store.committed_height()
        return Announcement(height, self._store.committed_id(height) or bytes(32))

    def _blocks(self, block_id: bytes, known_height: int) -> tuple[Block, ...]:
        """A block and its newest ancestors above `known_height`, oldest first; empty when it is unknown."""
        chain = self._uncommitted(block_id, known_height)
        if chain:
            return chain
        found: list[Block] = []
        block = self._store.block(block_id)
        while block is not None and block.height > known_height and len(found) < BLOCKS_PER_MESSAGE_MAX:
            found.append(block)
            block = self._store.block(block.header.parent)
        return tuple(reversed(found))

    def _blob_part(self, name: bytes, offset: int) -> bytes:
        if offset >= BLOB_BYTES_MAX:
            return b""
        return self._blobs.read_part(name, offset, BLOB_PART_BYTES) or b""

    def _range(self, from_height: int, blocks_max: int) -> bytes:
        """Blocks from `from_height` on, up to the last in reach that has a proof; empty when there is none.

        As many as fit with all their batches, but always up to the first proof: batches over the limit, like those not
        here yet, are left empty, and are fetched one by one.
        """
        if from_height < self._store.pruned_below():
            raise RequestRefused(REFUSED_PRUNED, f"blocks below {self._store.pruned_below()} are gone here")
        blocks, first = self._blocks_and_first_proof(from_height, blocks_max)
        rows: list[SyncedBlock] = []
        proven, proof = 0, b""
        size = sum(len(encode_block(block)) for block in blocks[: first + 1])
        for place, block in enumerate(blocks):
            encoded = encode_block(block)
            size += len(encoded) if place > first else 0
            batches: list[bytes] = []
            for digest in block.header.payload:
                data = self._store.batch(digest) or b""
                batches.append(data if size + len(data) <= RANGE_BYTES_MAX else b"")
                size += len(data)
            if place > first and size > RANGE_BYTES_MAX:
                break
            rows.append(SyncedBlock(encoded, tuple(batches)))
            if place >= first and (found := self._store.proof_at(block.height)) is not None:
                proven, proof = len(rows), encode_proof(found)
        return encode_range(BlockRange(tuple(rows[:proven]), proof))

    def _blocks_and_first_proof(self, from_height: int, blocks_max: int) -> tuple[list[Block], int]:
        """Committed blocks from a height on, and the place among them of the first with a proof."""
        blocks: list[Block] = []
        last = min(from_height + blocks_max - 1, self._store.committed_height())
        for height in range(from_height, last + 1):
            block = self._store.block_at(height)
            if block is None:
                break
            blocks.append(block)
            if is_boundary(block.header):
                break  # what follows is verified by another validator set
        proofs = (place for place, block in enumerate(blocks) if self._store.proof_at(block.height))
        return blocks, next(proofs, len(blocks))

    # --- what this node asks ---

    def announced(self, peer_id: str, data: bytes) -> None:
        """Note how far a peer has come; raises WireError."""
        self._note(peer_id, decode_announcement(data).height)

    def behind(self, target_height: int, validators: tuple[bytes, ...]) -> None:
        """Consensus saw certificates far above its height, signed by these validators."""
        self._wanted_height = max(self._wanted_height, target_height)
        for peer_id in self._directory.peers(validators):
            self._note(peer_id, target_height)

    def _note(self, peer_id: str, height: int) -> None:
        self._heights[peer_id] = max(height, self._heights.get(peer_id, 0))
        self._wake.set()

    def forget(self, peer_id: str) -> None:
        """A peer has gone; what it announced may not be had any more."""
        self._heights.pop(peer_id, None)

    async def fetch_block(self, block_id: bytes, known_height: int, validators: tuple[bytes, ...]) -> None:
        """Fetch a block and its newest ancestors above `known_height`, and give them to consensus."""
        for key in validators:
            peer_id = self._directory.peer_of.get(key)
            if peer_id is None:
                continue
            request = encode_block_request(block_id, known_height)
            try:
                answer = await self._network.request(peer_id, Request.BLOCK, request, REQUEST_TIMEOUT_S)
                message = decode_message(answer)
            except (NetworkError, ConsensusError) as error:
                log.debug("block_fetch_failed", peer=peer_id, error=str(error))
                continue
            if isinstance(message, BlocksMessage) and message.blocks:
                self._tell(MessageReceived(key, message, now_ms()))
                return

    async def run(self) -> None:
        """Follow the highest peer for ever."""
        while True:
            before = self._store.committed_height()
            with trio.move_on_after(POLL_S):
                await self._wake.wait()
            if not self._wake.is_set() and not self._spares_poll(before):
                await self._poll()
            self._wake = trio.Event()
            while (peer_id := self._leader()) is not None:
                self.syncing = True
                if self._late is not None:
                    await self._late(self._heights[peer_id], self._gone())
                if await self._follow(peer_id):
                    self._resting.pop(peer_id, None)
                    self._pruned.clear()
                else:
                    self.forget(peer_id)
                    if self._resting.get(peer_id, (0.0, 0.0))[0] <= trio.current_time():
                        self._rest(peer_id)
            self.syncing = False

    def _spares_poll(self, before: int) -> bool:
        """Whether blocks came without us (`before` was the height), so through consensus: then nobody is far ahead."""
        grew = self._store.committed_height() > before
        self._polls_spared = self._polls_spared + 1 if grew and self._polls_spared < POLLS_SPARED_MAX else 0
        return self._polls_spared > 0

    def _gone(self) -> bool:
        """Whether every peer that is ahead has refused the next block as pruned: one alone may lie, or have little room."""
        here, now_s = self._store.committed_height(), trio.current_time()
        connected = {peer.peer_id for peer in self._network.peers() if peer.connected}
        self._pruned &= connected
        awake = {
            peer
            for peer in connected
            if self._heights.get(peer, 0) > here and self._resting.get(peer, (0.0, 0.0))[0] <= now_s
        }
        return bool(self._pruned) and awake <= self._pruned

    def _rest(self, peer_id: str) -> None:
        """Leave a peer alone for a while: one that announces what it does not have must not keep the others waiting."""
        _, before_s = self._resting.pop(peer_id, (0.0, REST_S_MIN / 2))
        rest_s = min(before_s * 2, REST_S_MAX)
        if len(self._resting) >= RESTING_PEERS_MAX:
            del self._resting[next(iter(self._resting))]
        self._resting[peer_id] = (trio.current_time() + rest_s, rest_s)

    def _leader(self) -> str | None:
        """The peer that is furthest ahead, if it is far enough ahead and does not rest."""
        here, now_s = self._store.committed_height(), trio.current_time()
        awake = [peer for peer in self._heights if self._resting.get(peer, (0.0, 0.0))[0] <= now_s]
        peer_id = max(awake, key=lambda peer: (self._heights[peer], peer), default=None)
        lead = 1 if here < self._wanted_height else self._lead_blocks_min()
        if peer_id is None or self._heights[peer_id] < here + lead:
            return None
        return peer_id

    async def _poll(self) -> None:
        """Ask every connected peer how far it is; gossip may have been lost."""
        async with trio.open_nursery() as nursery:
            for peer in self._network.peers():
                if peer.connected:
                    nursery.start_soon(self._ask_height, peer.peer_id)

    async def _ask_height(self, peer_id: str) -> None:
        try:
            self.announced(peer_id, await self._network.request(peer_id, Request.STATUS, b"", POLL_S))
        except (NetworkError, WireError) as error:
            log.debug("status_failed", peer=peer_id, error=str(error))

    async def _follow(self, peer_id: str) -> bool:
        """Fetch and apply ranges until nobody is ahead, or one fails; returns whether the chain grew.

        The first comes from this peer and says how many blocks a range holds. Then up to `RANGES_OUTSTANDING_MAX` at a time
        come from all peers that are ahead, are checked as they arrive and applied in order, while earlier ones execute.
        """
        before = self._store.committed_height()
        if not await self._advance(peer_id):
            return False
        span = self._store.committed_height() - before
        going = True
        while going and (peers := self._ahead(span)):
            going = await self._advance_many(peers, span)
        return await self._executed_beyond(before)

    def _ahead(self, span: int) -> list[str]:
        """Peers that do not rest and have the next two ranges of `span` blocks, the furthest ahead first."""
        wanted, now_s = self._store.committed_height() + 2 * span, trio.current_time()
        peers = [
            peer
            for peer, height in self._heights.items()
            if height >= wanted and self._resting.get(peer, (0.0, 0.0))[0] <= now_s
        ]
        return sorted(peers, key=lambda peer: (-self._heights[peer], peer))

    async def _advance_many(self, peers: list[str], span: int) -> bool:
        """Fetch several ranges side by side and apply them in order; returns whether all of them came and fitted."""
        here = self._store.committed_height()
        count = min(RANGES_OUTSTANDING_MAX, (self._heights[peers[0]] - here) // span)
        arrived = [trio.Event() for _ in range(count)]
        found: list[Range | None] = [None] * count

        async def fetch(place: int) -> None:
            peer_id = peers[place % len(peers)]
            found[place] = await self._fetch_range(peer_id, here + place * span, span)
            arrived[place].set()

        async with trio.open_nursery() as nursery:
            for place in range(count):
                nursery.start_soon(fetch, place)
            for place in range(count):
                await arrived[place].wait()
                await self._room_for_execution()
                if not await self._apply(found[place]):
                    nursery.cancel_scope.cancel()
                    return False
        return True

    async def _advance(self, peer_id: str) -> bool:
        """Fetch and apply one range from this peer; returns whether the chain grew."""
        before = self._store.committed_height()
        found = await self._fetch_range(peer_id, before, RANGE_BLOCKS_MAX)
        return await self._apply(found) and await self._executed_beyond(before)

    async def _fetch_range(self, peer_id: str, height: int, count: int) -> Range | None:
        """At most `count` blocks above `height`, checked, their batches stored; None where there are none or they are wrong."""
        request = encode_range_request(height + 1, count)
        try:
            data = await self._network.request(peer_id, Request.RANGE, request, REQUEST_TIMEOUT_S)
            found = await trio.to_thread.run_sync(self._check_and_store, data, height)
        except NetworkError as error:
            if isinstance(error, RequestRefused) and error.code == REFUSED_PRUNED:
                self._pruned.add(peer_id)
            log.info("range_failed", peer=peer_id, error=str(error))
            self._rest(peer_id)
            return None
        except (WireError, ConsensusError, LedgerError, BlobDigestMismatch) as error:
            self._network.penalise(peer_id, WRONG_BYTES_POINTS, f"bad range: {error}")
            self._rest(peer_id)
            return None
        return None if found is None else Range(peer_id, *found)

    async def _apply(self, found: Range | None) -> bool:
        """Give a range to consensus, where it joins the committed chain; returns whether that grew."""
        before = self._store.committed_height()
        if found is None or not found.blocks[0].height <= before + 1 <= found.blocks[-1].height:
            return False
        blocks = tuple(block for block in found.blocks if block.height > before)
        sender = self._directory.validator_of.get(found.peer_id)
        await self._tell_and_wait(BlocksSynced(sender, blocks, found.proof, now_ms()))
        if self._store.committed_height() <= before:
            # Refused although a quorum signed it: this node's own trouble, not the peer's. Waiting would be endless.
            log.error("range_refused", peer=found.peer_id, height=before + 1)
            return False
        return True

    async def _room_for_execution(self) -> None:
        """Wait until few enough committed blocks wait to be executed that more of them are worth fetching."""
        with trio.move_on_after(EXECUTION_WAIT_S_MAX):
            while self._executor.waiting_blocks > WAITING_BLOCKS_MAX:
                await self._executor.progress()

    def _check_and_store(self, data: bytes, height: int) -> tuple[tuple[Block, ...], CommitProof] | None:
        """Check an answer wholly, store its batches, and return blocks and proof; None for an empty one.

        Nothing is stored on the word of a peer alone: first a quorum's proof of the last block and the chain of parents
        down to our committed block at `height` (where the chain has come so far), then each batch against the block that names it. Raises WireError,
        ConsensusError, LedgerError, BlobDigestMismatch, all of them the sender's fault.
        """
        answer = decode_range(data)
        if not answer.blocks:
            return None
        blocks = tuple(decode_block(row.block) for row in answer.blocks)
        proof = decode_proof(answer.proof)
        # An epoch may have ended here since the range was asked for, which is no fault of the sender.
        epoch = blocks[0].header.epoch
        if epoch > self._epochs.current.number:
            return None  # the last block is still being executed, and then that epoch begins here too
        context, leaders = self._epochs.context(epoch), self._epochs.leaders(epoch)
        if context is None or leaders is None:
            return None
        # Further ahead, what links the first block to ours comes with the range before it; the proof holds by itself.
        parent: bytes | None = blocks[0].header.parent
        if height <= self._store.committed_height():
            parent = self._epochs.start_id(height, self._store.block_at(height))
        if parent is None:
            return None
        for place, block in enumerate(blocks, height + 1):
            if block.header.parent != parent or block.height != place:
                raise InvalidBlock("committed range: does not link up")
            parent = block.id
        if verify_commit_proof(context, proof)[0] != parent:
            raise InvalidBlock("committed range: the proof is of another block")
        for block, row in zip(blocks, answer.blocks, strict=True):
            verify_block(context, ConsensusConfig(), leaders, block)
            if len(row.batches) != len(block.header.payload):
                raise WireError("a block with another number of batches than it names")
            for name, batch in zip(block.header.payload, row.batches, strict=True):
                if batch:  # an empty one is not there, or did not fit: it is fetched before execution
                    store_batch(self._store, batch, self._chain_id, expected=name)
        return blocks, proof

    async def _executed_beyond(self, height: int) -> bool:
        """Wait until the range has been executed, so that no more is fetched than is used."""
        with trio.move_on_after(EXECUTION_WAIT_S_MAX):
            while self._executor.head.height <= height or self._executor.waiting_blocks:
                await self._executor.progress()
            return True
        return self._store.committed_height() > height

    async def make_available(self, block: Block) -> None:
        """Return once every batch of a committed block is stored; more than two thirds of stake held them."""
        for name in block.header.payload:
            while self._store.batch(name) is None:
                await self._fetcher.batch(name, self._directory.peers((block.header.proposer,)))
