"""One validator as the design describes it: what it knows, what it does with each thing it hears. Apart from the code under test.

Values are immutable; every handler takes a node and returns the next one. Networks, clocks and signatures are not here: a message
is what it says, and a handler is called when somebody delivers it. `Guards` switches the two rules that liveness rests on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Block(NamedTuple):
    """A block with the certificates it carries: the QC is its parent's. Genesis has no parent."""

    round: int
    parent: Block | None
    tag: int
    tc: TC | None


class TC(NamedTuple):
    """A timeout certificate: its round, and the block of its highest QC."""

    round: int
    high: Block


class Timeout(NamedTuple):
    """A timeout message: what is signed, and the certificates that travel with it."""

    round: int
    high: Block
    tc: TC | None
    cc: Block | None


class Record(NamedTuple):
    """What must survive a crash."""

    last_voted: int = 0
    lock: int = 0
    highest_timeout: int = 0
    last_proposed: int = 0
    vote: Block | None = None
    commit: Block | None = None
    timeout: tuple[int, Block] | None = None


class Disk(NamedTuple):
    """What the last write left: nothing but these is there after a crash."""

    record: Record
    high: Block
    tc: TC | None
    cc: Block | None
    root: Block
    tree: tuple[Block, ...]


GENESIS = Block(0, None, 0, None)


class Node(NamedTuple):
    """A validator.

    Attributes:
        place: its number.
        record: its safety record.
        current: its round.
        high: block of the highest QC.
        tc: the last TC.
        cc: block of the highest CC.
        root: the last committed block.
        tree: known blocks above the root whose parents are known, in the order they came.
        certified: blocks of the tree, or the root, whose QC is known.
        orphans: known blocks whose parent is missing.
        first: the first proposal of each round, in order of arrival.
        wanted: blocks that are being fetched.
        heard: timeouts counted: (author, round, block of the high QC).
        gave_up: it has tried to time out of the current round.
        disk: what is stored.
        votes: blocks it voted for, all that it ever signed.
        commits: blocks it commit-voted for.
        timeouts: timeout messages it sent.
    """

    place: int
    record: Record = Record()
    current: int = 1
    high: Block = GENESIS
    tc: TC | None = None
    cc: Block | None = None
    root: Block = GENESIS
    tree: tuple[Block, ...] = ()
    certified: frozenset[Block] = frozenset({GENESIS})
    orphans: tuple[Block, ...] = ()
    first: tuple[Block, ...] = ()
    wanted: frozenset[Block] = frozenset()
    heard: frozenset[tuple[int, int, Block]] = frozenset()
    gave_up: bool = False
    disk: Disk = Disk(Record(), GENESIS, None, None, GENESIS, ())
    votes: frozenset[Block] = frozenset()
    commits: frozenset[Block] = frozenset()
    timeouts: frozenset[Timeout] = frozenset()


@dataclass(frozen=True, slots=True)
class Guards:
    """Switches, all on in the protocol.

    Attributes:
        late_qc: a QC older than the last TC does not remove it.
        replayed_tc: a TC of a past round does not replace the last one.
        certificates_first: what a proposal carries is taken before its round is judged.
        joins: more than a third timing out makes the others time out.
        validators: how many there are, each with the same stake.
    """

    late_qc: bool = True
    replayed_tc: bool = True
    certificates_first: bool = True
    joins: bool = True
    validators: int = 4

    def is_quorum(self, count: int) -> bool:
        """More than two thirds."""
        return 3 * count > 2 * self.validators

    def is_one_honest(self, count: int) -> bool:
        """More than one third."""
        return 3 * count > self.validators


def knows(node: Node, block: Block) -> bool:
    """Whether a block is connected here."""
    return block == node.root or block in node.tree


# --- certificates ---


def take_qc(node: Node, block: Block, guards: Guards) -> Node:
    """ON QC."""
    tc = node.tc
    if tc is not None and (block.round >= tc.round or not guards.late_qc):
        tc = None
    high = block if block.round > node.high.round else node.high
    node = _enter(node._replace(high=high, tc=tc), block.round + 1)
    if knows(node, block):
        return certify(node, block)
    return want(node, block) if block.round > node.root.round else node


def take_tc(node: Node, tc: TC, guards: Guards) -> Node:
    """ON TC."""
    if tc.round < node.current and guards.replayed_tc:
        return node
    node = take_qc(node, tc.high, guards)
    return _enter(node._replace(tc=tc), tc.round + 1)


def is_news(node: Node, cc: Block) -> bool:
    """Whether a CC says more than is known."""
    return cc.round > node.root.round and (node.cc is None or cc.round > node.cc.round)


def take_cc(node: Node, block: Block) -> Node:
    """A commit certificate: commit the block if it is here, else fetch it."""
    if node.cc is None or block.round > node.cc.round:
        node = node._replace(cc=block)
    if block.round <= node.root.round:
        return node
    return commit(node, block) if knows(node, block) else want(node, block)


def certify(node: Node, block: Block) -> Node:
    """Note a known block's QC; its parent is final if their rounds are consecutive."""
    if not knows(node, block) or block in node.certified:
        return node
    node = node._replace(certified=node.certified | {block})
    parent = block.parent
    if parent is not None and parent in node.tree and block.round == parent.round + 1:
        return commit(node, parent)
    return node


def commit(node: Node, block: Block) -> Node:
    """Make a known block the root; what does not descend from it goes."""
    if block == node.root:
        return node
    kept = {block}
    tree = []
    for other in sorted(node.tree, key=lambda other: other.round):
        if other.parent in kept:
            kept.add(other)
            tree.append(other)
    return node._replace(
        root=block,
        tree=tuple(tree),
        certified=frozenset(node.certified & kept),
        first=tuple(other for other in node.first if other.round > block.round),
        orphans=tuple(
            other
            for other in node.orphans
            if other.round > block.round and other.parent is not None and other.parent.round >= block.round
        ),
        wanted=frozenset(other for other in node.wanted if other.round > block.round),
    )


def want(node: Node, block: Block) -> Node:
    """Fetch a block unless it is here."""
    if knows(node, block) or block in node.orphans:
        return node
    return node._replace(wanted=node.wanted | {block})


def _enter(node: Node, round_: int) -> Node:
    if round_ <= node.current:
        return node
    heard = frozenset(row for row in node.heard if row[1] >= round_)
    return node._replace(current=round_, heard=heard, gave_up=False)


# --- blocks ---


def on_proposal(node: Node, block: Block, cc: Block | None, guards: Guards) -> Node:
    """ON PROPOSAL, and what follows from it."""
    news = cc if cc is not None and is_news(node, cc) else None
    if block.round > node.root.round and not knows(node, block) and block not in node.orphans:
        if not guards.certificates_first and block.round != node.current:
            return finish(node, guards)
        node = take_qc(node, _parent(block), guards)
        if block.tc is not None:
            node = take_tc(node, block.tc, guards)
        known = next((other for other in node.first if other.round == block.round), None)
        if known is None:
            node = node._replace(first=(*node.first, block))
        if known is None or known == block or block in node.wanted:
            node = _add(node, block)
    if news is not None:
        node = take_cc(node, news)
    return finish(node, guards)


def _parent(block: Block) -> Block:
    if block.parent is None:
        raise ValueError("genesis has no parent")
    return block.parent


def _add(node: Node, block: Block) -> Node:
    node = node._replace(wanted=node.wanted - {block})
    parent = _parent(block)
    if knows(node, block) or block.round <= node.root.round or parent.round < node.root.round:
        return node
    if not knows(node, parent):
        return want(node._replace(orphans=(*node.orphans, block)), parent)
    ready = [block]
    while ready:
        one = ready.pop()
        before = len(node.tree), node.root
        node = _insert(node, one)
        if (len(node.tree), node.root) == before:
            continue
        freed = [orphan for orphan in node.orphans if orphan.parent == one]
        node = node._replace(orphans=tuple(orphan for orphan in node.orphans if orphan not in freed))
        ready.extend(freed)
    return node


def _insert(node: Node, block: Block) -> Node:
    if not knows(node, _parent(block)) or knows(node, block):
        return node
    node = certify(node._replace(tree=(*node.tree, block)), _parent(block))
    if node.high == block:
        node = certify(node, block)
    if node.cc == block and knows(node, block):
        node = commit(node, block)
    return node


# --- own signatures ---


def finish(node: Node, guards: Guards) -> Node:
    """Do what the rules now ask for, then write if anything was signed or committed."""
    while True:
        after = _vote(node)
        after = _commit_vote(after)
        after = _time_out_with_others(after, guards)
        if after == node:
            break
        node = after
    if node.high.round > node.root.round:
        node = want(node, node.high)
    stored = node.disk
    if node.record != stored.record or node.root != stored.root:
        disk = Disk(node.record, node.high, node.tc, node.cc, node.root, node.tree)
        node = node._replace(disk=disk)
    return node


def _vote(node: Node) -> Node:
    """VOTE for the first proposal of the current round, once it is connected."""
    block = next((other for other in node.first if other.round == node.current), None)
    record = node.record
    if block is None or block not in node.tree or node.current <= record.last_voted:
        return node
    parent, tc = _parent(block), block.tc
    permitted = block.round == parent.round + 1 or (
        tc is not None and tc.round + 1 == block.round and parent.round >= tc.high.round
    )
    if not permitted:
        return node
    record = record._replace(last_voted=block.round, lock=max(record.lock, parent.round), vote=block)
    return node._replace(record=record, votes=node.votes | {block})


def _commit_vote(node: Node) -> Node:
    """COMMIT-VOTE for the block of the highest QC, once it is connected."""
    block, record = node.high, node.record
    if block not in node.tree or block.round <= record.highest_timeout:
        return node
    if record.commit is not None and record.commit.round >= block.round:
        return node
    record = record._replace(lock=max(record.lock, block.round), commit=block)
    return node._replace(record=record, commits=node.commits | {block})


def time_out(node: Node) -> Node:
    """TIMEOUT of the current round, or its repetition."""
    round_, record = node.current, node.record
    node = node._replace(gave_up=True)
    if record.timeout is not None and record.timeout[0] == round_:
        high = record.timeout[1]
    else:
        high = node.high
        reached = round_ == high.round + 1 or (node.tc is not None and node.tc.round + 1 == round_)
        if high.round < record.lock or round_ < record.last_voted or round_ <= record.highest_timeout:
            return node
        if round_ <= high.round or not reached:
            return node
        record = record._replace(
            last_voted=max(record.last_voted, round_), highest_timeout=round_, timeout=(round_, high)
        )
    message = Timeout(round_, high, node.tc, node.cc)
    heard = node.heard | {(node.place, round_, high)}
    return node._replace(record=record, timeouts=node.timeouts | {message}, heard=heard)


def _time_out_with_others(node: Node, guards: Guards) -> Node:
    rows = [row for row in node.heard if row[1] == node.current]
    if guards.is_quorum(len(rows)):
        return take_tc(node, TC(node.current, max((row[2] for row in rows), key=lambda b: b.round)), guards)
    if guards.joins and not node.gave_up and guards.is_one_honest(len(rows)):
        return time_out(node)
    return node


# --- what can happen to a node ---


def on_qc(node: Node, block: Block, guards: Guards) -> Node:
    """A QC arrives, or the last vote for it."""
    return finish(take_qc(node, block, guards), guards)


def on_tc(node: Node, tc: TC, guards: Guards) -> Node:
    """A TC arrives."""
    return finish(take_tc(node, tc, guards), guards)


def on_cc(node: Node, block: Block, guards: Guards) -> Node:
    """A CC arrives."""
    return finish(take_cc(node, block) if is_news(node, block) else node, guards)


def on_commit_votes(node: Node, block: Block, guards: Guards) -> Node:
    """The commit votes of a quorum arrive, each with the QC."""
    if block.round <= node.root.round:
        return node
    if block != node.high and block not in node.certified:
        node = finish(take_qc(node, block, guards), guards)
    return finish(take_cc(node, block), guards) if block.round > node.root.round else node


def on_timer(node: Node, guards: Guards) -> Node:
    """The round's timer ends."""
    return finish(time_out(node), guards)


def on_timeout(node: Node, author: int, message: Timeout, guards: Guards) -> Node:
    """Somebody's timeout arrives."""
    row = (author, message.round, message.high)
    if row in node.heard:
        return finish(node, guards)
    node = take_qc(node, message.high, guards)
    if message.tc is not None:
        node = take_tc(node, message.tc, guards)
    if message.cc is not None and is_news(node, message.cc):
        node = take_cc(node, message.cc)
    said = any(other[:2] == row[:2] for other in node.heard)
    if message.round >= node.current and not said:
        node = node._replace(heard=node.heard | {row})
    return finish(node, guards)


def may_propose(node: Node) -> bool:
    """Whether a leader of its current round can build on its highest QC."""
    return node.record.last_proposed < node.current and knows(node, node.high)


def propose(node: Node, tag: int, guards: Guards) -> tuple[Node, Block]:
    """PROPOSE: the leader of the current round extends the highest QC."""
    tc = None if node.high.round + 1 == node.current else node.tc
    block = Block(node.current, node.high, tag, tc)
    node = node._replace(
        record=node.record._replace(last_proposed=node.current),
        first=(*(other for other in node.first if other.round != node.current), block),
    )
    return finish(_add(node, block), guards), block


def on_crash(node: Node, guards: Guards) -> Node:
    """The process ends, and starts again from what is stored."""
    disk = node.disk
    passed = 0 if disk.tc is None else disk.tc.round
    fresh = Node(
        node.place,
        record=disk.record,
        current=max(disk.high.round, passed) + 1,
        high=disk.high,
        tc=disk.tc,
        cc=disk.cc,
        root=disk.root,
        certified=frozenset({GENESIS}) if disk.root == GENESIS else frozenset(),
        disk=disk,
        votes=node.votes,
        commits=node.commits,
        timeouts=node.timeouts,
    )
    for block in sorted(disk.tree, key=lambda block: block.round):
        if block.round > fresh.root.round:
            fresh = _insert(fresh, block)
            if all(other.round != block.round for other in fresh.first) and knows(fresh, block):
                fresh = fresh._replace(first=(*fresh.first, block))
    if knows(fresh, fresh.high):
        fresh = take_qc(fresh, fresh.high, guards)
    if fresh.cc is not None and fresh.cc.round > fresh.root.round:
        fresh = commit(fresh, fresh.cc) if knows(fresh, fresh.cc) else want(fresh, fresh.cc)
    last = fresh.record.timeout
    if last is not None and last[0] == fresh.current:
        fresh = time_out(fresh)
    return finish(fresh, guards)


def on_block(node: Node, block: Block, guards: Guards) -> Node:
    """A block that was asked for arrives."""
    return finish(_add(node, block) if block in node.wanted else node, guards)
