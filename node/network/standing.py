"""The standing of peers: points for misdeeds, decaying with time, and bans past a threshold. No clock inside."""

from __future__ import annotations

from dataclasses import dataclass

from node.network.config import Limits

PEERS_REMEMBERED_MAX = (
    4096  # strangers can make up identities; past it those with fewest points are forgotten
)


@dataclass(slots=True)
class _Standing:
    points: float = 0.0
    updated_s: float = 0.0
    banned_until_s: float = 0.0


class Standings:
    """Bad points of every peer that has any; `penalties` and `bans` count since the start, `mesh` is banned for less."""

    def __init__(self, limits: Limits, mesh: frozenset[str]) -> None:
        self._limits = limits
        self.mesh = mesh
        self._standings: dict[str, _Standing] = {}
        self.penalties = 0
        self.bans = 0

    def penalise(self, peer_id: str, points: int, now_s: float) -> bool:
        """Add points; True if that bans the peer. The ban clears the points."""
        self.penalties += 1
        standing = self._standings.get(peer_id)
        if standing is None:
            self._forget_one_if_full()
            standing = self._standings[peer_id] = _Standing(updated_s=now_s)
        standing.points = self._decayed(standing, now_s) + points
        standing.updated_s = now_s
        if standing.points < self._limits.ban_points:
            return False
        standing.points = 0
        ban_s = self._limits.mesh_ban_s if peer_id in self.mesh else self._limits.ban_s
        standing.banned_until_s = now_s + ban_s
        self.bans += 1
        return True

    def points(self, peer_id: str, now_s: float) -> int:
        """Return the present points of a peer."""
        standing = self._standings.get(peer_id)
        return 0 if standing is None else round(self._decayed(standing, now_s))

    def banned_s(self, peer_id: str, now_s: float) -> float:
        """Return how many seconds of ban are left, 0 if none."""
        standing = self._standings.get(peer_id)
        return 0.0 if standing is None else max(0.0, standing.banned_until_s - now_s)

    def _decayed(self, standing: _Standing, now_s: float) -> float:
        return max(0.0, standing.points - (now_s - standing.updated_s) * self._limits.points_decay_per_s)

    def _forget_one_if_full(self) -> None:
        if len(self._standings) >= PEERS_REMEMBERED_MAX:
            mildest = min(
                self._standings, key=lambda p: (self._standings[p].banned_until_s, self._standings[p].points)
            )
            del self._standings[mildest]
