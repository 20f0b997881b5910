"""Settings of a replica; every validator of a chain runs the same limits, timing may differ."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

VoteFanout: TypeAlias = Literal["all", "collector"]


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """Timing and limits.

    Attributes:
        timeout_ms_base: first round timeout; adapts to measured commit times afterwards.
        timeout_ms_floor: the base never falls below it.
        timeout_ms_max: no round timeout is longer.
        timeout_repeat_ms_max: a timeout message is repeated at least this often until the round changes.
        heartbeat_ms: an idle leader proposes an empty block this long after its round began.
        commit_grace_ms: an idle leader waits this long for commit votes before it proposes an empty block
            that commits a non-empty one through the two-chain rule.
        drift_ms_max: how far a header's timestamp may lie from the voter's clock, either way.
        lag_max: a block more than this many heights above its executed height is empty.
        payload_digests_max: batches per block, at most 64.
        fetch_retry_ms: first delay before a missing block or batch is asked for again; doubles up to 16 times that.
        behind_heights_min: a certificate this far above the committed height asks for range sync (`Behind`).
        vote_fanout: whom this validator sends its votes to: all, or only the next round's leader, who collects them. Each
            validator's own choice; safety does not depend on it, and progress is made with any mix.
        stalled_rounds_min: rounds without a commit after which `Stalled` is reported, again at each doubling.

    Raises:
        ValueError: on construction, values out of order or out of range.
    """

    timeout_ms_base: int = 1_500
    timeout_ms_floor: int = 1_000
    timeout_ms_max: int = 60_000
    timeout_repeat_ms_max: int = 2_000
    heartbeat_ms: int = 1_500
    commit_grace_ms: int = 100
    drift_ms_max: int = 10_000
    lag_max: int = 32
    payload_digests_max: int = 64
    fetch_retry_ms: int = 250
    behind_heights_min: int = 24
    stalled_rounds_min: int = 12
    vote_fanout: VoteFanout = "all"

    def __post_init__(self) -> None:
        if not 1 <= self.timeout_ms_floor <= self.timeout_ms_base <= self.timeout_ms_max:
            raise ValueError("timeouts: 1 <= floor <= base <= max")
        if not 1 <= self.payload_digests_max <= 64:
            raise ValueError("payload_digests_max: 1 to 64")
        if self.vote_fanout not in ("all", "collector"):
            raise ValueError("vote_fanout: all or collector")
        for name in (
            "timeout_repeat_ms_max",
            "heartbeat_ms",
            "commit_grace_ms",
            "drift_ms_max",
            "lag_max",
            "fetch_retry_ms",
            "behind_heights_min",
            "stalled_rounds_min",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1")
