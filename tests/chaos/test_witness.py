"""The witness sees each kind of contradiction, whoever causes it and however late, and no other; so do the readers of logs."""

from tests.chaos.trial import penalties, suspicious
from tests.chaos.witness import Witness

NODES = ("a", "b", "c")


def told(*, heights: int = 3) -> Witness:
    """Three nodes that agree on some blocks with one transaction each."""
    witness = Witness()
    for node in NODES:
        for height in range(1, heights + 1):
            witness.block(node, height, f"block{height}", f"state{height}")
            witness.transaction(node, f"tx{height}", height, "ok")
    return witness


def test_nodes_that_agree_at_their_own_pace_and_tell_again_after_a_restart_contradict_nothing() -> None:
    witness = told()
    for height in (2, 3, 4):
        witness.block("a", height, f"block{height}", f"state{height}")
        witness.transaction("a", f"tx{height}", height, "ok")
    witness.final("a's disk", {f"tx{height}": height for height in range(1, 5)})
    assert witness.violations == []
    assert witness.heights == {"a": 4, "b": 3, "c": 3}


def test_two_blocks_at_a_height_are_a_violation() -> None:
    witness = told()
    witness.block("c", 2, "another", "state2")
    assert len(witness.violations) == 1
    assert "two blocks at height 2" in witness.violations[0]


def test_one_block_with_two_states_is_a_violation() -> None:
    witness = told()
    witness.block("b", 3, "block3", "another")
    assert "two states after height 3" in witness.violations[0]


def test_a_transaction_that_moves_or_is_executed_twice_is_a_violation() -> None:
    witness = told()
    witness.transaction("b", "tx1", 3, "ok")
    witness.transaction("c", "tx2", 2, "failed")
    assert len(witness.violations) == 2


def test_a_transaction_that_was_skipped_may_still_come_once() -> None:
    witness = told()
    witness.transaction("a", "tx9", 4, "invalid")
    witness.transaction("a", "tx9", 5, "ok")
    witness.transaction("b", "tx9", 4, "invalid")
    assert witness.violations == []
    assert witness.executed["tx9"].height == 5


def test_what_any_node_called_executed_is_missed_on_every_disk_that_lacks_it() -> None:
    witness = told()
    witness.final("b's disk", {"tx1": 1, "tx3": 3})
    assert "1 acknowledged transactions are not on b's disk; the first, tx2" in witness.violations[0]


def test_what_a_disk_forgot_as_it_was_told_to_is_not_missed_there_and_all_else_is() -> None:
    witness = told()
    witness.final("a pruned disk", {"tx3": 3}, kept_from=3)
    assert witness.violations == []
    witness.final("a pruned disk", {"tx3": 3}, kept_from=2)
    assert len(witness.violations) == 1


def test_what_comes_after_a_disks_last_block_is_not_missed_there_and_what_its_node_told_of_is() -> None:
    witness = told()
    witness.final("an early disk", {"tx1": 1, "tx2": 2}, kept_to=2)
    assert witness.violations == []
    witness.final("an early disk", {"tx1": 1, "tx2": 2}, kept_to=witness.heights["c"])
    assert len(witness.violations) == 1


def test_a_transaction_at_another_height_on_a_disk_is_lost_there() -> None:
    witness = told()
    witness.final("b's disk", {"tx1": 1, "tx2": 3, "tx3": 3})
    assert len(witness.violations) == 1


def test_a_log_may_accuse_the_hostile_but_nobody_honest_and_holds_no_traceback_and_no_divergence() -> None:
    fine = [
        "2026-11-21T10:00:00Z [warning] misbehaved  peer=cc reason=two votes in round 3",
        "2026-11-21T10:00:00Z [info   ] executed    height=3 invalid=0 transactions=5",
    ]
    bad = [
        "2026-11-21T10:00:01Z [warning] misbehaved  peer=aa reason=two votes in round 3",
        "Traceback (most recent call last):",
        "2026-11-21T10:00:02Z [error  ] diverged    height=4 committed=True",
    ]
    assert suspicious([*fine, *bad], ["aa", "bb"]) == bad


def test_no_log_may_say_that_an_honest_peer_was_banned_and_what_is_held_against_one_is_counted() -> None:
    lines = [
        "2026-11-21T10:00:00Z [info     ] peer penalised  banned=False peer_id=honest points=10 reason='x'",
        "2026-11-21T10:00:01Z [info     ] peer penalised  banned=True peer_id=hostile points=100 reason='x'",
        "2026-11-21T10:00:02Z [info     ] peer penalised  banned=True peer_id=honest points=10 reason='x'",
    ]
    assert suspicious(lines, [], ["honest"]) == lines[2:]
    assert penalties(lines, ["honest"]) == 2
