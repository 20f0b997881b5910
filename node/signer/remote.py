"""The daemon's side of its signer: the replica asks, over a connection that comes back by itself.

A replica's step is synchronous, so its question blocks the daemon's event loop: for as long as the signer takes to sync its
record (about a millisecond), and at the most `ANSWER_S_MAX`. After that the signer counts as gone and every question is refused at once
until a task beside has connected again, in a thread; so one outage stalls the loop once. Meanwhile the daemon follows the
chain without voting. It never signs by itself: it has no key.
"""

import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

import structlog
import trio

from consensus.crypto import verify
from consensus.errors import CodecError, SafetyRefusal
from consensus.safety import ForeignSignature, SafetyRecord
from consensus.types import (
    QC,
    TC,
    Block,
    CommitVote,
    Handover,
    Header,
    Timeout,
    Vote,
    header_id,
)
from consensus.validators import ValidatorSet
from consensus.verify import (
    commit_vote_message,
    proposal_message,
    timeout_message,
    vote_message,
)
from node.signer.errors import SignerForeign, SignerProtocolError, SignerUnavailable
from node.signer.frames import LENGTH_BYTES, admits, check_path, length_of, pack, peer_uid
from node.signer.protocol import (
    ANSWER_BYTES_MAX,
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
    decode_answer,
    encode_request,
)

log = structlog.get_logger(__name__)

ANSWER_S_MAX = 0.5
CONNECT_S_MAX = 2.0
RETRY_S_MIN = 0.2
RETRY_S_MAX = 2.0
"""A validator's vote may be all that a quorum lacks: progress resumes soon after its signer is back, however long that was away."""
EPOCHS_AT_ONCE_MAX = 10_000
"""Hand-overs given to a signer in one connection: more than a chain of short epochs makes in weeks."""

NextEpoch = Callable[[int], tuple[Handover, ValidatorSet] | None]
"""How an epoch ended, and who votes in the next; None where that is not known here."""


class Channel:
    """One connection. Any failure closes it: an answer that comes late must not be taken for the next one's."""

    def __init__(self, path: Path, uids: Collection[int] = ()) -> None:
        """Connect; raises SignerUnavailable, SocketUnusable."""
        check_path(path)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(CONNECT_S_MAX)
            self._socket.connect(str(path))
            uid = peer_uid(self._socket)
        except OSError as error:
            self._socket.close()
            raise SignerUnavailable(path, error.strerror or str(error)) from error
        if not admits(uid, uids):
            self._socket.close()
            raise SignerForeign(path, f"user id {uid} listens there, which [signer] uid does not name")

    def ask(self, request: Request, seconds: float = ANSWER_S_MAX) -> Answer:
        """Return the answer; raises SignerUnavailable, after which the channel is closed."""
        try:
            deadline = time.monotonic() + seconds
            self._socket.settimeout(seconds)
            self._socket.sendall(pack(encode_request(request)))
            length = length_of(self._exactly(LENGTH_BYTES, deadline), ANSWER_BYTES_MAX)
            return decode_answer(self._exactly(length, deadline))
        except (OSError, SignerProtocolError, CodecError) as error:
            self.close()
            raise SignerUnavailable(self._path, str(error) or type(error).__name__) from error

    def _exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left_s)
            part = self._socket.recv(count - len(data))
            if not part:
                raise SignerProtocolError("it closed the connection")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close; may be repeated."""
        self._socket.close()


class SignerLink:
    """A daemon's way to its signer, for as long as the daemon runs. Construct, then run `run` in its nursery.

    Args:
        path: the signer's socket.
        public: 32-byte validator id that must sign there.
        chain_id: 32 bytes.
        next_epoch: how epochs ended, to bring a signer up to date that stands before one of these ends.
        uids: user ids, besides our own, that the signer may run as.
    """

    def __init__(
        self,
        path: Path,
        public: bytes,
        chain_id: bytes,
        next_epoch: NextEpoch = lambda epoch: None,
        uids: Collection[int] = (),
    ) -> None:
        self.path = path
        self.public = public
        self.chain_id = chain_id
        self.connections = 0
        self.problem = "not connected yet"
        self._next_epoch = next_epoch
        self._uids = uids
        self._channel: Channel | None = None
        self._lost = trio.Event()

    @property
    def connected(self) -> bool:
        """Whether a question would be sent."""
        return self._channel is not None

    def ask(self, request: Request) -> Answer:
        """Ask, now; raises SignerUnavailable, at once while there is no connection."""
        if self._channel is None:
            raise SignerUnavailable(self.path, self.problem)
        try:
            return self._channel.ask(request)
        except SignerUnavailable as error:
            self.drop(error.reason)
            raise

    def drop(self, reason: str) -> None:
        """Give the connection up; `run` makes a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self.problem = reason
            log.warning("signer_lost", socket=str(self.path), reason=reason)
            self._lost.set()

    def close(self) -> None:
        """Give the connection up for good."""
        if self._channel is not None:
            self._channel.close()
            self._channel, self.problem = None, "closed"

    def connect(self) -> Status:
        """Connect once, in this thread; raises SignerUnavailable."""
        channel, status = self._open()
        self._take(channel)
        return status

    async def run(self, on_connected: Callable[[Status], None]) -> None:
        """Keep connected until cancelled, with growing pauses between tries; tells each new connection's first answer."""
        pause_s, told = RETRY_S_MIN, ""
        while True:
            if self._channel is not None:
                await self._lost.wait()
            try:
                channel, status = await trio.to_thread.run_sync(self._open, abandon_on_cancel=True)
            except SignerUnavailable as error:
                self.problem = error.reason
                if error.reason != told:
                    told = error.reason
                    log.warning("signer_unavailable", socket=str(self.path), reason=error.reason)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S_MAX)
                continue
            self._take(channel)
            pause_s, told = RETRY_S_MIN, ""
            log.info("signer_connected", epoch=status.record.epoch, last_voted=status.record.last_voted)
            on_connected(status)

    def _take(self, channel: Channel) -> None:
        self._lost = trio.Event()
        self._channel, self.problem = channel, ""
        self.connections += 1

    def _open(self) -> tuple[Channel, Status]:
        channel = Channel(self.path, self._uids)
        try:
            return channel, self._greet(channel)
        except SignerUnavailable:
            channel.close()
            raise

    def _greet(self, channel: Channel) -> Status:
        """Look who answers, and tell it of the epochs that ended since it last heard."""
        status = channel.ask(AskStatus(), CONNECT_S_MAX)
        for _ in range(EPOCHS_AT_ONCE_MAX):
            if not isinstance(status, Status):
                reason = status.reason if isinstance(status, Refused) else "an answer of another kind"
                raise SignerUnavailable(self.path, f"it does not follow the chain: {reason}")
            if (status.public, status.chain_id) != (self.public, self.chain_id):
                raise SignerForeign(
                    self.path, f"it signs with {status.public.hex()} on chain {status.chain_id.hex()}"
                )
            ended = self._next_epoch(status.record.epoch)
            if ended is None:
                break
            status = channel.ask(AskEpoch(*ended), CONNECT_S_MAX)
        if not isinstance(status, Status):
            raise SignerUnavailable(self.path, "it does not follow the chain")
        return status


class RemoteSigner:
    """`consensus.safety.Signer` for one epoch's replica: the safety rules run at the other end of the link.

    `record` is advisory: what this daemon has of the signer's record, first from its own database. Where it lags the signer
    refuses, or gives the same signature again, and the record that comes with each answer takes its place.

    Args:
        link: the way to the signer.
        epoch: the replica's.
        record: what the daemon's database says; one of another epoch is not looked at.
    """

    __slots__ = ("_connection", "_epoch", "_link", "_refused", "record")

    def __init__(self, link: SignerLink, epoch: int, record: SafetyRecord | None = None) -> None:
        self._link = link
        self._epoch = epoch
        self.record = record if record is not None and record.epoch == epoch else SafetyRecord(epoch)
        self._refused: dict[type[Request], tuple[object, str]] = {}
        self._connection = 0

    @property
    def public(self) -> bytes:
        """The validator id."""
        return self._link.public

    def sign_vote(self, block: Block) -> Vote:
        """Have a vote signed; raises SafetyRefusal, also while the signer is away."""
        item = self._ask(AskVote(block), (block.round, block.id))
        qc = block.qc
        if not isinstance(item, Vote) or (item.epoch, item.round, item.block_id, item.parent_id) != (
            self._epoch,
            block.round,
            block.id,
            qc.block_id,
        ):
            raise self._wrong("a vote for something else")
        message = vote_message(
            self._link.chain_id, item.epoch, item.round, item.block_id, item.parent_id, item.parent_round
        )
        self._check(item.author, message, item.signature)
        return item

    def sign_commit_vote(self, qc: QC, header: Header) -> CommitVote:
        """Have a commit vote signed; raises SafetyRefusal."""
        item = self._ask(AskCommitVote(qc, header), (qc.round, qc.block_id))
        wanted = (self._epoch, qc.round, qc.block_id, header.height)
        if not isinstance(item, CommitVote) or (item.epoch, item.round, item.block_id, item.height) != wanted:
            raise self._wrong("a commit vote for something else")
        self._check(item.author, commit_vote_message(self._link.chain_id, *wanted), item.signature)
        return item

    def sign_timeout(self, round_: int, high_qc: QC, last_tc: TC | None) -> tuple[Timeout, QC]:
        """Have a timeout signed; raises SafetyRefusal."""
        item = self._ask(AskTimeout(round_, high_qc, last_tc), None)
        if not isinstance(item, tuple):
            raise self._wrong("no timeout")
        timeout, qc = item
        if (timeout.epoch, timeout.round, timeout.high_qc_round) != (self._epoch, round_, qc.round):
            raise self._wrong("a timeout of another round")
        message = timeout_message(self._link.chain_id, timeout.epoch, timeout.round, timeout.high_qc_round)
        self._check(timeout.author, message, timeout.signature)
        return timeout, qc

    def sign_proposal(self, header: Header) -> bytes:
        """Have an own block signed; raises SafetyRefusal."""
        name = header_id(header)
        item = self._ask(AskProposal(header), (header.round, name))
        if not isinstance(item, bytes):
            raise self._wrong("no signature")
        self._check(
            self.public, proposal_message(self._link.chain_id, header.epoch, header.round, name), item
        )
        return item

    def disowns(self, found: ForeignSignature) -> bool:
        """Whether the signer says that it did not make a signature which our copy of its record does not know.

        It may have made it for another daemon, or for this one before an answer was lost. While it is away nobody can say, and
        nothing is signed here.
        """
        try:
            answer = self._link.ask(AskForeign(found))
        except SignerUnavailable:
            return False
        if not isinstance(answer, Judged):
            self._link.drop("an answer of another kind")
            return False
        self._learn(answer.record)
        return answer.foreign

    def _ask(self, request: Request, name: object) -> Vote | CommitVote | tuple[Timeout, QC] | bytes:
        """Ask, unless this very question was refused on this connection: the rules only tighten as rounds rise."""
        if self._connection != self._link.connections:
            self._connection = self._link.connections
            self._refused.clear()
        known = self._refused.get(type(request))
        if known is not None and name is not None and known[0] == name:
            raise SafetyRefusal(known[1])
        try:
            answer = self._link.ask(request)
        except SignerUnavailable as error:
            raise SafetyRefusal(str(error)) from error
        match answer:
            case Signed(item, record):
                self._learn(record)
                return item
            case Refused(reason, record):
                self._refused[type(request)] = (name, reason)
                self._learn(record)
                if record.epoch < self._epoch:
                    # It has not heard of this epoch: it is told when a connection begins.
                    self._link.drop(f"it stands in epoch {record.epoch}")
                raise SafetyRefusal(reason)
            case _:
                raise self._wrong("an answer of another kind")

    def _learn(self, record: SafetyRecord) -> None:
        if record.epoch == self._epoch:
            self.record = record

    def _check(self, author: bytes, message: bytes, signature: bytes) -> None:
        if author != self.public or not verify(author, message, signature):
            raise self._wrong("a signature that does not verify")

    def _wrong(self, reason: str) -> SafetyRefusal:
        self._link.drop(reason)
        return SafetyRefusal(f"the signer gave {reason}")
