"""What a validator may sign, and what that adds up to: the rules alone, written apart from the code under test.

Who is here: `honest` validators, each nothing but its safety record and what it has signed, and `byzantine` ones that have
signed everything anybody could want. The adversary is the network, every leader, and the machine around each honest record:
it shows to whom it likes any certificate that exists. So a state is only what honest keys have signed, and whatever holds
here holds under any delay, loss, repetition, leader and (since the record survives) crash.

`Rules` names every rule; each can be switched off to see what it is there for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import combinations
from typing import NamedTuple

from tests.model.universe import Universe, members, universe


@dataclass(frozen=True, slots=True)
class Rules:
    """One switch a rule; all on is the protocol.

    Attributes:
        vote_above_last_voted: no vote at or below the last voted round.
        vote_raises_last_voted: voting is remembered.
        vote_raises_lock: a vote locks on the round of the QC it extends.
        vote_extends_its_qc: the QC a proposal carries is that of its parent.
        skip_needs_tc: rounds are skipped only with a TC.
        skip_tc_of_round_before: that TC is of the very round before.
        skip_extends_tc_high: the QC is not below the TC's highest.
        tc_high_is_max: a TC's highest round is the largest its signers signed.
        timeout_above_last_voted: no timeout below the last voted round.
        timeout_once: no timeout at or below the highest timeout.
        timeout_not_below_lock: the QC a timeout carries is not below the lock.
        timeout_above_its_qc: the QC a timeout carries is of a lower round.
        timeout_of_reached_round: only a round that a QC or TC led to is timed out.
        timeout_raises_last_voted: after a timeout no vote in the round.
        timeout_raises_highest_timeout: timing out is remembered.
        commit_needs_qc: only a certified block is commit-voted.
        commit_above_highest_timeout: no commit vote at or below a round timed out.
        commit_raises_lock: a commit vote locks on its round.
        commit_rounds_rise: each commit vote is of a later round.
        two_chain_consecutive: a two-chain has no gap.
        record_survives: what is remembered is so after a crash.
        qc_quorum: a QC needs more than two thirds.
        cc_quorum: a CC needs more than two thirds.
        tc_quorum: a TC needs more than two thirds.
        kinds_apart: a vote is not a commit vote.
    """

    vote_above_last_voted: bool = True
    vote_raises_last_voted: bool = True
    vote_raises_lock: bool = True
    vote_extends_its_qc: bool = True
    skip_needs_tc: bool = True
    skip_tc_of_round_before: bool = True
    skip_extends_tc_high: bool = True
    tc_high_is_max: bool = True
    timeout_above_last_voted: bool = True
    timeout_once: bool = True
    timeout_not_below_lock: bool = True
    timeout_above_its_qc: bool = True
    timeout_of_reached_round: bool = True
    timeout_raises_last_voted: bool = True
    timeout_raises_highest_timeout: bool = True
    commit_needs_qc: bool = True
    commit_above_highest_timeout: bool = True
    commit_raises_lock: bool = True
    commit_rounds_rise: bool = True
    two_chain_consecutive: bool = True
    record_survives: bool = True
    qc_quorum: bool = True
    cc_quorum: bool = True
    tc_quorum: bool = True
    kinds_apart: bool = True


RULE_NAMES = tuple(field.name for field in fields(Rules))


def without(name: str) -> Rules:
    """The rules with one switched off."""
    return replace(Rules(), **{name: False})


class Signer(NamedTuple):
    """One honest validator: its record, then what it has signed.

    `votes` and `commits` are sets of blocks; `timeouts` has bit `round * (rounds_max + 1) + high` for each signed one.
    """

    last_voted: int = 0
    lock: int = 0
    highest_timeout: int = 0
    last_commit: int = 0
    votes: int = 0
    commits: int = 0
    timeouts: int = 0


class Action(NamedTuple):
    """A signature: "vote" (block, round of the QC it rests on), "commit" (block, 0), "timeout" (round, QC round); or "crash"."""

    kind: str
    subject: int
    qc_round: int


State = tuple[Signer, ...]


class Facts(NamedTuple):
    """What exists once the Byzantine validators add their signatures.

    Attributes:
        certified: blocks with a QC.
        committed_by_cc: blocks with a CC.
        tc_lows: per round the lowest highest-QC round that a TC of it can claim; None where there is no TC.
        qc_rounds: rounds that have a QC, ascending, genesis first.
    """

    certified: int
    committed_by_cc: int
    tc_lows: tuple[int | None, ...]
    qc_rounds: tuple[int, ...]


@dataclass(frozen=True)
class Bounds:
    """The size of the model. `reduced` leaves out signatures that cannot matter, see `actions`."""

    rounds: int = 3
    tags: int = 1
    honest: int = 3
    byzantine: int = 1
    reduced: bool = True

    @property
    def blocks(self) -> Universe:
        """All blocks within the bound."""
        return universe(self.rounds, self.tags)

    @property
    def quorum_honest(self) -> int:
        """Honest signatures in the smallest quorum: more than two thirds, less the Byzantine ones."""
        return 2 * (self.honest + self.byzantine) // 3 + 1 - self.byzantine


def initial(bounds: Bounds) -> State:
    """Nobody has signed anything."""
    return (Signer(),) * bounds.honest


@cache
def _signed_by(sets: tuple[int, ...], least: int) -> int:
    """Members that at least `least` of the sets have."""
    found = 0
    for chosen in combinations(sets, least):
        both = chosen[0]
        for one in chosen[1:]:
            both &= one
        found |= both
    return found


@cache
def _tc_lows(timeouts: tuple[int, ...], rounds: int, least: int, max_counts: bool) -> tuple[int | None, ...]:
    width = rounds + 1
    lows: list[int | None] = [None]
    for round_ in range(1, rounds + 1):
        rows = [row >> (round_ * width) & ((1 << width) - 1) for row in timeouts]
        highs = sorted((row & -row).bit_length() - 1 for row in rows if row)
        if len(highs) < least:
            lows.append(None)
        else:
            lows.append(highs[least - 1] if max_counts else 0)
    return tuple(lows)


@cache
def _qc_rounds(certified: int, blocks: Universe) -> tuple[int, ...]:
    return tuple(sorted({blocks.rounds[block] for block in members(certified | 1)}))


def facts(state: State, bounds: Bounds, rules: Rules) -> Facts:
    """Count what honest keys have signed, with the Byzantine signatures added."""
    least = bounds.quorum_honest
    votes = tuple(signer.votes for signer in state)
    certified = _signed_by(votes, least if rules.qc_quorum else least - 1)
    commits = tuple(signer.commits | (0 if rules.kinds_apart else signer.votes) for signer in state)
    committed = _signed_by(commits, least if rules.cc_quorum else least - 1)
    timeouts = tuple(signer.timeouts for signer in state)
    lows = _tc_lows(timeouts, bounds.rounds, least if rules.tc_quorum else least - 1, rules.tc_high_is_max)
    return Facts(certified, committed, lows, _qc_rounds(certified, bounds.blocks))


def may_vote(signer: Signer, round_: int, qc_round: int, known: Facts, rules: Rules) -> bool:
    """VOTE for a block of `round_` whose QC is of `qc_round`."""
    if rules.vote_above_last_voted and round_ <= signer.last_voted:
        return False
    if qc_round >= round_:
        return False
    if round_ == qc_round + 1 or not rules.skip_needs_tc:
        return True
    oldest = round_ - 1 if rules.skip_tc_of_round_before else 1
    for low in known.tc_lows[oldest:round_]:
        if low is not None and (qc_round >= low or not rules.skip_extends_tc_high):
            return True
    return False


def may_commit(signer: Signer, block_round: int, certified: bool, rules: Rules) -> bool:
    """COMMIT-VOTE for a block of `block_round`."""
    if rules.commit_needs_qc and not certified:
        return False
    if rules.commit_above_highest_timeout and block_round <= signer.highest_timeout:
        return False
    return not rules.commit_rounds_rise or block_round > signer.last_commit


def may_time_out(signer: Signer, round_: int, qc_round: int, known: Facts, rules: Rules) -> bool:
    """TIMEOUT of `round_` carrying a QC of `qc_round`."""
    if rules.timeout_not_below_lock and qc_round < signer.lock:
        return False
    if rules.timeout_above_last_voted and round_ < signer.last_voted:
        return False
    if rules.timeout_once and round_ <= signer.highest_timeout:
        return False
    if rules.timeout_above_its_qc and round_ <= qc_round:
        return False
    reached = round_ == qc_round + 1 or known.tc_lows[round_ - 1] is not None
    return reached or not rules.timeout_of_reached_round


def perform(signer: Signer, action: Action, bounds: Bounds, rules: Rules) -> Signer:
    """The validator after it has signed (or crashed)."""
    kind, subject, qc_round = action
    if kind == "crash":
        return signer._replace(last_voted=0, lock=0, highest_timeout=0, last_commit=0)
    if kind == "timeout":
        last_voted, highest = signer.last_voted, signer.highest_timeout
        return signer._replace(
            last_voted=max(last_voted, subject) if rules.timeout_raises_last_voted else last_voted,
            highest_timeout=max(highest, subject) if rules.timeout_raises_highest_timeout else highest,
            timeouts=signer.timeouts | 1 << (subject * (bounds.rounds + 1) + qc_round),
        )
    round_ = bounds.blocks.rounds[subject]
    if kind == "vote":
        return signer._replace(
            last_voted=max(signer.last_voted, round_) if rules.vote_raises_last_voted else signer.last_voted,
            lock=max(signer.lock, qc_round) if rules.vote_raises_lock else signer.lock,
            votes=signer.votes | 1 << subject,
        )
    return signer._replace(
        lock=max(signer.lock, round_) if rules.commit_raises_lock else signer.lock,
        last_commit=max(signer.last_commit, round_),
        commits=signer.commits | 1 << subject,
    )


def actions(state: State, index: int, known: Facts, bounds: Bounds, rules: Rules) -> Iterator[Action]:
    """Everything one validator may sign now.

    With `bounds.reduced` what cannot help the adversary is left out. Guards compare only with `last_voted`, `lock`,
    `highest_timeout` and `last_commit`, which signatures raise, and certificates only ever permit: so a signature that is in
    no certificate narrows what may follow and permits nothing, and any history that breaks an invariant still does so without it.
    Left out are:

    - votes and commit votes for what has its certificate, and timeouts that do not lower what a TC of the round can claim;
    - votes for a second block in a round: two quorums share an honest validator, who votes once, so at most one block of
      a round is ever certified, and votes for the others are in vain;
    - timeouts that carry a higher QC than they must;
    - timeouts of the last round: they permit only what lies beyond the bound;
    - commit votes for a second block: the invariants speak of one committed block and of certified ones, so a history
      that breaks one needs the commit votes for one block only.
    """
    signer, blocks = state[index], bounds.blocks
    voted = 0
    if bounds.reduced:
        for other in state:
            voted |= other.votes
    parents = blocks.ancestors[0] | known.certified
    for block in range(1, len(blocks)):
        if signer.votes >> block & 1 or (bounds.reduced and known.certified >> block & 1):
            continue
        if (
            bounds.reduced
            and rules.vote_above_last_voted
            and rules.vote_raises_last_voted
            and voted & blocks.at_round[blocks.rounds[block]] & ~(1 << block)
        ):
            continue
        for qc_round in _qc_rounds_for(block, parents, known, bounds, rules):
            if may_vote(signer, blocks.rounds[block], qc_round, known, rules):
                yield Action("vote", block, qc_round)
    committing = 0
    if bounds.reduced:
        for other in state:
            committing |= other.commits
    for block in members(known.certified & ~1 if rules.commit_needs_qc else (1 << len(blocks)) - 2):
        if committing & ~(1 << block):
            continue
        if signer.commits >> block & 1 or (bounds.reduced and known.committed_by_cc >> block & 1):
            continue
        if may_commit(signer, blocks.rounds[block], bool(known.certified >> block & 1), rules):
            yield Action("commit", block, 0)
    yield from _timeouts(signer, known, bounds, rules)
    if not rules.record_survives and signer[:4] != (0, 0, 0, 0):
        yield Action("crash", 0, 0)


def _qc_rounds_for(block: int, parents: int, known: Facts, bounds: Bounds, rules: Rules) -> tuple[int, ...]:
    """Rounds of the QCs that a proposal of this block can carry."""
    if not rules.vote_extends_its_qc:
        return known.qc_rounds
    parent = bounds.blocks.parents[block]
    return (bounds.blocks.rounds[parent],) if parents >> parent & 1 else ()


def _timeouts(signer: Signer, known: Facts, bounds: Bounds, rules: Rules) -> Iterator[Action]:
    width = bounds.rounds + 1
    for round_ in range(1, width - bounds.reduced):
        signed = signer.timeouts >> (round_ * width) & ((1 << width) - 1)
        low = known.tc_lows[round_]
        for qc_round in known.qc_rounds:
            if signed >> qc_round & 1 or not may_time_out(signer, round_, qc_round, known, rules):
                continue
            if bounds.reduced and low is not None and qc_round >= low:
                break
            yield Action("timeout", round_, qc_round)
            if bounds.reduced:
                break


def committed(known: Facts, bounds: Bounds, rules: Rules) -> int:
    """Blocks that are final: by a CC, or by a QC and the QC of a child in the next round."""
    final, blocks = known.committed_by_cc, bounds.blocks
    for block in members(known.certified & ~1):
        following = blocks.direct[block] if rules.two_chain_consecutive else blocks.children[block]
        if following & known.certified:
            final |= 1 << block
    return final


def violation(state: State, known: Facts, bounds: Bounds, rules: Rules) -> str | None:
    """Name the first invariant that a state breaks, or None."""
    blocks = bounds.blocks
    for block in members(committed(known, bounds, rules)):
        for other in members(known.certified >> block << block):
            if not blocks.ancestors[other] >> block & 1 and blocks.rounds[other] > blocks.rounds[block]:
                return "a certified block beside a committed one"
    for block in members(known.committed_by_cc):
        round_ = blocks.rounds[block]
        if any(low is not None and low < round_ for low in known.tc_lows[round_:]):
            return "a TC below a CC"
    for at_round in blocks.at_round[1:]:
        here = known.certified & at_round
        if here & (here - 1):
            return "two certified blocks in a round"
    for signer in state:
        if (offence := twice(signer, bounds)) is not None:
            return offence
    return None


def hopeless(state: State, known: Facts, bounds: Bounds) -> bool:
    """Whether a signature can never get into a certificate: then the state without it, which is also searched, permits more."""
    least, blocks, width = bounds.quorum_honest, bounds.blocks, bounds.rounds + 1
    votes = commits = timeouts = 0
    for signer in state:
        votes |= signer.votes
        commits |= signer.commits
        timeouts |= signer.timeouts
    for block in members(votes & ~known.certified):
        round_ = blocks.rounds[block]
        if sum(s.last_voted < round_ or bool(s.votes >> block & 1) for s in state) < least:
            return True
    for block in members(commits & ~known.committed_by_cc):
        round_ = blocks.rounds[block]
        if (
            sum(
                (s.highest_timeout < round_ and s.last_commit < round_) or bool(s.commits >> block & 1)
                for s in state
            )
            < least
        ):
            return True
    for round_ in range(1, bounds.rounds):
        here = ((1 << width) - 1) << (round_ * width)
        if not timeouts & here or known.tc_lows[round_] is not None:
            continue
        if (
            sum(
                bool(s.timeouts & here)
                or (s.highest_timeout < round_ and s.last_voted <= round_ and s.lock < round_)
                for s in state
            )
            < least
        ):
            return True
    return False


@cache
def twice(signer: Signer, bounds: Bounds) -> str | None:
    """Name the kind of which an honest key signed two statements for one round, or None."""
    width = bounds.rounds + 1
    for round_, at_round in enumerate(bounds.blocks.at_round):
        for kind, signed in (("votes", signer.votes), ("commit votes", signer.commits)):
            here = signed & at_round
            if here & (here - 1):
                return f"two {kind} in a round"
        here = signer.timeouts >> (round_ * width) & ((1 << width) - 1)
        if here & (here - 1):
            return "two timeouts in a round"
    return None
