"""Batches that validators push: bounded per author, without ever taking away what a block may name."""

from node.pushed import UNUSED_COUNT_MAX, UNUSED_HEIGHTS_MAX, PushedBatches


def test_past_its_quota_an_author_gets_no_more_and_others_do() -> None:
    pushed = PushedBatches(bytes_max=100)
    assert pushed.add(b"a", b"1", 60, 1)
    assert not pushed.add(b"a", b"2", 41, 1)
    assert pushed.add(b"a", b"3", 40, 1)
    assert pushed.add(b"b", b"4", 100, 1)


def test_many_small_ones_are_too_many() -> None:
    pushed = PushedBatches()
    assert all(pushed.add(b"a", number.to_bytes(4, "big"), 1, 1) for number in range(UNUSED_COUNT_MAX))
    assert not pushed.add(b"a", b"one more", 1, 1)


def test_a_batch_that_a_block_used_makes_room() -> None:
    pushed = PushedBatches(bytes_max=100)
    assert pushed.add(b"a", b"1", 100, 1)
    pushed.used([b"1", b"unknown"])
    assert pushed.add(b"a", b"2", 100, 2)


def test_what_nothing_used_expires_but_not_what_a_block_in_flight_names() -> None:
    pushed = PushedBatches(bytes_max=100)
    pushed.add(b"a", b"1", 40, 1)
    pushed.add(b"a", b"2", 40, 1)
    pushed.add(b"a", b"3", 20, 2)
    assert pushed.expire(UNUSED_HEIGHTS_MAX, frozenset()) == []
    assert pushed.expire(UNUSED_HEIGHTS_MAX + 1, frozenset([b"2"])) == [b"1"]
    assert not pushed.add(b"a", b"4", 41, 3)
    assert pushed.add(b"a", b"5", 40, 3)


def test_a_flood_of_refused_batches_is_told_once_a_height_for_each_author() -> None:
    pushed = PushedBatches()
    told = [
        pushed.worth_telling(author, height) for height in (1, 1, 2, 2) for author in (b"a" * 32, b"b" * 32)
    ]
    assert told == [True, True, False, False, True, True, False, False]
