"""A late node's way to a snapshot: whom to believe, from whom to fetch, what to check, and what to write down for `install`.

Trust begins at the genesis. Each epoch's set is proven by the one before (`node.epochs.check_row`), the newest set proves a committed
header, the header's root proves every chunk, the first chunk says of which block the state is, and a proof of finality of that block or
of one after it joins the blocks that follow. No peer is believed, so any of them will do; who sends what is false is penalised and left.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from consensus.beacon import reveal_hash
from consensus.config import ConsensusConfig
from consensus.errors import ConsensusError, InvalidBlock
from consensus.leaders import Leaders
from consensus.messages import BlocksMessage, decode_message
from consensus.rules import verify_block
from consensus.tree import Reveals
from consensus.types import Block, CommitProof, decode_block, decode_proof, is_boundary
from consensus.verify import verify_commit_proof
from node.epochs import EpochRow, check_row, context_of, row_from_bytes
from node.ledger.entries import BEACON, VALIDATORS_KEY, ValidatorSet
from node.ledger.epochs import consensus_set, reveals_at
from node.ledger.errors import LedgerError
from node.ledger.state import get_validators
from node.network.errors import NetworkError
from node.network.network import Network
from node.snapshot.files import Incoming, Manifest, decode_manifest
from node.snapshot.format import (
    CHUNK_BYTES_MAX,
    SnapshotHead,
    SnapshotInvalid,
    chunk_digest,
    decode_head_chunk,
    lthash_of_rows,
    read_chunks,
    snapshot_height,
)
from node.snapshot.plan import Plan
from node.wire import (
    EPOCH_ROWS_MAX,
    RANGE_BLOCKS_MAX,
    Request,
    WireError,
    decode_epoch_rows,
    decode_range,
    decode_snapshot_offer,
    encode_block_request,
    encode_chunk_request,
    encode_epochs_request,
    encode_range_request,
)

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 10.0
WRONG_BYTES_POINTS = 40
OUTSTANDING_MAX = 4
"""Chunks asked for at a time, of all peers together."""

FAILURES_MAX = 3
"""A peer that fails so often in a row to answer is left for this snapshot."""

_FAULTS = (WireError, ConsensusError, LedgerError, SnapshotInvalid)
"""What only a peer that lies, or is of another chain, sends."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A snapshot that more than two thirds of an epoch's stake voted for, and the epochs up to that one."""

    manifest: Manifest
    epochs: tuple[EpochRow, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """The block of a snapshot's state, those after it up to the one that `proof` proves, and the epoch they are of."""

    blocks: tuple[Block, ...]
    proof: CommitProof
    epoch: int


class SnapshotClient:
    """Fetches one snapshot at a time into `incoming`."""

    def __init__(
        self, network: Network, chain_id: bytes, genesis: EpochRow, incoming: Incoming, every: int
    ) -> None:
        """`every` is the chain's `snapshot_heights`."""
        self._every = every
        self._network = network
        self._chain_id = chain_id
        self._genesis = genesis
        self._incoming = incoming
        self._rows: list[EpochRow] = [genesis]

    async def fetch(self, above: int) -> bool:
        """Bring the newest snapshot on offer above a height here, checked and ready for `install`; returns whether it is.

        Asks every connected peer. What came before a failure or a restart is used again. Raises OSError from the disk.
        """
        offers: dict[bytes, tuple[Proven, list[str]]] = {}
        for peer in self._network.peers():
            if peer.connected and (proven := await self._offer(peer.peer_id)) is not None:
                offers.setdefault(proven.manifest.root, (proven, []))[1].append(peer.peer_id)
        best = max(offers.values(), key=lambda offer: offer[0].manifest.height, default=None)
        if best is None or best[0].manifest.height <= above:
            return False
        proven, sources = best
        log.info(
            "snapshot_found",
            height=proven.manifest.height,
            chunks=len(proven.manifest.digests),
            peers=len(sources),
        )
        await trio.to_thread.run_sync(self._incoming.begin, proven.manifest)
        if not await self._fetch_chunks(proven.manifest, sources):
            return False
        return await self._complete(proven, sources)

    async def _ask(self, peer_id: str, kind: Request, payload: bytes) -> bytes | None:
        try:
            return await self._network.request(peer_id, kind, payload, REQUEST_TIMEOUT_S)
        except NetworkError as error:
            log.debug("snapshot_request_failed", peer=peer_id, kind=kind.name, error=str(error))
            return None

    def _blame(self, peer_id: str, error: Exception) -> None:
        self._network.penalise(peer_id, WRONG_BYTES_POINTS, f"bad snapshot: {error}")

    # --- what is worth fetching ---

    async def _offer(self, peer_id: str) -> Proven | None:
        """What a peer offers, if a quorum vouches for it."""
        data = await self._ask(peer_id, Request.SNAPSHOT, b"")
        if not data:
            return None
        try:
            offer = decode_snapshot_offer(data)
            manifest, block = decode_manifest(offer.manifest), decode_block(offer.block)
            proof = decode_proof(offer.proof)
            if block.header.snapshot_root != manifest.root:
                raise SnapshotInvalid("the header carries another root")
            # The root does not cover the height: under a false one nobody else could be asked for these chunks.
            if manifest.height != snapshot_height(block.header.executed_height, self._every):
                raise SnapshotInvalid("the header's root is of another height")
            if not await self._learn_epochs(peer_id, block.header.epoch):
                return None
            context = context_of(self._rows[block.header.epoch], self._chain_id)
            if verify_commit_proof(context, proof)[0] != block.id:
                raise SnapshotInvalid("the proof is of another block")
        except _FAULTS as error:
            self._blame(peer_id, error)
            return None
        return Proven(manifest, tuple(self._rows[: block.header.epoch + 1]))

    async def _learn_epochs(self, peer_id: str, number: int) -> bool:
        """Follow the hand-overs up to an epoch; returns whether it was reached. Raises what a wrong row is."""
        while len(self._rows) <= number:
            request = encode_epochs_request(
                len(self._rows), min(EPOCH_ROWS_MAX, number + 1 - len(self._rows))
            )
            data = await self._ask(peer_id, Request.EPOCHS, request)
            rows = [] if data is None else decode_epoch_rows(data)
            for raw in rows:
                row = row_from_bytes(raw)
                await trio.to_thread.run_sync(check_row, self._rows[-1], row, self._chain_id)
                self._rows.append(row)
            if not rows:
                return False
        return True

    # --- the chunks ---

    async def _fetch_chunks(self, manifest: Manifest, sources: list[str]) -> bool:
        """Fetch what is missing from all sources side by side; a source that lies or fails is left."""
        missing = deque(await trio.to_thread.run_sync(self._incoming.missing, manifest, self._chain_id))
        left, failures = list(sources), dict.fromkeys(sources, 0)
        in_flight = 0

        async def work(first: int) -> None:
            nonlocal in_flight
            turn = first
            while left and (missing or in_flight):
                if not missing:  # another's chunk may come back
                    await trio.sleep(0.01)
                    continue
                index, peer_id = missing.popleft(), left[turn % len(left)]
                turn += 1
                in_flight += 1
                try:
                    good = await self._fetch_chunk(manifest, index, peer_id)
                finally:
                    in_flight -= 1
                if good:
                    failures[peer_id] = 0
                    continue
                missing.appendleft(index)
                failures[peer_id] += FAILURES_MAX if good is None else 1
                if failures[peer_id] >= FAILURES_MAX and peer_id in left:
                    left.remove(peer_id)
                    sources.remove(peer_id)

        async with trio.open_nursery() as nursery:
            for first in range(OUTSTANDING_MAX):
                nursery.start_soon(work, first)
        return not missing

    async def _fetch_chunk(self, manifest: Manifest, index: int, peer_id: str) -> bool | None:
        """Whether a chunk came; None when its sender is not worth asking again."""
        data = await self._ask(peer_id, Request.CHUNK, encode_chunk_request(manifest.height, index))
        if data is None:
            return False
        if not data:
            return None  # it has a newer one by now
        name = manifest.digests[index]
        if len(data) > CHUNK_BYTES_MAX or chunk_digest(data, self._chain_id) != name:
            self._blame(peer_id, SnapshotInvalid(f"chunk {index}"))
            return None
        await trio.to_thread.run_sync(self._incoming.put, name, data)
        return True

    # --- what goes with it ---

    async def _complete(self, proven: Proven, sources: Sequence[str]) -> bool:
        """Check the whole, find the blocks that join it to the chain, and write the plan down."""
        try:
            head, reveals, validators = await trio.to_thread.run_sync(self._check_state, proven.manifest)
        except SnapshotInvalid as error:
            # A quorum signed it, so no single peer is to blame, and no other copy will be better.
            log.error("snapshot_refused", height=proven.manifest.height, error=str(error))
            self._incoming.clear()
            return False
        for peer_id in sources:
            try:
                joint = await self._joint(peer_id, head, proven.epochs)
                if joint is None:
                    continue
                rows = vouched_rows(proven.epochs[: joint.epoch + 1], joint.blocks[0], validators)
                final = after_blocks(joint.blocks[1:], rows[-1], reveals)
            except _FAULTS as error:
                self._blame(peer_id, error)
                continue
            plan = Plan(proven.manifest.root, rows[1:], joint.blocks, joint.proof, final)
            await trio.to_thread.run_sync(self._incoming.keep_plan, plan.to_bytes())
            return True
        return False

    def _check_state(self, manifest: Manifest) -> tuple[SnapshotHead, Reveals, ValidatorSet]:
        """Add up the whole; returns what it belongs to, the beacon's state, the set in force. Raises SnapshotInvalid, OSError."""
        chunks = self._incoming.chunks(manifest, self._chain_id)
        head = decode_head_chunk(next(chunks), self._chain_id)
        if head.head.height != manifest.height:
            raise SnapshotInvalid("the state is of another height than the manifest")
        kept = _Kept({})
        lthash = lthash_of_rows(kept.passing(read_chunks(chunks)))
        if lthash != head.head.lthash:
            raise SnapshotInvalid("the values do not add up to the state digest")
        validators = get_validators(kept)
        return head, reveals_at(kept, validators), validators

    async def _joint(self, peer_id: str, head: SnapshotHead, epochs: tuple[EpochRow, ...]) -> Joint | None:
        """The block of the state and those after it up to one with a proof; None where this peer has them not."""
        height = head.head.height
        data = await self._ask(peer_id, Request.BLOCK, encode_block_request(head.head.block_id, height - 1))
        message = None if data is None else decode_message(data)
        if not isinstance(message, BlocksMessage) or not message.blocks:
            return None
        block = message.blocks[-1]
        if block.id != head.head.block_id:
            raise InvalidBlock("not the block that was asked for")
        if block.header.epoch >= len(epochs):
            raise InvalidBlock("of an epoch after that of the proof")
        self._check_block(block, epochs)
        if is_boundary(block.header):
            # Its epoch has ended, and the header with the root is of the next one or later.
            after = epochs[block.header.epoch + 1] if block.header.epoch + 1 < len(epochs) else None
            if after is None or after.handover is None:
                return None
            return Joint((block,), after.handover, block.header.epoch)
        data = await self._ask(peer_id, Request.RANGE, encode_range_request(height + 1, RANGE_BLOCKS_MAX))
        answer = None if data is None else decode_range(data)
        if answer is None or not answer.blocks:
            return None
        blocks = [block]
        for row in answer.blocks:
            blocks.append(decode_block(row.block))
            if blocks[-1].header.parent != blocks[-2].id or blocks[-1].height != blocks[-2].height + 1:
                raise InvalidBlock("committed range: does not link up")
            self._check_block(blocks[-1], epochs)
        proof = decode_proof(answer.proof)
        context = context_of(epochs[block.header.epoch], self._chain_id)
        if verify_commit_proof(context, proof)[0] != blocks[-1].id:
            raise InvalidBlock("committed range: the proof is of another block")
        return Joint(tuple(blocks), proof, block.header.epoch)

    def _check_block(self, block: Block, epochs: tuple[EpochRow, ...]) -> None:
        if block.header.epoch >= len(epochs):
            raise InvalidBlock("of an unknown epoch")
        context = context_of(epochs[block.header.epoch], self._chain_id)
        verify_block(context, ConsensusConfig(), Leaders(context.validators), block)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The few rows of a state that are looked at, kept while all of them pass by."""

    rows: dict[bytes, bytes]

    def get(self, key: bytes) -> bytes | None:
        """A kept row's value (node.ledger.overlay.StateReader)."""
        return self.rows.get(key)

    def passing(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """The same rows, one by one."""
        for key, value in rows:
            if key == VALIDATORS_KEY or key.startswith(BEACON):
                self.rows[key] = value
            yield key, value


def vouched_rows(rows: tuple[EpochRow, ...], block: Block, validators: ValidatorSet) -> tuple[EpochRow, ...]:
    """The rows up to the epoch of a state's block, the last with the set out of that state.

    A hand-over names keys, stakes, anchors and weights; whose accounts and which addresses they have only the state says, so a
    peer could have put its own in the row. Raises SnapshotInvalid where the two sets differ in what was handed over.
    """
    last = rows[-1]
    if is_boundary(block.header) or last.handover is None:
        return rows  # its set is gone from the state, and never in force here again; or is the genesis file's
    if consensus_set(validators, last.number).hash != last.consensus_set.hash:
        raise SnapshotInvalid("the state has other validators than its epoch")
    return (*rows[:-1], replace(last, validators=validators))


def after_blocks(blocks: Sequence[Block], epoch: EpochRow, reveals: Reveals) -> Reveals:
    """The beacon's state after further blocks of an epoch; raises InvalidBlock where a reveal does not follow."""
    members, after = epoch.consensus_set, list(reveals)
    for block in blocks:
        index = members.index_of(block.header.proposer)
        if index is None:
            raise InvalidBlock("proposer is not a validator")
        count, last = after[index]
        if reveal_hash(block.header.beacon_reveal) != last:
            raise InvalidBlock("beacon reveal does not hash to the last one")
        after[index] = (count + 1, block.header.beacon_reveal)
    return tuple(after)
