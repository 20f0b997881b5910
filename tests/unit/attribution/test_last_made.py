"""What was made last is kept, and only that."""

from __future__ import annotations

from attribution.last_made import LastMade


def test_the_last_value_is_kept_and_no_other() -> None:
    kept = LastMade[float, list[float]]()
    first = kept.get(0.5, lambda: [0.5])
    assert kept.get(0.5, lambda: [0.0]) is first
    assert kept.get(0.75, lambda: [0.75]) == [0.75]
    again = kept.get(0.5, lambda: [0.5])
    assert again == first
    assert again is not first
