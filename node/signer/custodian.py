"""Holds the key in the signer's process: runs the safety rules, and writes down what they signed before it leaves.

Everything a request relies on is verified here, by `consensus.safety` itself; the daemon that asks is trusted with
nothing. One that lies can have any block proposed and any certified block voted for, each round once, but nothing said
twice. Requests are answered one at a time: two daemons with one signer see one record.
"""

from collections import Counter
from pathlib import Path

import structlog

from consensus.errors import LocalError, RemoteError, SafetyRefusal
from consensus.safety import ForeignSignature, SafetyRecord, SafetyRules
from consensus.types import QC, TC, CommitVote, SyncInfo, Timeout, Vote, header_id
from consensus.verify import Context, make_context, verify_handover
from node.home import write_atomic
from node.signer.book import Book, Page, Proposal
from node.signer.epoch import EpochRoot, root_after
from node.signer.protocol import (
    Answer,
    AskCommitVote,
    AskEpoch,
    AskForeign,
    AskProposal,
    AskStatus,
    AskTimeout,
    AskVote,
    Judged,
    Refused,
    Request,
    Signed,
    Status,
)
from node.storage.errors import SigningKeyElsewhere
from node.storage.guard import SafetyGuard

log = structlog.get_logger(__name__)


class Custodian:
    """The only code that signs with this key.

    Args:
        seed: 32-byte Ed25519 secret.
        root: the epoch that the signer knows: its validators and the block it begins with.
        root_path: where a later epoch's root is written.
        book: what was signed.
        guard: the second witness, already held against the book.

    Raises:
        LocalError: the book is of a later epoch than the root.
    """

    def __init__(self, seed: bytes, root: EpochRoot, root_path: Path, book: Book, guard: SafetyGuard) -> None:
        self._seed = seed
        self._root_path = root_path
        self._book = book
        self._guard = guard
        self._over: SigningKeyElsewhere | None = None
        self.counts: Counter[str] = Counter()
        self._enter(root)
        record = book.page.record
        if record is not None and self._is_current(record):
            # A crash between book and guard left the guard behind: a repeated vote must not leave before it has caught up.
            guard.note(record.to_bytes())

    def _enter(self, root: EpochRoot) -> None:
        self._context: Context = make_context(root.validators, root.start)
        self._record = self._book.page.record or SafetyRecord(self._context.epoch)
        self._rules: SafetyRules | None = None
        if root.validators.index_of(self._book.page.public) is not None:
            self._rules = SafetyRules(self._seed, self._context, self._book.page.record)
            self._record = self._rules.record
        elif self._record.epoch < self._context.epoch:
            self._record = SafetyRecord(self._context.epoch)

    @property
    def record(self) -> SafetyRecord:
        """The safety record, of the signer's epoch."""
        return self._record if self._rules is None else self._rules.record

    @property
    def over(self) -> SigningKeyElsewhere | None:
        """Set once the key turned out to be used elsewhere: nothing is signed any more, the process should end."""
        return self._over

    def answer(self, request: Request) -> Answer:
        """Answer one request. What it signs is on the disk when this returns.

        Raises DatabaseNotWritable: then nothing that was asked for may leave, and the process must end.
        """
        answer = self._answer(request)
        name = type(request).__name__.removeprefix("Ask").lower()
        self.counts[f"{name} {type(answer).__name__.lower()}"] += 1
        return answer

    def _answer(self, request: Request) -> Answer:
        page = self._book.page
        match request:
            case AskStatus():
                current = page.certificates if self._is_current(page.record) else None
                return Status(page.public, self._context.chain_id, self.record, current)
            case AskForeign(found):
                return self._judge(found)
            case AskEpoch():
                return self._advance(request)
            case _:
                try:
                    return self._sign(request)
                except SafetyRefusal as refusal:
                    return Refused(refusal.reason, self.record)
                except RemoteError as error:
                    return Refused(f"not verified: {error.reason}", self.record)

    def _sign(self, request: AskVote | AskCommitVote | AskTimeout | AskProposal) -> Signed:
        if self._over is not None:
            raise SafetyRefusal("the key is used elsewhere")
        rules = self._rules
        if rules is None:
            raise SafetyRefusal("the key is not a validator's in this epoch")
        before, page = rules.record, self._book.page
        current = self._is_current(page.record)
        certificates = page.certificates if current else None
        proposal = page.proposal if current else None
        item: Vote | CommitVote | tuple[Timeout, QC] | bytes
        relied: tuple[QC, TC | None] | None
        match request:
            case AskVote(block):
                item = rules.sign_vote(block)
                relied = (block.qc, None if block.round == block.qc.round + 1 else block.tc)
            case AskCommitVote(qc, header):
                item = rules.sign_commit_vote(qc, header)
                relied = (qc, None)
            case AskTimeout(round_, qc, tc):
                item = rules.sign_timeout(round_, qc, tc)
                relied = (qc, None if round_ == qc.round + 1 else tc)
            case AskProposal(header):
                name = header_id(header)
                if proposal is not None and (proposal.round, proposal.block_id) == (header.round, name):
                    return Signed(proposal.signature, before)
                item = rules.sign_proposal(header)
                proposal, relied = Proposal(header.round, name, item), None
        if rules.record != before:
            # A repeated signature relies on nothing new, and what came with the request was not looked at.
            if relied is not None:
                certificates = _highest(certificates, *relied)
            self._keep(Page(page.chain_id, page.public, rules.record, certificates, proposal))
        return Signed(item, rules.record)

    def _is_current(self, record: SafetyRecord | None) -> bool:
        return record is not None and record.epoch == self._context.epoch

    def _keep(self, page: Page) -> None:
        self._book.write(page)
        if page.record is not None:
            # After the book: a crash in between leaves the book ahead of the guard, which is no rollback.
            self._guard.note(page.record.to_bytes())

    def _judge(self, found: ForeignSignature) -> Judged:
        """Compare what the network showed with the book: every signature of ours is in it before it leaves."""
        record = self.record
        known = _round_of(record, found.kind)
        # At the same round only one statement was signed; whoever asks held it against that one (`consensus.custody`).
        foreign = found.round > known or found.round == known == found.known_round
        if foreign and self._over is None:
            self._over = SigningKeyElsewhere(found)
            self._guard.note_foreign(found)
            log.error("signing_key_elsewhere", error=str(self._over))
        return Judged(foreign, record)

    def _advance(self, request: AskEpoch) -> Answer:
        """Follow the chain into its next epoch, on the word of more than two thirds of the stake of this one."""
        handover, validators = request.handover, request.validators
        try:
            verify_handover(self._context, handover)
            root = root_after(handover.headers[0], validators)
        except RemoteError as error:
            return Refused(f"hand-over: {error.reason}", self.record)
        except LocalError as error:
            return Refused(f"hand-over: {error}", self.record)
        # On disk before the first signature under it. A record of the earlier epoch is done with (`SafetyRules`).
        write_atomic(self._root_path, root.to_bytes())
        self._enter(root)
        log.info("epoch", epoch=validators.epoch, validators=len(validators), member=self._rules is not None)
        page = self._book.page
        return Status(page.public, self._context.chain_id, self.record, None)


def _highest(known: SyncInfo | None, qc: QC, tc: TC | None) -> SyncInfo:
    """The certificates to remember: the highest QC, and the highest TC above it."""
    if known is not None:
        qc = max(known.high_qc, qc, key=lambda each: each.round)
        tcs = [each for each in (known.last_tc, tc) if each is not None]
        tc = max(tcs, key=lambda each: each.round, default=None)
    if tc is not None and tc.round <= qc.round:
        tc = None
    return SyncInfo(qc, tc, None)


def _round_of(record: SafetyRecord, kind: str) -> int:
    match kind:
        case "vote":
            return 0 if record.last_vote is None else record.last_vote.round
        case "commit vote":
            return 0 if record.last_commit_vote is None else record.last_commit_vote.round
        case "timeout":
            return 0 if record.last_timeout is None else record.last_timeout.round
        case _:
            return record.last_proposed
