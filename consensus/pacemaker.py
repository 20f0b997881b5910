"""Rounds and timers: when to give up on a leader, and what to tell those who lag."""

from consensus.core import ROUNDS_BEHIND_MAX, Core
from consensus.effects import SetTimer
from consensus.errors import SafetyRefusal
from consensus.inputs import TimerKind
from consensus.messages import SyncMessage, TimeoutMessage
from consensus.types import Timeout

HELP_INTERVAL_MS = 500


def advance(core: Core, round_: int, *, by_tc: bool) -> None:
    """Enter `round_` if it is above the current one."""
    if round_ <= core.round:
        return
    core.round = round_
    core.round_by_tc = by_tc
    core.round_entered_ms = core.now_ms
    core.active_since_ms = None
    core.timed_out_ms = None
    core.payload_asked = False
    core.payload_idle = False
    core.timeouts.drop_below(round_)
    core.votes.drop_below(round_ - ROUNDS_BEHIND_MAX)
    core.commit_votes.drop_below(round_ - ROUNDS_BEHIND_MAX)
    waited = core.rounds_since_commit()
    least = core.config.stalled_rounds_min
    if waited >= least and waited % least == 0 and (waited // least).bit_count() == 1:
        core.stalled("rounds pass without a commit")


def timeout_ms(core: Core) -> int:
    """Return this round's timeout: base * 1.2^k up to the limit, k rounds since the last commit, in integers."""
    exponent = min(core.rounds_since_commit(), 64)
    if not exponent:
        return min(core.timeout_base_ms, core.config.timeout_ms_max)
    return int(min(core.timeout_base_ms * 6**exponent // 5**exponent, core.config.timeout_ms_max))


def learn_timeout(core: Core, arrived_ms: int | None) -> None:
    """After a commit, move the base towards four times what it took since the proposal arrived, plus the floor.

    At most by a factor of two each way, never below the floor: one slow or fast commit proves little.
    """
    if arrived_ms is None:
        return
    config, base = core.config, core.timeout_base_ms
    target = 4 * (core.now_ms - arrived_ms) + config.timeout_ms_floor
    target = max(base // 2, min(base * 2, target))
    core.timeout_base_ms = max(config.timeout_ms_floor, min(target, config.timeout_ms_max))


def is_active(core: Core) -> bool:
    """Whether something is owed now: payload waits, a block is uncommitted, or the last round failed.

    An empty uncommitted block of a past round owes nothing: the heartbeat commits it.
    """
    if core.payload_pending or core.round_by_tc:
        return True
    root = core.tree.root
    return any(
        node is not root
        and (bool(node.block.header.payload) or node.closes or node.block.round == core.round)
        for node in core.tree.nodes.values()
    )


def round_deadline(core: Core) -> int | None:
    """Return when this round is given up, or when its timeout is repeated; None for an observer."""
    if core.safety is None:
        return None
    patience = timeout_ms(core)
    if core.timed_out_ms is not None:
        return core.timed_out_ms + min(patience, core.config.timeout_repeat_ms_max)
    idle_deadline = core.round_entered_ms + core.config.heartbeat_ms + patience
    if core.active_since_ms is None:
        return idle_deadline
    # Activity may begin late in an idle round; it gets its full time, but flapping cannot prolong a round for ever.
    return min(core.active_since_ms + patience, idle_deadline + patience)


def note_activity(core: Core) -> None:
    """Start or clear the clock that runs while the leader owes a block."""
    if not is_active(core):
        core.active_since_ms = None
    elif core.active_since_ms is None:
        core.active_since_ms = core.now_ms


def arm(core: Core, kind: TimerKind, at_ms: int | None) -> None:
    """Set a timer if it differs from the one already set."""
    if core.armed.get(kind) == at_ms:
        return
    if at_ms is None:
        del core.armed[kind]
    else:
        core.armed[kind] = at_ms
    core.out.report(SetTimer(kind, at_ms))


def round_timer_fired(core: Core) -> None:
    """TIMEOUT r, or its repetition."""
    deadline = round_deadline(core)
    if deadline is not None and core.now_ms >= deadline:
        cast_timeout(core)


def cast_timeout(core: Core) -> None:
    """Sign (or repeat) the timeout of the current round, count it and broadcast it."""
    if core.safety is None or core.me is None:
        return
    core.timed_out_ms = core.now_ms
    try:
        timeout, qc = core.safety.sign_timeout(core.round, core.high_qc, core.last_tc)
    except SafetyRefusal as refusal:
        core.stalled(f"timeout refused: {refusal.reason}")
        return
    message = TimeoutMessage(timeout, qc, core.last_tc, core.high_cc)
    core.timeouts.add(timeout.round, core.me, timeout.high_qc_round, message)
    core.out.send(None, message)


def help_laggard(core: Core, timeout: Timeout) -> None:
    """Send our certificates to a validator that times out of a round we have left, at most twice a second each."""
    told_ms = core.helped.get(timeout.author)
    if core.safety is None or (told_ms is not None and core.now_ms < told_ms + HELP_INTERVAL_MS):
        return
    core.helped[timeout.author] = core.now_ms
    core.out.send(timeout.author, SyncMessage(core.sync_info))
