"""The replica's state, shared by the handlers; no rules live here."""

from consensus.beacon import BeaconChain
from consensus.book import Book
from consensus.config import ConsensusConfig
from consensus.effects import EpochEnded, Misbehaved, Stalled
from consensus.fetches import Fetches
from consensus.inputs import TimerKind
from consensus.leaders import Leaders
from consensus.messages import TimeoutMessage
from consensus.outbox import Outbox
from consensus.recovery import ExecutionResult
from consensus.safety import ForeignSignature, SafetyRecord, Signer
from consensus.tree import BlockTree, Node
from consensus.types import (
    QC,
    TC,
    Block,
    CommitCertificate,
    CommitProof,
    CommitVote,
    Handover,
    SyncInfo,
    Vote,
)
from consensus.verify import Context

ORPHANS_MAX = 128
"""Verified blocks whose parent is missing; past it the lowest round is dropped and fetched again if needed."""
TREE_BLOCKS_MAX = 1024
"""Past it, blocks that are not on the highest QC's path are dropped; that path itself grows one block per QC."""
AVAILABLE_MAX = 65536
"""Batches known to be stored; past it the oldest is forgotten and asked for again (the driver answers at once)."""
REFUSED_MAX = 4096
"""Batches known to be invalid; past it the oldest is forgotten and judged again if it is ever named."""
RESULTS_MAX = 4096
"""Execution results kept for comparison; past it the oldest goes, and blocks that claim it get no vote."""
ROUNDS_AHEAD_MAX = 32
"""Votes for rounds further ahead than this are dropped; certificates move us there instead."""
ROUNDS_BEHIND_MAX = 16
"""Votes for rounds further behind than this are dropped: their certificate travels with proposals."""


class Core:
    """Mutable state of a replica. Handlers read and change it; `Replica` owns the only one."""

    def __init__(
        self,
        context: Context,
        config: ConsensusConfig,
        genesis: Block,
        safety: Signer | None,
        beacon: BeaconChain | None,
    ) -> None:
        validators = context.validators
        self.context = context
        self.config = config
        self.genesis = genesis
        self.safety = safety
        self.beacon = beacon
        self.me = None if safety is None else validators.index_of(safety.public)
        self.leaders = Leaders(validators)
        self.now_ms = 0
        self.started = False

        anchors = tuple((0, validator.beacon_anchor) for validator in validators.validators)
        self.anchors = anchors
        self.tree = BlockTree(Node(genesis, anchors, None, True, context.genesis_qc, True))
        self.proof: CommitProof | None = None
        self.orphans: dict[bytes, tuple[Block, int]] = {}
        self.proposals: dict[int, Block] = {}

        self.high_qc: QC = context.genesis_qc
        self.high_cc: CommitCertificate | None = None
        self.last_tc: TC | None = None
        self.collected = 0  # round of the highest QC that was made here, of votes

        self.votes: Book[Vote] = Book()
        self.commit_votes: Book[CommitVote] = Book()
        self.timeouts: Book[TimeoutMessage] = Book()

        self.round = 1
        self.round_entered_ms = 0
        self.round_by_tc = False
        self.active_since_ms: int | None = None
        self.timed_out_ms: int | None = None
        self.timeout_base_ms = config.timeout_ms_base
        self.armed: dict[TimerKind, int] = {}
        self.helped: dict[bytes, int] = {}

        self.payload_pending = False
        self.payload_asked = False
        self.payload_idle = False
        self.available: dict[bytes, None] = {}
        self.refused: dict[bytes, None] = {}
        self.accused: dict[bytes, None] = {}

        self.executed_height = 0
        self.results: dict[int, ExecutionResult] = {}
        if genesis.height == 0:
            # Of a later epoch's root only the ledger itself can say whether it got there.
            self.results[0] = ExecutionResult(
                0, genesis.header.state_digest, genesis.header.receipts_accumulator
            )
        self.claims: dict[int, tuple[bytes, ExecutionResult]] = {}
        self.diverged = False
        self.foreign: ForeignSignature | None = None
        self.unsigned = False  # a vote or commit vote was refused when last asked for
        self.beacon_spent = False

        self.block_fetches = Fetches(64, 32, config.fetch_retry_ms)
        self.payload_fetches = Fetches(1024, 8, config.fetch_retry_ms)
        self.behind_told: tuple[int, int] = (0, 0)

        self.ended: EpochEnded | None = None
        self.handover: tuple[bytes, Handover, bytes | None] | None = None
        self.handed: dict[bytes, int] = {}
        self.newer: dict[bytes, None] = {}

        self.out = Outbox()
        self.stored_record: SafetyRecord | None = None if safety is None else safety.record
        self.stored_certificates: SyncInfo | None = None

    @property
    def root(self) -> Block:
        """The last committed block."""
        return self.tree.root.block

    @property
    def sync_info(self) -> SyncInfo:
        """The highest certificates known here."""
        return SyncInfo(self.high_qc, self.last_tc, self.high_cc)

    def leader(self, round_: int) -> bytes:
        """Validator id of the leader of a round."""
        return self.context.validators.validators[self.leaders.index(round_)].id

    def others(self, ids: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return `ids` without ourselves and without repeats, in order."""
        own = None if self.safety is None else self.safety.public
        return tuple(dict.fromkeys(key for key in ids if key != own))

    def signers(self, signatures: tuple[tuple[int, bytes], ...]) -> tuple[bytes, ...]:
        """Validator ids of a certificate's signers."""
        return tuple(self.context.validators.validators[index].id for index, _ in signatures)

    def rounds_since_commit(self) -> int:
        """Rounds that passed without a commit; 0 in the normal case, where a commit lags by two rounds."""
        return max(0, self.round - self.root.round - 2)

    @property
    def collects(self) -> bool:
        """Whether this validator sends its votes to the next leader alone."""
        return self.config.vote_fanout == "collector"

    def accuse(self, peer: bytes | None, reason: str, evidence: bytes = b"") -> None:
        """Report a peer."""
        self.out.report(Misbehaved(peer, reason, evidence))

    def stalled(self, reason: str) -> None:
        """Report that progress has stopped here."""
        self.out.report(Stalled(self.round, self.rounds_since_commit(), reason))


def remember(bounded: dict[bytes, None], key: bytes, entries_max: int) -> None:
    """Add to an insertion-ordered set, dropping the oldest past `entries_max`."""
    if key in bounded:
        return
    if len(bounded) >= entries_max:
        del bounded[next(iter(bounded))]
    bounded[key] = None
