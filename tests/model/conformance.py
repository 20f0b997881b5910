"""Random histories of the model, played on real replicas at the same time."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.model.node import (
    GENESIS,
    TC,
    Block,
    Guards,
    Node,
    Timeout,
    may_propose,
    on_cc,
    on_commit_votes,
    on_crash,
    on_proposal,
    on_qc,
    on_tc,
    on_timeout,
    on_timer,
    propose,
)
from tests.model.real_nodes import HONEST, LIAR, Workbench, told

TAGS_MAX = 2


class Difference(Exception):
    """The model and the code disagree."""


@dataclass
class Walk:
    """One history: the model's nodes, the real ones, and what happened so far."""

    seed: int
    guards: Guards = field(default_factory=Guards)
    bench: Workbench = field(default_factory=Workbench)
    nodes: list[Node] = field(default_factory=lambda: [Node(place) for place in range(HONEST)])
    log: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    sights: Counter[str] = field(default_factory=Counter)
    raw: set[tuple[int, str, Block]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        # Half of the histories mostly go well, so that chains grow long; the others mostly do not.
        self.eager = self.seed % 2 == 0

    # --- what exists ---

    def certified(self) -> list[Block]:
        """Blocks with a QC: two honest votes and the liar's."""
        counted = Counter(block for node in self.nodes for block in node.votes)
        return [GENESIS, *(block for block, count in counted.items() if count >= 2)]

    def committed(self) -> list[Block]:
        """Blocks with a CC."""
        counted = Counter(block for node in self.nodes for block in node.commits)
        return [block for block, count in counted.items() if count >= 2]

    def tcs(self) -> list[TC]:
        """TCs that two honest timeouts and the liar's make."""
        highs: dict[int, dict[int, int]] = {}
        for node in self.nodes:
            for said in node.timeouts:
                highs.setdefault(said.round, {})[node.place] = said.high.round
        found: list[TC] = []
        for round_, rows in highs.items():
            if len(rows) < 2:
                continue
            low = sorted(rows.values())[1]
            found.extend(TC(round_, high) for high in self.certified() if low <= high.round < round_)
        return found

    # --- steps ---

    def change(self, place: int, kind: str, what: object, model: Callable[[Node], Node]) -> None:
        """Let the model's node move; the caller has moved the real one."""
        before = self.nodes[place]
        self.nodes[place] = after = model(before)
        self.kinds[kind] += 1
        self.sights.update(sights(kind, what, before, after))
        self.log.append(f"{kind} {place} {short(what)}")
        self.compare(place)

    def compare(self, place: int) -> None:
        """Raise `Difference` unless both stand the same."""
        real, model = self.bench.seen(place), told(self.nodes[place])
        for key, value in model.items():
            if real[key] != value:
                raise Difference(
                    f"seed {self.seed}, node {place}, {key}: the code has {short(real[key])}, the model {short(value)}; "
                    f"after {'; '.join(self.log[-12:])}"
                )

    def step(self) -> None:
        """One random action among those that can happen."""
        place = self.chance.randrange(HONEST)
        if self.eager:
            kinds = [self.proposing] * 8 + [
                self.lying,
                *[self.hearing] * 8,
                *[self.certifying] * 5,
                self.committing,
            ]
            kinds += [self.certifying_timeouts, self.timing_out, self.hearing_timeouts, self.hearing_lies]
            kinds += [self.crashing]
        else:
            kinds = [*[self.proposing] * 2, *[self.lying] * 2, *[self.hearing] * 4, *[self.certifying] * 2]
            kinds += [
                self.committing,
                self.certifying_timeouts,
                self.timing_out,
                *[self.hearing_timeouts] * 2,
            ]
            kinds += [self.hearing_lies, self.crashing]
        while not self.chance.choice(kinds)(place):
            place = self.chance.randrange(HONEST)

    def pick(self, rows: Iterable[Block]) -> Block | None:
        """A block, more often one of a late round."""
        found = sorted(rows, key=lambda row: (row.round, short(row)))
        if not found:
            return None
        return found[-1] if self.chance.random() < 0.5 else self.chance.choice(found)

    def proposing(self, place: int) -> bool:
        node = self.nodes[place]
        if self.bench.leader(node.current) != place or not may_propose(node):
            return False
        self.bench.propose(place)
        self.change(place, "propose", node.current, lambda node: propose(node, 0, self.guards)[0])
        return True

    def lying(self, place: int) -> bool:
        """The liar makes a block, then hands it to somebody."""
        rounds = {node.current for node in self.nodes} | {node.current + 1 for node in self.nodes}
        led = [round_ for round_ in sorted(rounds) if self.bench.leader(round_) == LIAR]
        made = []
        for round_ in led:
            before = [tc for tc in self.tcs() if tc.round == round_ - 1]
            for parent in self.certified():
                if parent.round >= round_:
                    continue
                if parent.round == round_ - 1:
                    made.append(Block(round_, parent, self.chance.randrange(TAGS_MAX), None))
                made.extend(
                    Block(round_, parent, self.chance.randrange(TAGS_MAX), tc)
                    for tc in before
                    if parent.round >= tc.high.round and parent.round < round_ - 1
                )
        block = self.pick(made)
        if block is None:
            return False
        if block not in self.bench.blocks:
            self.bench.lie(block)
        self.give(place, block, "lie")
        return True

    def hearing(self, place: int) -> bool:
        block = self.pick(self.bench.proposals)
        if block is None:
            return False
        self.give(place, block, "proposal")
        return True

    def give(self, place: int, block: Block, kind: str) -> None:
        message = self.bench.proposals[block]
        cc = None if message.high_cc is None else self.bench.names[message.high_cc.block_id]
        self.bench.hear(place, message, self.bench.leader(block.round))
        self.change(place, kind, block, lambda node: on_proposal(node, block, cc, self.guards))

    def certifying(self, place: int) -> bool:
        node = self.nodes[place]
        block = self.pick(self.certified())
        if block is None:
            return False
        fresh = (place, "votes", block) not in self.raw and block != GENESIS
        known = block == node.high or block in node.certified
        if fresh and not known and block.round > node.root.round and self.chance.random() < 0.5:
            self.raw.add((place, "votes", block))
            self.bench.give_votes(place, block)
            self.change(place, "votes", block, lambda node: on_qc(node, block, self.guards))
            return True
        if block.round <= node.high.round and block.round >= node.current - 1:
            return False
        self.bench.give_qc(place, block)
        self.change(place, "qc", block, lambda node: on_qc(node, block, self.guards))
        return True

    def committing(self, place: int) -> bool:
        block = self.pick(self.committed())
        if block is None:
            return False
        if (place, "commits", block) not in self.raw and self.chance.random() < 0.5:
            self.raw.add((place, "commits", block))
            self.bench.give_commits(place, block)
            self.change(place, "commits", block, lambda node: on_commit_votes(node, block, self.guards))
        else:
            self.bench.give_cc(place, block)
            self.change(place, "cc", block, lambda node: on_cc(node, block, self.guards))
        return True

    def certifying_timeouts(self, place: int) -> bool:
        found = self.tcs()
        if not found:
            return False
        tc = self.chance.choice(found)
        self.bench.give_tc(place, tc)
        self.change(place, "tc", tc, lambda node: on_tc(node, tc, self.guards))
        return True

    def timing_out(self, place: int) -> bool:
        self.bench.timer(place)
        self.change(place, "timer", self.nodes[place].current, lambda node: on_timer(node, self.guards))
        return True

    def hearing_timeouts(self, place: int) -> bool:
        found = [(node.place, said) for node in self.nodes if node.place != place for said in node.timeouts]
        if not found:
            return False
        late = max(said.round for _, said in found)
        if self.chance.random() < 0.7:
            found = [row for row in found if row[1].round == late]
        author, said = self.chance.choice(sorted(found, key=lambda row: (row[0], short(row[1]))))
        self.bench.hear(place, self.bench.timeouts[author, said], author)
        self.change(
            place, "timeout", (author, said), lambda node: on_timeout(node, author, said, self.guards)
        )
        return True

    def hearing_lies(self, place: int) -> bool:
        """A timeout of the liar, of the node's round or near it, with any QC below."""
        node = self.nodes[place]
        round_ = max(1, node.current + self.chance.choice((-1, 0, 0, 0, 1)))
        highs = [block for block in self.certified() if block.round < round_]
        said = Timeout(round_, self.chance.choice(highs), None, None)
        self.bench.hear(place, self.bench.lied_timeout(round_, said.high))
        self.change(place, "liar's timeout", said, lambda node: on_timeout(node, LIAR, said, self.guards))
        return True

    def crashing(self, place: int) -> bool:
        if self.chance.random() < 0.5:
            return False
        self.bench.crash(place)
        self.raw = {row for row in self.raw if row[0] != place}
        self.change(place, "crash", "", lambda node: on_crash(node, self.guards))
        return True


SIGHTS = (
    "a block waits for its parent",
    "a second block of a round is taken because it was certified",
    "a commit by a two-chain",
    "a commit by a CC",
    "several blocks committed at once",
    "a branch abandoned",
    "a late QC leaves the TC",
    "a replayed TC is ignored",
    "a timeout is refused",
    "a timeout is repeated",
    "a timeout joined",
    "a TC made of timeouts",
    "a round entered by a TC",
    "a vote across skipped rounds",
    "a restart with uncommitted blocks",
    "a restart that forgets a certificate",
)
"""What a set of histories has to pass through to mean something."""


def sights(kind: str, what: object, before: Node, after: Node) -> list[str]:
    """Name what of `SIGHTS` a step shows."""
    committed = after.root.round - before.root.round
    grown = len(after.timeouts) > len(before.timeouts)
    rounds = [block.round for block in after.tree]
    late = kind == "qc" and isinstance(what, Block) and before.tc is not None and what.round < before.tc.round
    stale = kind == "tc" and isinstance(what, TC) and what.round < before.current
    voted = after.record.vote if after.record.vote != before.record.vote else None
    gone = set(before.tree) - set(after.tree) - _line(after.root)
    seen = {
        "a block waits for its parent": len(after.orphans) > len(before.orphans),
        "a second block of a round is taken because it was certified": len(set(rounds)) < len(rounds)
        and len(after.tree) > len(before.tree),
        "a commit by a two-chain": committed > 0 and kind not in ("cc", "commits"),
        "a commit by a CC": committed > 0 and kind in ("cc", "commits"),
        "several blocks committed at once": len(_line(after.root) - _line(before.root)) > 1,
        "a branch abandoned": committed > 0 and bool(gone) and kind != "crash",
        "a late QC leaves the TC": late and after.tc == before.tc,
        "a replayed TC is ignored": stale and after == before,
        "a timeout is refused": kind == "timer" and not grown and after.record == before.record,
        "a timeout is repeated": kind == "timer" and grown and after.record == before.record,
        "a timeout joined": kind in ("timeout", "liar's timeout")
        and after.record.timeout != before.record.timeout,
        "a TC made of timeouts": kind in ("timeout", "liar's timeout")
        and after.tc is not None
        and after.tc.round == before.current,
        "a round entered by a TC": after.tc is not None and after.current == after.tc.round + 1,
        "a vote across skipped rounds": voted is not None and voted.tc is not None,
        "a restart with uncommitted blocks": kind == "crash" and bool(after.tree),
        "a restart that forgets a certificate": kind == "crash" and after.current < before.current,
    }
    return [name for name, shown in seen.items() if shown]


def _line(block: Block | None) -> set[Block]:
    line = set()
    while block is not None:
        line.add(block)
        block = block.parent
    return line


def walk(seed: int, steps: int, guards: Guards | None = None) -> Walk:
    """Play one history; raises `Difference`."""
    history = Walk(seed, guards or Guards())
    for _ in range(steps):
        history.step()
    return history


def short(what: object) -> str:
    """A block or what contains some, in few letters."""
    match what:
        case Block():
            parent = "" if what.parent is None else f"<{short(what.parent)}"
            return f"{what.round}{'ab'[what.tag]}{'' if what.tc is None else f'({short(what.tc)})'}{parent}"
        case TC():
            return f"tc{what.round}^{what.high.round}"
        case tuple() | list():
            return f"({' '.join(short(item) for item in what)})"
        case set() | frozenset():
            return "{" + " ".join(sorted(short(item) for item in what)) + "}"
        case dict():
            return "{" + " ".join(f"{key}:{short(item)}" for key, item in sorted(what.items())) + "}"
        case _:
            return str(what)
