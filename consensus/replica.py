"""The consensus state machine: one door, `Replica.step(input) -> list[Effect]`."""

from typing import assert_never

from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.core import AVAILABLE_MAX, REFUSED_MAX, Core, remember
from consensus.crypto import Verifier
from consensus.effects import Effect, EpochEnded, Persist
from consensus.ending import of_another_epoch
from consensus.errors import LocalError, RemoteError
from consensus.execution import check_committed_claims, on_executed
from consensus.inputs import (
    BlocksSynced,
    Executed,
    Input,
    MessageReceived,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    PayloadRefused,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.leading import on_offered, propose_deadline, try_request
from consensus.messages import (
    BLOCKS_PER_MESSAGE_MAX,
    BlocksMessage,
    CommitVoteMessage,
    HandoverMessage,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.pacemaker import arm, note_activity, round_deadline, round_timer_fired
from consensus.proposals import on_blocks, on_proposal
from consensus.recovery import RecoveredState
from consensus.safety import ForeignSignature, SafetyRecord, SafetyRules, Signer
from consensus.settled import Settled, settled_on, still_settled
from consensus.sync import fetch_deadline, on_handover, on_synced, recover, repeat_own, request_missing
from consensus.timeouts import on_sync, on_timeout, try_timeouts
from consensus.tree import Reveals
from consensus.types import QC, Block, CommitCertificate, CommitProof, SyncInfo
from consensus.validators import ValidatorSet
from consensus.verify import Context, make_context
from consensus.voting import on_commit_vote, on_vote, try_commit_vote, try_vote

SETTLE_MAX = 64
"""Own actions that can follow one input; each vote, commit vote or timeout raises a round, so a few is the most."""


class Replica:
    """One validator's, or without `seed` one observer's, view of the chain. Pure and deterministic.

    The driver's contract:

    - Inputs are given one at a time; the first is `Started`, once. `now_ms` never falls.
    - Effects are performed in the order given. `Persist` is one atomic write, finished (with fsync if `sync`) before
      the first `Send` of its step goes out. If it fails the process must stop: the replica has already moved on.
    - A batch is written before its `PayloadAvailable`, to the same log, so that a synced `Persist` covers it.
    - Our own messages need not be sent back to us: they are already counted.
    - On restart the driver hands back what was persisted as `RecoveredState`, executes committed blocks it had not
      executed, and reports them as `Executed`.
    - `Executed` follows `Deliver` order. A replica waits for it before it votes on, or proposes, a later claim.
    - After `EpochEnded` the driver executes up to the boundary and starts a replica of the next epoch; until then it goes on
      giving this one its inputs. Each epoch has its own replica; the driver keeps what `HelpEpoch` asks for.

    Args:
        validators: the epoch's set.
        genesis: `types.genesis_block(...)`, or `epochs.epoch_start(...)` of a later epoch; its header names the chain id.
        config: timing and limits.
        seed: 32-byte Ed25519 secret of a validator. With neither it nor `signer`, an observer, which signs and sends nothing.
        signer: who signs instead, with its own record (`recovered.record` is not looked at); give one of the two.
        beacon: the validator's own hash chain, anchored in `validators`; without it a validator never leads.
        recovered: what was stored, or None on the very first start.
        verifier: a signature memory to share between replicas in one process; by default its own.

    Raises:
        LocalError: the seed is no validator's, or the stored state belongs to another chain or a later epoch.
    """

    def __init__(
        self,
        validators: ValidatorSet,
        genesis: Block,
        config: ConsensusConfig,
        *,
        seed: bytes | None = None,
        signer: Signer | None = None,
        beacon: BeaconChain | None = None,
        recovered: RecoveredState | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        context = make_context(validators, genesis, verifier)
        record = None if recovered is None else recovered.record
        safety = _signer(context, seed, signer, record)
        if safety is not None and beacon is not None:
            index = validators.index_of(safety.public)
            if index is None or validators.validators[index].beacon_anchor != beacon.anchor:
                raise LocalError("the beacon chain does not end in the validator's anchor")
        self._core = Core(context, config, genesis, safety, beacon)
        self._recovered = recovered
        self._settled: Settled | None = None

    def step(self, event: Input) -> list[Effect]:
        """Apply one input and return its effects in contract order: persist, send, deliver, then the rest.

        A faulty peer becomes a `Misbehaved` effect and changes nothing.

        Raises:
            LocalError: the driver broke the contract; the replica must not be used further.
        """
        core = self._core
        if core.started == isinstance(event, Started):
            raise LocalError("`Started` comes first, and once")
        core.now_ms = max(core.now_ms, event.now_ms)
        try:
            if core.ended is None or isinstance(event, (MessageReceived, Executed)):
                self._handle(event)
        except RemoteError as fault:
            sender = event.sender if isinstance(event, (MessageReceived, BlocksSynced)) else None
            core.accuse(sender, fault.reason)
        if not (isinstance(event, MessageReceived) and still_settled(core, self._settled)):
            self._settle()
            self._settled = settled_on(core)
        return self._flush()

    def _handle(self, event: Input) -> None:
        core = self._core
        match event:
            case MessageReceived():
                self._receive(event)
            case TimerFired(kind=kind):
                core.armed.pop(kind, None)
                if kind is TimerKind.ROUND:
                    round_timer_fired(core)
            case PayloadAvailable(digest=digest):
                remember(core.available, digest, AVAILABLE_MAX)
                core.payload_fetches.got(digest)
            case PayloadRefused(digest=digest):
                remember(core.refused, digest, REFUSED_MAX)
                core.payload_fetches.got(digest)
            case PayloadOffered():
                on_offered(core, event)
            case PayloadPending(pending=pending):
                core.payload_pending = pending
                core.payload_idle = False
            case Executed():
                on_executed(core, event)
            case BlocksSynced():
                on_synced(core, event)
            case Started():
                self._start()
            case _:
                assert_never(event)

    def _receive(self, event: MessageReceived) -> None:
        core, sender = self._core, event.sender
        if of_another_epoch(core, event):
            return
        match event.message:
            case ProposalMessage() as message:
                on_proposal(core, sender, message)
            case VoteMessage() as message:
                on_vote(core, message.vote)
            case CommitVoteMessage() as message:
                on_commit_vote(core, sender, message)
            case TimeoutMessage() as message:
                on_timeout(core, sender, message)
            case SyncMessage() as message:
                on_sync(core, sender, message)
            case BlocksMessage() as message:
                on_blocks(core, sender, message)
            case HandoverMessage() as message:
                on_handover(core, sender, message)
            case _:
                assert_never(event.message)

    def _start(self) -> None:
        core = self._core
        core.started = True
        core.round_entered_ms = core.now_ms
        if self._recovered is not None:
            recover(core, self._recovered)
            self._recovered = None
        # A quorum stands behind what the root says of the ledger: we agree, or find out when we get there.
        check_committed_claims(core, (core.root,))
        if core.ended is None:
            repeat_own(core)

    def _settle(self) -> None:
        """Do what the rules now ask of us, until there is nothing left, then request and set timers."""
        core = self._core
        core.unsigned = False
        for _ in range(SETTLE_MAX):
            acted = False
            for act in (try_vote, try_commit_vote, try_timeouts):
                # Each may end the epoch, after which nothing is signed.
                acted = (core.ended is None and act(core)) or acted
            if not acted:
                break
        else:
            raise LocalError("own actions do not settle")
        if core.ended is not None:
            for kind in TimerKind:
                arm(core, kind, None)
            return
        try_request(core)
        request_missing(core)
        note_activity(core)
        arm(core, TimerKind.ROUND, round_deadline(core))
        arm(core, TimerKind.PROPOSE, propose_deadline(core))
        arm(core, TimerKind.FETCH, fetch_deadline(core))

    def _flush(self) -> list[Effect]:
        """Return the step's effects, with a `Persist` if anything was signed or committed."""
        core, out = self._core, self._core.out
        record = None if core.safety is None else core.safety.record
        signed = record is not core.stored_record and record != core.stored_record
        if not (signed or out.filled):
            return []
        persist = None
        if signed or out.committed:
            info = core.sync_info
            fresh = [node for node in core.tree.nodes.values() if not node.stored]
            for node in fresh:
                node.stored = True
            persist = Persist(
                sync=signed,
                record=record.to_bytes() if signed and record is not None else None,
                certificates=None if info == core.stored_certificates else info,
                blocks=tuple(node.block for node in fresh if node is not core.tree.root),
                committed=tuple(out.committed),
                proof=out.proof,
                reveals=core.tree.root.reveals if out.committed else (),
                forgotten=tuple(out.forgotten),
            )
            core.stored_record, core.stored_certificates = record, info
            out.forgotten = []
        effects = out.flush(persist)
        out.sends, out.delivers, out.others = [], [], []
        out.committed, out.proof = [], None
        return effects

    # What the driver may ask, without changing anything.

    @property
    def round(self) -> int:
        """Current round."""
        return self._core.round

    @property
    def committed(self) -> Block:
        """The last committed block; genesis at first."""
        return self._core.root

    @property
    def committed_proof(self) -> CommitProof | None:
        """Proof of `committed`; None for genesis."""
        return self._core.proof

    @property
    def ended(self) -> EpochEnded | None:
        """How the epoch ended, once its boundary is delivered."""
        return self._core.ended

    @property
    def reveals(self) -> Reveals:
        """Beacon state up to `committed`, by validator index: what `epochs.carry_reveals` takes."""
        return self._core.tree.root.reveals

    @property
    def executed_height(self) -> int:
        """Highest height reported by `Executed`."""
        return self._core.executed_height

    @property
    def high_qc(self) -> QC:
        """The highest QC known."""
        return self._core.high_qc

    @property
    def high_cc(self) -> CommitCertificate | None:
        """The highest CC known; it may be of a block not yet here."""
        return self._core.high_cc

    @property
    def sync_info(self) -> SyncInfo:
        """The highest certificates, fit for a `SyncMessage` to a node that just connected."""
        return self._core.sync_info

    @property
    def diverged(self) -> bool:
        """Whether our execution contradicts a committed header: no votes and proposals until it is repaired."""
        return self._core.diverged

    @property
    def foreign_signature(self) -> ForeignSignature | None:
        """A signature of our own key that our record does not know: the process must stop, see `consensus.custody`."""
        return self._core.foreign

    def leader(self, round_: int) -> bytes:
        """Validator id of a round's leader."""
        return self._core.leader(round_)

    def uncommitted_chain(self, block_id: bytes, known_height: int) -> tuple[Block, ...]:
        """Return an uncommitted block and its uncommitted ancestors above `known_height`, oldest first.

        At most the newest 16, the answer to a block request; empty if the block is unknown or already committed.
        """
        core = self._core
        if block_id in core.tree:
            path = [node.block for node in core.tree.path(block_id)]
            return tuple(block for block in path if block.height > known_height)[-BLOCKS_PER_MESSAGE_MAX:]
        orphan = core.orphans.get(block_id)
        return () if orphan is None else (orphan[0],)


def _signer(
    context: Context, seed: bytes | None, signer: Signer | None, record: SafetyRecord | None
) -> Signer | None:
    if seed is not None and signer is not None:
        raise LocalError("a seed and a signer")
    if seed is not None:
        return SafetyRules(seed, context, record)
    if signer is None:
        return None
    if context.validators.index_of(signer.public) is None:
        raise LocalError("the signing key is not a validator's")
    if signer.record.epoch != context.epoch:
        raise LocalError("the signer's record is of another epoch")
    return signer
