"""Timeouts of others: taking their certificates, joining, and forming the timeout certificate."""

from consensus.certificates import apply_cc, apply_qc, apply_tc
from consensus.core import ROUNDS_AHEAD_MAX, Core
from consensus.custody import notice_statement
from consensus.errors import InvalidCertificate, InvalidSignature
from consensus.messages import SyncMessage, TimeoutMessage
from consensus.pacemaker import cast_timeout, help_laggard
from consensus.types import TC, CommitCertificate
from consensus.verify import verify_cc, verify_qc, verify_tc, verify_timeout
from consensus.watch import contradicts, watch_timeout


def on_timeout(core: Core, sender: bytes | None, message: TimeoutMessage) -> None:
    """Verify a timeout with the QC it signed for, take its certificates, and count it."""
    timeout, qc = message.timeout, message.high_qc
    if qc.round != timeout.high_qc_round or qc.round >= timeout.round:
        raise InvalidCertificate("timeout does not carry the QC it signed for")
    author = core.context.validators.index_of(timeout.author)
    if author is None:
        raise InvalidSignature("signer is not a validator")
    if core.timeouts.has(timeout.round, author, timeout.high_qc_round):
        return
    verify_timeout(core.context, timeout)
    verify_qc(core.context, qc)
    watch_timeout(core, author, timeout)
    apply_qc(core, qc, sender)
    if message.last_tc is not None:
        take_tc(core, message.last_tc)
    if message.high_cc is not None:
        take_cc(core, message.high_cc, sender)
    if timeout.round < core.round:
        help_laggard(core, timeout)
    elif timeout.round <= core.round + ROUNDS_AHEAD_MAX:
        count_timeout(core, author, message)


def count_timeout(core: Core, author: int, message: TimeoutMessage) -> None:
    """Add a verified timeout message of a current or later round."""
    timeout = message.timeout
    notice_statement(core, author, timeout)
    earlier = core.timeouts.add(timeout.round, author, timeout.high_qc_round, message)
    if earlier is not None:
        contradicts(core, earlier.timeout, timeout, "two timeouts in a round")


def try_timeouts(core: Core) -> bool:
    """Join a timeout that more than a third of the stake declared; form the TC once a quorum has."""
    if not core.timeouts.count(core.round):
        return False
    rows = core.timeouts.all(core.round)
    validators = core.context.validators
    stake = sum(validators.stake_at(index) for index, _ in rows)
    if validators.is_quorum(stake):
        apply_tc(core, _certificate(core.context.epoch, core.round, rows))
        return True
    # One honest validator gave up: waiting out our own timer would only delay the quorum.
    if core.timed_out_ms is None and core.safety is not None and validators.is_one_honest(stake):
        cast_timeout(core)
        return True
    return False


def _certificate(epoch: int, round_: int, rows: list[tuple[int, TimeoutMessage]]) -> TC:
    entries = tuple((index, row.timeout.high_qc_round, row.timeout.signature) for index, row in rows)
    highest = max((row for _, row in rows), key=lambda row: row.timeout.high_qc_round)
    return TC(epoch, round_, entries, highest.high_qc)


def take_tc(core: Core, tc: TC) -> None:
    """Verify and apply a TC, unless its round is past."""
    if tc.round >= core.round:
        verify_tc(core.context, tc)
        apply_tc(core, tc)


def take_cc(core: Core, cc: CommitCertificate, sender: bytes | None) -> None:
    """Verify and apply a CC, unless as much is already committed or known."""
    known = core.high_cc is not None and cc.round <= core.high_cc.round
    if cc.round > core.root.round and not known:
        verify_cc(core.context, cc)
        apply_cc(core, cc, sender)


def on_sync(core: Core, sender: bytes | None, message: SyncMessage) -> None:
    """Take certificates that came alone."""
    info = message.info
    if info.high_qc.round > core.high_qc.round:
        verify_qc(core.context, info.high_qc)
        apply_qc(core, info.high_qc, sender)
    if info.last_tc is not None:
        take_tc(core, info.last_tc)
    if info.high_cc is not None:
        take_cc(core, info.high_cc, sender)
