"""The model's validators beside three real `SafetyRules`: whatever the one may sign the other signs, and nothing else.

Certificates are made of exactly the signatures that the real signers gave, and those of one Byzantine key. A certificate that
does not exist in the model can therefore only be shown too thin, and has to be refused for that.
"""

from consensus.errors import RemoteError, SafetyRefusal
from consensus.safety import SafetyRules
from consensus.types import QC, TC, Block
from tests.model.rules import Action, Bounds, Facts, Rules, Signer, State, facts, perform
from tests.model.universe import members
from tests.unit.consensus.lab import CONTEXT, GENESIS, GENESIS_QC, SEEDS, Chain, qc_of, tc_of

LIAR = 3
WORDS = ("last_voted", "lock", "highest_timeout")


class Difference(Exception):
    """The model and the code disagree."""


class RealSigners:
    """Three real signers and the model's view of them, in one order."""

    def __init__(self, bounds: Bounds) -> None:
        if (bounds.honest, bounds.byzantine) != (3, 1):
            raise ValueError("three honest validators and one Byzantine")
        self.bounds = bounds
        self.chain = Chain()
        self.blocks: dict[int, Block] = {0: GENESIS}
        self.signers = [SafetyRules(seed, CONTEXT) for seed in SEEDS[:3]]
        self.model: list[Signer] = [Signer()] * 3

    @property
    def state(self) -> State:
        """The model's state, unsorted."""
        return tuple(self.model)

    def known(self) -> Facts:
        """What exists by the true rules."""
        return facts(self.state, self.bounds, Rules())

    def block(self, number: int, tc: TC | None = None) -> Block:
        """The real block of a number, with a TC if it is shown with one; its id does not depend on that."""
        blocks = self.bounds.blocks
        parent = self.block(blocks.parents[number]) if number else GENESIS
        if number not in self.blocks:
            # The clock tells the tags apart.
            stamp = parent.header.timestamp_ms + 1 + blocks.tags[number]
            self.blocks[number] = self.chain.block(parent, blocks.rounds[number], timestamp_ms=stamp)
        made = self.blocks[number]
        return (
            made if number == 0 else Block(made.header, self.qc(blocks.parents[number]), tc, made.signature)
        )

    def qc(self, number: int) -> QC:
        """The votes there are for a block, with the liar's."""
        if number == 0:
            return GENESIS_QC
        voters = [place for place, row in enumerate(self.model) if row.votes >> number & 1]
        if number not in self.blocks:
            self.block(number)
        return qc_of(self.blocks[number], (*voters, LIAR))

    def tc(self, round_: int) -> TC | None:
        """The TC of a round that claims least; None where nobody has timed out of it."""
        width = self.bounds.rounds + 1
        rows: dict[int, int] = {}
        for place, signer in enumerate(self.model):
            here = signer.timeouts >> (round_ * width) & ((1 << width) - 1)
            if here:
                rows[place] = (here & -here).bit_length() - 1
        chosen = sorted(rows, key=lambda place: rows[place])[: self.bounds.quorum_honest]
        if not chosen:
            return None
        claims = {place: self.qc_of_round(rows[place]) for place in chosen}
        return tc_of(round_, {**claims, LIAR: GENESIS_QC})

    def newest_tc(self, round_: int) -> TC | None:
        """The TC of a round, or of the last one before it that has timeouts: then it permits nothing."""
        return next((tc for before in range(round_, 0, -1) if (tc := self.tc(before)) is not None), None)

    def qc_of_round(self, round_: int) -> QC:
        """The QC of a round."""
        found = members((self.known().certified | 1) & self.bounds.blocks.at_round[round_])
        return self.qc(found[0])

    def offer(self, place: int, action: Action) -> bool:
        """Ask one real signer for a signature; returns whether it gave a new one. It keeps what it gave."""
        signer, before = self.signers[place], self.signers[place].record
        try:
            if action.kind == "vote":
                round_ = self.bounds.blocks.rounds[action.subject]
                skips = round_ != action.qc_round + 1
                signer.sign_vote(self.block(action.subject, self.newest_tc(round_ - 1) if skips else None))
            elif action.kind == "commit":
                signer.sign_commit_vote(self.qc(action.subject), self.block(action.subject).header)
            else:
                last_tc = self.newest_tc(action.subject - 1)
                signer.sign_timeout(action.subject, self.qc_of_round(action.qc_round), last_tc)
        except (SafetyRefusal, RemoteError):
            return False
        return signer.record != before

    def probe(self, place: int, action: Action) -> bool:
        """Ask, and take it back."""
        before = self.signers[place].record
        given = self.offer(place, action)
        self.signers[place].record = before
        return given

    def perform(self, place: int, action: Action) -> None:
        """Let both sign, and compare what they remember."""
        if not self.offer(place, action):
            raise Difference(f"the code refuses {action}, the model does not")
        self.model[place] = perform(self.model[place], action, self.bounds, Rules())
        self.compare(place)

    def compare(self, place: int) -> None:
        """Raise `Difference` unless both remember the same."""
        record, model = self.signers[place].record, self.model[place]
        commit = 0 if record.last_commit_vote is None else record.last_commit_vote.round
        real = (record.last_voted, record.lock, record.highest_timeout, commit)
        if real != model[:4]:
            raise Difference(f"the code remembers {real}, the model {model[:4]}")


def conceivable(bounds: Bounds, known: Facts) -> list[Action]:
    """Every signature that anybody could ask for, allowed or not, of blocks whose parents are certified."""
    blocks = bounds.blocks
    found = []
    for block in range(1, len(blocks)):
        if (known.certified | 1) >> blocks.parents[block] & 1:
            found.append(Action("vote", block, blocks.rounds[blocks.parents[block]]))
            found.append(Action("commit", block, 0))
    for round_ in range(1, bounds.rounds + 1):
        found.extend(Action("timeout", round_, qc_round) for qc_round in known.qc_rounds)
    return found
