"""What can go wrong with a shard."""

from __future__ import annotations

from attribution.errors import ExactError


class ShardRefused(ExactError):
    """A shard's call cannot be done, however often it is tried: bad ids, too long a record, too little memory."""

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(f"{call}: {reason}")
        self.reason = reason


class ShardFailed(ExactError):
    """A shard's process or task died, hung or stammered as often as it may be tried."""

    def __init__(self, call: str, reason: str, tries: int) -> None:
        super().__init__(f"{call} failed {tries} times; the last time: {reason}")
        self.reason = reason
        self.tries = tries


class ShardFileWrong(ExactError):
    """A file between two steps is missing, truncated or not the one that was written."""
