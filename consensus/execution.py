"""Deferred execution: what headers claim about the ledger, compared with what this node computed."""

from dataclasses import replace
from enum import Enum, auto

from consensus.core import RESULTS_MAX, Core
from consensus.effects import Diverged
from consensus.errors import LocalError
from consensus.inputs import Executed
from consensus.recovery import ExecutionResult
from consensus.tree import Node
from consensus.types import Block, Header


class Claim(Enum):
    """How a header's claim compares with our own execution."""

    AGREES = auto()
    UNKNOWN = auto()
    DIFFERS = auto()


def claimed(header: Header) -> ExecutionResult:
    """Return the execution result a header claims. An epoch's synthetic root names its own set: that claims nothing."""
    return ExecutionResult(
        header.executed_height,
        header.state_digest,
        header.receipts_accumulator,
        header.next_validators_hash if header.round > 0 else b"",
        header.snapshot_root,
    )


def owed(result: ExecutionResult, past_boundary: bool) -> ExecutionResult:
    """Return what a header must claim of a result: the frozen set only until a block of its chain has named it."""
    return replace(result, next_validators_hash=b"") if past_boundary else result


def compare(core: Core, node: Node) -> Claim:
    """Compare a block's claim with ours; UNKNOWN while we have not executed that far (or forgot it)."""
    own = core.results.get(node.block.header.executed_height)
    if own is None:
        return Claim.UNKNOWN
    return Claim.AGREES if owed(own, node.past_boundary) == claimed(node.block.header) else Claim.DIFFERS


def on_executed(core: Core, event: Executed) -> None:
    """Take a result of the ledger; votes and proposals that waited for it follow in the same step."""
    if event.height > core.root.height:
        raise LocalError(f"height {event.height} was executed before it was committed")
    if event.height <= core.executed_height:
        return
    result = add_result(
        core,
        ExecutionResult(
            event.height,
            event.state_digest,
            event.receipts_accumulator,
            event.next_validators_hash,
            event.snapshot_root,
        ),
    )
    core.payload_idle = False
    claim = core.claims.pop(event.height, None)
    if claim is not None and claim[1] != result:
        _diverge(core, claim[0], claim[1], result)


def add_result(core: Core, result: ExecutionResult) -> ExecutionResult:
    """Remember a result and return it, dropping those below every claim a future block can make.

    Below the epoch's root the ledger still named the set of this epoch: no block of it repeats that.
    """
    result = owed(result, result.height < core.genesis.height)
    core.results[result.height] = result
    core.executed_height = max(core.executed_height, result.height)
    lowest = core.root.header.executed_height
    for height in [key for key in core.results if key < lowest]:
        del core.results[height]
    while len(core.results) > RESULTS_MAX:
        del core.results[min(core.results)]
    return result


def check_committed_claims(core: Core, blocks: tuple[Block, ...]) -> None:
    """Compare committed headers with our results, now or when we get there: a quorum stands behind them."""
    for block in blocks:
        claim = claimed(block.header)
        own = core.results.get(claim.height)
        if own is not None and own != claim:
            _diverge(core, block.id, claim, own)
        elif own is None and claim.height > core.executed_height:
            core.claims[claim.height] = (block.id, claim)
    while len(core.claims) > RESULTS_MAX:
        del core.claims[min(core.claims)]


def _diverge(core: Core, block_id: bytes, expected: ExecutionResult, own: ExecutionResult) -> None:
    core.diverged = True
    core.out.report(Diverged(own.height, block_id, expected.state_digest, own.state_digest, True))
