"""The one place where a node looks at the time of day."""

import time


def now_ms() -> int:
    """Unix time in milliseconds: what header timestamps and the replica's inputs mean by `now_ms`."""
    return time.time_ns() // 1_000_000
