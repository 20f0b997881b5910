import pytest

from node import inbox
from node.inbox import BYTES_PER_PEER_MAX, MESSAGES_PER_PEER_MAX, Inbox


def test_peers_take_turns_however_much_one_of_them_sends() -> None:
    box = Inbox()
    for number in range(40):
        assert box.put("loud", b"%d" % number)
    assert box.put("quiet", b"q")
    taken = [box.take() for _ in range(3)]
    assert taken == [("loud", b"0"), ("quiet", b"q"), ("loud", b"1")]


def test_past_its_limit_a_peer_loses_its_own_newest_messages_only() -> None:
    box = Inbox()
    assert [box.put("loud", b"x") for _ in range(MESSAGES_PER_PEER_MAX + 5)].count(False) == 5
    assert box.put("quiet", b"q")
    big = Inbox()
    assert big.put("big", bytes(BYTES_PER_PEER_MAX))
    assert not big.put("big", b"x")
    assert len(big) == 1


def test_what_was_taken_makes_room_again() -> None:
    box = Inbox()
    while box.put("peer", b"x"):
        pass
    assert box.take() == ("peer", b"x")
    assert box.put("peer", b"y")
    while box.take() is not None:
        pass
    assert (len(box), box._bytes) == (0, {})


def test_as_many_peers_as_may_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "PEERS_MAX", 2)
    box = Inbox()
    assert [box.put(peer, b"x") for peer in ("a", "b", "c", "a")] == [True, True, False, True]
