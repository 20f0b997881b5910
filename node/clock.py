"""The one place where a node looks at the time of day, and notices that it looks wrong.

A node asks the machine for the time of day once and counts on from there: whoever sets the clock of a running machine moves
neither its timers nor its timestamps. (The replica takes time that never falls: after one jump ahead it would wait, and find
every block's timestamp wrong, until the day caught up.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

NOTICED_AFTER_S = 5.0
"""A node that catches up executes old blocks; a wrong clock is wrong by the same for longer."""

REPEATED_AFTER_S = 60.0


def _counted_ns() -> int:
    """Nanoseconds that no one can set, with the time a machine slept where the system counts it."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _time_of_day_ns() -> int:
    return time.time_ns()


class SteadyClock:
    """The time of day at the first question, and what was counted since."""

    def __init__(
        self, time_of_day_ns: Callable[[], int] = _time_of_day_ns, counted_ns: Callable[[], int] = _counted_ns
    ) -> None:
        self._time_of_day_ns = time_of_day_ns
        self._counted_ns = counted_ns
        self._offset_ns: int | None = None

    def now_ms(self) -> int:
        """Unix time in milliseconds; it never falls and never jumps."""
        if self._offset_ns is None:
            self._offset_ns = self._time_of_day_ns() - self._counted_ns()
        return (self._offset_ns + self._counted_ns()) // 1_000_000

    def moved_ms(self) -> int:
        """By how much the machine's clock was set since the first question, forwards or (negative) back."""
        return self._time_of_day_ns() // 1_000_000 - self.now_ms()


_CLOCK = SteadyClock()


def now_ms() -> int:
    """Unix time in milliseconds: what header timestamps and the replica's inputs mean by `now_ms`."""
    return _CLOCK.now_ms()


def moved_ms() -> int:
    """`SteadyClock.moved_ms` of this process."""
    return _CLOCK.moved_ms()


@dataclass(slots=True)
class ClockWatch:
    """Compares this machine's clock with the timestamps of committed blocks, which a quorum found close to its clocks.

    A validator whose clock is further off than `drift_ms_max` votes for nobody's blocks, and nobody votes for its own: it is
    safe and useless, and somebody has to be told.
    """

    drift_ms_max: int
    _offset_ms: int = 0
    _since_s: float | None = None
    _moved: bool = False
    _told_s: float | None = None

    def compare(self, timestamp_ms: int, now_ms: int, now_s: float) -> int | None:
        """Note a block that was just executed; returns the offset in ms where it was just logged that the clock is wrong.

        `now_s` is of a clock that never jumps.
        """
        offset_ms = now_ms - timestamp_ms
        if abs(offset_ms) <= self.drift_ms_max:
            if self._told_s is not None:
                log.info("clock_right_again", offset_ms=offset_ms)
            self._since_s = self._told_s = None
            return None
        if self._since_s is None or abs(offset_ms - self._offset_ms) > self.drift_ms_max:
            self._since_s, self._offset_ms = now_s, offset_ms
        steady = now_s - self._since_s >= NOTICED_AFTER_S
        if not steady or (self._told_s is not None and now_s - self._told_s < REPEATED_AFTER_S):
            return None
        self._told_s = now_s
        log.error(
            "clock_wrong",
            offset_ms=offset_ms,
            drift_ms_max=self.drift_ms_max,
            what="this machine's clock differs from the network's; its blocks and votes count for nothing",
            do="set the clock, for instance with an NTP client, and restart the node",
        )
        return offset_ms

    def note_moved(self, moved_ms: int) -> bool:
        """Log, once for each time, that the machine's clock was set while the node ran; returns whether it was just logged."""
        moved, before = abs(moved_ms) > self.drift_ms_max, self._moved
        self._moved = moved
        if moved and not before:
            log.warning(
                "clock_set",
                moved_ms=moved_ms,
                what="this machine's clock was set while the node ran; the node counts on from its start",
                do="make sure that the clock is right: the node will believe it when it is started again",
            )
        return moved and not before
