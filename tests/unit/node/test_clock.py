"""A clock that is wrong is noticed by the blocks that others agree on; one that is right is never accused."""

from node.clock import REPEATED_AFTER_S, ClockWatch, SteadyClock

HOUR_MS = 3_600_000
DRIFT_MS = 10_000


def watch(offsets_ms: list[int]) -> list[int]:
    """What is reported where blocks are executed once a second with these offsets of the clock."""
    made = ClockWatch(DRIFT_MS)
    reports = (
        made.compare(10**9 + 1000 * s, 10**9 + 1000 * s + offset, float(s))
        for s, offset in enumerate(offsets_ms)
    )
    return [report for report in reports if report is not None]


def test_a_clock_that_jumped_either_way_is_reported_once_in_a_while() -> None:
    for jump_ms in (2 * HOUR_MS, -2 * HOUR_MS):
        assert watch([0] * 5 + [jump_ms] * 50) == [jump_ms]
        assert len(watch([jump_ms] * int(3 * REPEATED_AFTER_S))) == 3


def test_a_clock_within_the_drift_is_never_reported() -> None:
    assert watch([DRIFT_MS, -DRIFT_MS] * 100) == []


def test_a_node_that_catches_up_is_not_told_that_its_clock_is_wrong() -> None:
    """Old blocks come fast: how old they are changes all the time."""
    assert watch([HOUR_MS - 60_000 * step for step in range(60)] + [0] * 10) == []


def test_a_clock_that_was_set_right_is_told_at_once_when_it_is_wrong_again() -> None:
    assert watch([HOUR_MS] * 10 + [0] * 3 + [HOUR_MS] * 10) == [HOUR_MS, HOUR_MS]


def test_whoever_sets_the_clock_of_a_running_machine_moves_no_node() -> None:
    """Timers and timestamps go on; only the next start believes the clock."""
    day, counted = [10**18], [10**9]
    clock = SteadyClock(lambda: day[0], lambda: counted[0])
    assert clock.now_ms() == 10**12
    for jump_ms in (2 * HOUR_MS, -2 * HOUR_MS):
        day[0] += jump_ms * 10**6
        before = clock.now_ms()
        counted[0] += 7 * 10**6
        day[0] += 7 * 10**6
        assert clock.now_ms() == before + 7
        assert clock.moved_ms() == (jump_ms if jump_ms > 0 else 0)
    assert SteadyClock(lambda: day[0], lambda: counted[0]).now_ms() == day[0] // 10**6


def test_a_clock_that_was_set_is_told_once_each_time() -> None:
    made = ClockWatch(DRIFT_MS)
    moves = [0, 5, HOUR_MS, HOUR_MS + 3, HOUR_MS, 0, -HOUR_MS, -HOUR_MS]
    assert [made.note_moved(move) for move in moves] == [False, False, True, False, False, False, True, False]
