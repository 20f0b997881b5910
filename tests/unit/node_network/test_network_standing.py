from __future__ import annotations

import dataclasses

from node.network.config import Limits
from node.network.standing import PEERS_REMEMBERED_MAX, Standings

LIMITS = Limits()


def test_points_add_up_to_a_ban_that_ends() -> None:
    standings = Standings(LIMITS, frozenset())
    assert not standings.penalise("peer", 60, 0.0)
    assert standings.penalise("peer", 60, 1.0)
    assert standings.banned_s("peer", 1.0) == LIMITS.ban_s
    assert standings.banned_s("peer", 1.0 + LIMITS.ban_s) == 0
    assert standings.points("peer", 1.0 + LIMITS.ban_s) == 0
    assert (standings.penalties, standings.bans) == (2, 1)


def test_points_fade() -> None:
    standings = Standings(LIMITS, frozenset())
    standings.penalise("peer", 60, 0.0)
    assert standings.points("peer", 20.0) == 60 - 20 * LIMITS.points_decay_per_s
    assert standings.points("peer", 1000.0) == 0
    assert not standings.penalise("peer", 60, 1000.0)


def test_a_mesh_peer_is_banned_only_briefly() -> None:
    standings = Standings(LIMITS, frozenset({"validator"}))
    assert standings.penalise("validator", 1000, 0.0)
    assert standings.banned_s("validator", 0.0) == LIMITS.mesh_ban_s


def test_made_up_identities_do_not_displace_a_ban() -> None:
    standings = Standings(dataclasses.replace(LIMITS, points_decay_per_s=0), frozenset())
    standings.penalise("villain", 1000, 0.0)
    for number in range(PEERS_REMEMBERED_MAX + 10):
        standings.penalise(f"made up {number}", 1, 0.0)
    assert standings.banned_s("villain", 1.0) > 0


def test_a_peer_never_penalised_has_no_standing() -> None:
    standings = Standings(LIMITS, frozenset())
    assert standings.points("peer", 5.0) == 0
    assert standings.banned_s("peer", 5.0) == 0
