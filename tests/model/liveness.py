"""No dead state: from every state that an adversary can bring about, a good network commits a new block.

First the adversary: breadth-first over everything that it can make three honest nodes hear within a bound of rounds, the fourth being
its own. Then, from each state found, the good network: what honest nodes send from now on arrives, nothing sent before does, and the
Byzantine validator is silent, so that all three honest ones are needed. A state from which no block is committed is dead.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model.node import (
    GENESIS,
    TC,
    Block,
    Disk,
    Guards,
    Node,
    Record,
    Timeout,
    finish,
    is_news,
    knows,
    may_propose,
    on_block,
    on_cc,
    on_proposal,
    on_qc,
    on_tc,
    on_timeout,
    on_timer,
    propose,
    take_cc,
    take_qc,
    take_tc,
)

HONEST = 3
LIAR = 3
VALIDATORS = 4
TURNS_MAX = 40
"""Exchanges of messages that a good network gets: more than a round of leaders needs, the silent one's timeout included."""
NO_DISK = Disk(Record(), GENESIS, None, None, GENESIS, ())

World = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Rounds that are entered, and who leads round 1: the others follow in turn, the liar (3) among them."""

    rounds: int
    first_leader: int = 0

    def leader(self, round_: int) -> int:
        """Who leads a round."""
        return (self.first_leader + round_ - 1) % VALIDATORS


# --- the adversary ---


def certified(world: World) -> list[Block]:
    """Blocks with a QC: two honest votes and the liar's."""
    counted = Counter(block for node in world for block in node.votes)
    return [GENESIS, *(block for block, count in counted.items() if count >= 2)]


def certificates_of_timeouts(world: World, qcs: list[Block]) -> list[TC]:
    """TCs that two honest timeouts and the liar's make."""
    rows: dict[int, dict[int, int]] = {}
    for node in world:
        for said in node.timeouts:
            rows.setdefault(said.round, {})[node.place] = said.high.round
    found: list[TC] = []
    for round_, highs in rows.items():
        if len(highs) >= 2:
            low = sorted(highs.values())[1]
            found.extend(TC(round_, high) for high in qcs if low <= high.round < round_)
    return found


def proposals(world: World, bounds: Bounds, qcs: list[Block], tcs: list[TC]) -> list[Block]:
    """What honest leaders proposed, and what the liar can propose where it leads."""
    made = {block for node in world for block in (*node.first, *node.tree, *node.orphans)}
    for round_ in range(1, bounds.rounds + 1):
        if bounds.leader(round_) != LIAR:
            continue
        for parent in qcs:
            if parent.round == round_ - 1:
                made.add(Block(round_, parent, 0, None))
            made.update(
                Block(round_, parent, 0, tc)
                for tc in tcs
                if tc.round == round_ - 1 and tc.high.round <= parent.round < round_ - 1
            )
    return list(made)


def moves(world: World, bounds: Bounds, guards: Guards) -> Iterator[tuple[str, int, Node]]:
    """Everything that the adversary can do to one node next."""
    qcs = certified(world)
    tcs = certificates_of_timeouts(world, qcs)
    blocks = proposals(world, bounds, qcs, tcs)
    counted = Counter(block for node in world for block in node.commits)
    ccs = [block for block, count in counted.items() if count >= 2]
    for node in world:
        at = node.place
        if node.current <= bounds.rounds:
            yield "timer", at, on_timer(node, guards)
            if bounds.leader(node.current) == at and may_propose(node):
                yield "propose", at, propose(node, 0, guards)[0]
        for block in blocks:
            if not knows(node, block) and block.round <= bounds.rounds:
                yield "proposal", at, on_proposal(node, block, None, guards)
        for block in qcs:
            yield "qc", at, on_qc(node, block, guards)
        for tc in tcs:
            yield "tc", at, on_tc(node, tc, guards)
        for block in ccs:
            yield "cc", at, on_cc(node, block, guards)


def plain(node: Node) -> Node:
    """Without what makes no difference to what follows here: nobody crashes, and any timeout message is sent anew."""
    said = frozenset(Timeout(row.round, row.high, None, None) for row in node.timeouts)
    return node._replace(disk=NO_DISK, timeouts=said)


# --- the good network ---


def recovers(world: World, bounds: Bounds, guards: Guards) -> int | None:
    """Exchanges until every honest node has committed a block that nobody had; None if that never comes about."""
    nodes = list(world)
    goal = max(node.root.round for node in nodes)
    old_votes = [node.votes for node in nodes]
    old_commits = [node.commits for node in nodes]
    for turn in range(TURNS_MAX):
        if all(node.root.round > goal for node in nodes):
            return turn
        before = tuple(nodes)
        _fetch(nodes, guards)
        _lead(nodes, bounds, guards)
        _count(nodes, old_votes, old_commits, guards)
        if tuple(nodes) == before:
            _give_up(nodes, guards)
            if [_without_heard(node) for node in nodes] == [_without_heard(node) for node in before]:
                return None
    return None


def _without_heard(node: Node) -> Node:
    return node._replace(heard=frozenset(), timeouts=frozenset(), gave_up=False)


def _fetch(nodes: list[Node], guards: Guards) -> None:
    """Blocks that are wanted come from whoever has them; so do committed ones."""
    for at, node in enumerate(nodes):
        for block in sorted(node.wanted, key=lambda block: -block.round):
            if any(_has(other, block) for other in nodes if other.place != at):
                nodes[at] = on_block(nodes[at], block, guards)


def _has(node: Node, block: Block) -> bool:
    below: Block | None = node.root
    while below is not None and below.round > block.round:
        below = below.parent
    return below == block or knows(node, block) or block in node.orphans


def _lead(nodes: list[Node], bounds: Bounds, guards: Guards) -> None:
    for node in list(nodes):
        if bounds.leader(node.current) != node.place or not may_propose(node):
            continue
        nodes[node.place], block = propose(node, 0, guards)
        for at in range(HONEST):
            if at != node.place:
                nodes[at] = on_proposal(nodes[at], block, node.cc, guards)


def _count(
    nodes: list[Node], old_votes: list[frozenset[Block]], old_commits: list[frozenset[Block]], guards: Guards
) -> None:
    """Certificates of all three honest validators, from votes cast since the network became good."""
    fresh = [node.votes - old for node, old in zip(nodes, old_votes, strict=True)]
    for block in sorted(frozenset.intersection(*fresh), key=lambda block: block.round):
        for at in range(HONEST):
            if block != nodes[at].high and block not in nodes[at].certified:
                nodes[at] = on_qc(nodes[at], block, guards)
    fresh = [node.commits - old for node, old in zip(nodes, old_commits, strict=True)]
    for block in sorted(frozenset.intersection(*fresh), key=lambda block: block.round):
        for at in range(HONEST):
            nodes[at] = on_cc(nodes[at], block, guards)


def _give_up(nodes: list[Node], guards: Guards) -> None:
    """Every timer ends; each timeout that is signed arrives, and who is ahead helps who is behind."""
    messages: list[tuple[int, Timeout]] = []
    for at in range(HONEST):
        nodes[at] = on_timer(nodes[at]._replace(timeouts=frozenset()), guards)
        messages.extend((at, message) for message in nodes[at].timeouts)
    for author, message in messages:
        for at in range(HONEST):
            if at == author:
                continue
            nodes[at] = on_timeout(nodes[at], author, message, guards)
            if message.round < nodes[at].current:
                nodes[author] = _helped(nodes[author], nodes[at], guards)


def _helped(node: Node, helper: Node, guards: Guards) -> Node:
    if helper.high.round > node.high.round:
        node = take_qc(node, helper.high, guards)
    if helper.tc is not None and helper.tc.round >= node.current:
        node = take_tc(node, helper.tc, guards)
    if helper.cc is not None and is_news(node, helper.cc):
        node = take_cc(node, helper.cc)
    return finish(node, guards)


# --- the search ---


@dataclass
class Result:
    """What a search found: `dead` is the first dead state, `turns` how many exchanges recoveries took."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = True
    dead: World | None = None
    turns: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)


def search(bounds: Bounds, guards: Guards, states_max: int) -> Result:
    """Every state within the bounds, each tried for recovery; ends at the first dead one, or at `states_max`."""
    began_s = time.perf_counter()
    result = Result()
    start: World = tuple(Node(index) for index in range(HONEST))
    seen: set[World] = {start}
    level = [start]
    while level and result.dead is None and result.complete:
        following: list[World] = []
        for world in level:
            turns = recovers(world, bounds, guards)
            if turns is None:
                result.dead = world
                break
            result.turns[turns] += 1
            for kind, at, node in moves(world, bounds, guards):
                result.transitions += 1
                result.kinds[kind] += 1
                after = (*world[:at], plain(node), *world[at + 1 :])
                if after not in seen:
                    seen.add(after)
                    following.append(after)
            if len(seen) >= states_max:
                result.complete = False
                break
        level = following
        result.depth += bool(following)
    result.states = len(seen)
    result.seconds = time.perf_counter() - began_s
    return result
