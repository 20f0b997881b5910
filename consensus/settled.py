"""When nothing can follow from a message, so that the replica need not look at everything it might do now.

Most messages are votes that complete nothing. What `Replica` does after each input (vote, commit-vote, time out, request,
fetch, set timers) reads only what is gathered here; while all of it is the same and no deadline has passed, looking again
would find what it found before: nothing.
"""

from typing import Any, TypeAlias

from consensus.core import Core
from consensus.inputs import TimerKind

Settled: TypeAlias = tuple[Any, ...]
"""What the rules read, as it was when they asked for nothing more."""


def settled_on(core: Core) -> Settled | None:
    """Return what the rules were settled on, or None where something is open that a mere look may move on.

    Open are fetches and what lies ahead of us, which time moves, and a refused signature: a signer elsewhere may say yes next time.
    """
    open_ = (
        core.ended is not None
        or core.unsigned
        or core.handover is not None
        or bool(core.newer)
        or bool(core.block_fetches.entries)
        or bool(core.payload_fetches.entries)
        or TimerKind.FETCH in core.armed
        or core.high_qc.block_id not in core.tree
    )
    return None if open_ else _read(core)


def still_settled(core: Core, settled: Settled | None) -> bool:
    """Whether a message since then changed nothing that the rules read, and no proposal is due."""
    due_ms = core.armed.get(TimerKind.PROPOSE)
    return (
        settled is not None
        and (due_ms is None or core.now_ms < due_ms)
        and not core.newer
        and not core.block_fetches.entries
        and not core.payload_fetches.entries
        and settled == _read(core)
    )


def _read(core: Core) -> Settled:
    """What a message can change of what the rules read; all of it is replaced and never changed in place."""
    return (
        core.round,
        core.tree.version,
        core.timeouts.count(core.round),
        core.collected,
        core.timed_out_ms,
        core.ended,
        core.handover,
        core.high_qc,
        core.high_cc,
        core.last_tc,
        core.proposals.get(core.round),
        None if core.safety is None else core.safety.record,
    )
