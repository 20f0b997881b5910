"""Dishonest validators that conspire: what one learns all know, and each signs when the plan needs it."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consensus.leaders import Leaders
from consensus.messages import (
    CommitVoteMessage,
    Message,
    ProposalMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.types import QC, TC, Block, Header
from consensus.verify import proposal_message
from tests.simulation.byzantine.liar import Liar

if TYPE_CHECKING:
    from tests.simulation.world import World

QUIET = 0.8
"""How often a conspirator keeps a vote, commit vote or timeout of its own to itself."""


@dataclass
class Cabal:
    """What the conspirators know together.

    Attributes:
        members: slots by key index.
        blocks: every block that any of them saw or made.
        votes: by block id, the signatures that make its QC.
        qcs: certificates by block id, also those that nobody else can form.
        tcs: timeout certificates by round.
        timed_out: by round, the slots that declared it failed.
        tried: rounds in which something was proposed already.
    """

    members: dict[int, "HalfSplitter"] = field(default_factory=dict)
    blocks: dict[bytes, Block] = field(default_factory=dict)
    votes: dict[bytes, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    qcs: dict[bytes, QC] = field(default_factory=dict)
    tcs: dict[int, TC] = field(default_factory=dict)
    timeouts: dict[int, dict[int, TimeoutMessage]] = field(default_factory=lambda: defaultdict(dict))
    tried: set[tuple[int, str]] = field(default_factory=set)


class HalfSplitter(Liar):
    """Shows one half of the others what it hides from the other half.

    As a leader, alone or with its accomplices, it proposes different blocks to two halves, or one block to just so many that
    only the conspirators hold its QC; once some have given up on a round that it leads, it proposes to those alone, on
    the certificate it hid, and lends them its vote.
    """

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        self.cabal = world.cabal
        self.cabal.members[key_index or 0] = self
        self.leaders = Leaders(world.validators)
        self.top = 0

    def send(self, to: int | None, message: Message) -> None:
        if isinstance(message, ProposalMessage):
            return
        spoken = isinstance(message, (VoteMessage, CommitVoteMessage, TimeoutMessage))
        if spoken and not self.world.healed and self.world.rng.random() < QUIET:
            return
        super().send(to, message)

    def misbehave(self, message: Message) -> None:
        cabal = self.cabal
        match message:
            case ProposalMessage(block=block):
                self._know_block(block)
                self._enter(block.round)
            case VoteMessage(vote=vote):
                self._count(vote.block_id, self.world.index_of(vote.author), vote.signature)
            case CommitVoteMessage(qc=qc):
                cabal.qcs[qc.block_id] = qc
                self._enter(qc.round + 1)
            case TimeoutMessage(timeout=timeout, high_qc=qc, last_tc=tc):
                cabal.qcs[qc.block_id] = qc
                if tc is not None:
                    cabal.tcs[tc.round] = tc
                cabal.timeouts[timeout.round][self.world.index_of(timeout.author)] = message
                self._certify_timeouts(timeout.round)
                self._enter(timeout.round)
                self._reveal(timeout.round)
            case _:
                pass

    # What they know.

    def _know_block(self, block: Block) -> None:
        self.cabal.blocks[block.id] = block
        self.cabal.qcs[block.qc.block_id] = block.qc
        if block.tc is not None:
            self.cabal.tcs[block.tc.round] = block.tc

    def _count(self, block_id: bytes, author: int, signature: bytes) -> None:
        """Count a vote, add the conspirators', and keep the QC if that makes one."""
        cabal, block = self.cabal, self.cabal.blocks.get(block_id)
        votes = cabal.votes[block_id]
        votes[author] = signature
        if block is None or block_id in cabal.qcs:
            return
        for index, member in cabal.members.items():
            votes[index] = member.vote_for(block).vote.signature
        if self.world.validators.is_quorum(sum(self.world.validators.stake_at(index) for index in votes)):
            rows = tuple(sorted(votes.items()))
            cabal.qcs[block_id] = QC(
                block.header.epoch, block.round, block_id, block.qc.block_id, block.qc.round, rows
            )
            self.world.counts["hidden certificates"] += 1
            self._enter(block.round + 1)

    def _certify_timeouts(self, round_: int) -> None:
        """Make the TC of a round from what is known and the conspirators' own timeouts, with the lowest QC that goes."""
        cabal, validators = self.cabal, self.world.validators
        if round_ in cabal.tcs:
            return
        lowest = min(cabal.timeouts[round_].values(), key=lambda message: message.high_qc.round)
        rows = dict(cabal.timeouts[round_])
        for index, member in cabal.members.items():
            rows[index] = member.timeout_of(round_, lowest.high_qc)
        if not validators.is_quorum(sum(validators.stake_at(index) for index in rows)):
            return
        highest = max(rows.values(), key=lambda message: message.high_qc.round).high_qc
        entries = tuple(
            (index, message.timeout.high_qc_round, message.timeout.signature)
            for index, message in sorted(rows.items())
        )
        cabal.tcs[round_] = TC(highest.epoch, round_, entries, highest)
        self._enter(round_ + 1)

    def _leads(self, round_: int) -> "HalfSplitter | None":
        return self.cabal.members.get(self.leaders.index(round_))

    # What they do with it.

    def _enter(self, round_: int) -> None:
        """On the first news of a round, propose in it if one of them leads."""
        leader = self._leads(round_)
        if leader is None or leader.replica is None or (round_, "first") in self.cabal.tried:
            return
        self.cabal.tried.add((round_, "first"))
        rng, world = self.world.rng, self.world
        if world.healed:
            leader._propose(round_, self._others(), rng.randrange(1 << 16))
            return
        plan = rng.random()
        others = self._others()
        rng.shuffle(others)
        if self._leads(round_ - 1) is not None and self._hidden(round_ - 1):
            # The certificate that only they have is for those who will have given up on this round: see `_reveal`.
            return
        if plan < 0.35 or self._leads(round_ + 1) is not None:
            self._narrow(leader, round_, others)
        elif plan < 0.7:
            half = len(others) // 2
            leader._propose(round_, others[:half], 1)
            leader._propose(round_, others[half:], 2, oldest=rng.random() < 0.5)
        # Else silence: `_reveal` comes when some have given up.

    def _narrow(self, leader: "HalfSplitter", round_: int, others: list[int]) -> None:
        """Propose to so few that only with the conspirators' votes a certificate can be made of it."""
        validators = self.world.validators
        stake = sum(validators.stake_at(index) for index in self.cabal.members)
        chosen: list[int] = []
        for slot in others:
            if validators.is_quorum(stake):
                break
            index = self.world.nodes[slot].key_index
            if index is not None:
                chosen.append(slot)
                stake += validators.stake_at(index)
        leader._propose(round_, chosen, 1)

    def _reveal(self, round_: int) -> None:
        """Propose to those who gave up on a round before all have, on the best certificate, with the others' votes."""
        leader = self._leads(round_)
        gone = self.cabal.timeouts[round_]
        validators = self.world.validators
        if (
            leader is None
            or leader.replica is None
            or (round_, "late") in self.cabal.tried
            or self.world.healed
        ):
            return
        mine = sum(validators.stake_at(index) for index in self.cabal.members)
        if not validators.is_quorum(mine + sum(validators.stake_at(index) for index in gone)):
            return
        self.cabal.tried.add((round_, "late"))
        slots = [slot for index in gone for slot in self.world.slots(self.world.keys[index])]
        block = leader._propose(round_, slots, 3)
        if block is None:
            return
        self.world.counts["late reveals"] += 1
        for member in self.cabal.members.values():
            for slot in slots:
                self.world.transmit(member.slot, slot, member.vote_for(block))

    def _hidden(self, round_: int) -> bool:
        return any(qc.round == round_ for qc in self.cabal.qcs.values())

    def _others(self) -> list[int]:
        mine = {member.slot for member in self.cabal.members.values()}
        return [node.slot for node in self.world.nodes if node.slot not in mine]

    def _propose(self, round_: int, slots: list[int], salt: int, *, oldest: bool = False) -> Block | None:
        """Build a block on the highest certificate that can be extended, or with `oldest` on the lowest; send it to some."""
        tc = self.cabal.tcs.get(round_ - 1)
        usable = [
            qc
            for qc in self.cabal.qcs.values()
            if qc.round < round_
            and (qc.round + 1 == round_ or (tc is not None and qc.round >= tc.max_high_qc_round))
            and (qc.round == 0 or qc.block_id in self.cabal.blocks)
        ]
        if not usable:
            return None
        pick = min if oldest else max
        parent_qc = pick(usable, key=lambda qc: qc.round)
        header = self._header(round_, parent_qc, salt)
        if header is None:
            return None
        message = proposal_message(header.chain_id, header.epoch, header.round, self.world.id_of(header))
        block = Block(header, parent_qc, None if parent_qc.round + 1 == round_ else tc, self.sign(message))
        self._know_block(block)
        self.world.counts["crafted proposals"] += 1
        for slot in slots:
            self.world.transmit(self.slot, slot, ProposalMessage(block, None))
        return block

    def _header(self, round_: int, qc: QC, salt: int) -> Header | None:
        """A header that follows its parent: same claims about the ledger, no payload, the next reveal of its proposer."""
        world, reveals = self.world, 1
        parent = world.genesis if qc.round == 0 else self.cabal.blocks[qc.block_id]
        ancestor = parent
        while ancestor.height > world.genesis.height:
            reveals += ancestor.header.proposer == self.key
            if ancestor.header.parent == world.genesis.id:
                break
            known = self.cabal.blocks.get(ancestor.header.parent)
            if known is None:
                return None
            ancestor = known
        preimage = world.beacons[self.key_index or 0].preimage(reveals)
        if preimage is None:
            return None
        above = parent.header
        return Header(
            chain_id=above.chain_id,
            epoch=world.genesis.header.epoch,
            round=round_,
            height=above.height + 1,
            parent=parent.id,
            proposer=self.key,
            timestamp_ms=max(world.clock(self.slot), above.timestamp_ms + 1) + salt % 7,
            payload=(),
            beacon_reveal=preimage,
            executed_height=above.executed_height,
            state_digest=above.state_digest,
            receipts_accumulator=above.receipts_accumulator,
            snapshot_root=above.snapshot_root,
        )
