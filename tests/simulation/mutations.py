"""Every rule of the protocol, broken once: literal edits of single places in `consensus/`."""

from tests.simulation.mutant import Mutant
from tests.simulation.mutations_checks import CHECKS

_SAFETY = "test_safety_rules.py"
_VERIFY = "test_verify.py"

SIGNING = (
    Mutant(
        "commit vote after timeout",
        "safety.py",
        "self._require(qc.round > record.highest_timeout,",
        "self._require(True,",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "crash forgets a vote",
        "safety.py",
        'last_voted=fields.uint(items[2], "last voted")',
        "last_voted=0",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "crash forgets a timeout",
        "safety.py",
        'highest_timeout=fields.uint(items[4], "highest timeout")',
        "highest_timeout=0",
        _SAFETY,
    ),
    Mutant("crash forgets a lock", "safety.py", 'lock=fields.uint(items[3], "lock")', "lock=0", _SAFETY),
    Mutant(
        "crash forgets a proposal",
        "safety.py",
        'last_proposed=fields.uint(items[5], "last proposed")',
        "last_proposed=0",
        _SAFETY,
    ),
    Mutant(
        "commit vote without lock",
        "safety.py",
        "self.record = replace(record, lock=max(record.lock, qc.round), last_commit_vote=vote)",
        "self.record = replace(record, last_commit_vote=vote)",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "commit votes twice in a round",
        "safety.py",
        "self._require(last is None or qc.round > last.round,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "vote without lock",
        "safety.py",
        "lock=max(record.lock, qc.round), last_vote=vote",
        "last_vote=vote",
        _SAFETY,
    ),
    Mutant(
        "no lock check",
        "safety.py",
        "self._require(high_qc.round >= record.lock,",
        "self._require(True,",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "timeout does not raise last_voted",
        "safety.py",
        "last_voted=max(record.last_voted, round_),",
        "",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "timeout below the last vote",
        "safety.py",
        "self._require(round_ >= record.last_voted,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "two timeouts in a round",
        "safety.py",
        "self._require(round_ > record.highest_timeout,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "timeout of a certified round",
        "safety.py",
        "self._require(round_ > high_qc.round,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "timeout of a round that was not reached",
        "safety.py",
        "self._require(last_tc is not None and last_tc.round + 1 == round_,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "vote ignores the TC's high round",
        "safety.py",
        "self._require(qc.round >= tc.max_high_qc_round,",
        "self._require(True,",
        _SAFETY,
        named=True,
    ),
    Mutant(
        "votes twice in a round",
        "safety.py",
        "self._require(header.round > record.last_voted,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "vote across rounds without a TC",
        "safety.py",
        "self._require(tc is not None and tc.round + 1 == header.round,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "proposes twice in a round",
        "safety.py",
        "self._require(header.round > record.last_proposed,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "a record of a later epoch is taken for fresh",
        "safety.py",
        "record.epoch < context.epoch",
        "record.epoch != context.epoch",
    ),
)

CERTIFICATES = (
    Mutant(
        "TC need not carry its highest QC",
        "verify.py",
        "if tc.high_qc.round != tc.max_high_qc_round or tc.high_qc.round >= tc.round:",
        "if tc.high_qc.round >= tc.round:",
        _VERIFY,
    ),
    Mutant(
        "non-consecutive two-chain",
        "certificates.py",
        "if node.block.round == parent.block.round + 1:",
        "if True:",
        "test_replica.py",
        named=True,
    ),
    Mutant(
        "non-consecutive two-chain proof",
        "verify.py",
        "if proof.child_qc.round != proof.qc.round + 1:",
        "if False:",
        _VERIFY,
    ),
    Mutant(
        "duplicate signers count", "verify.py", "if not previous < index <", "if not 0 <= index <", _VERIFY
    ),
    Mutant(
        "half of the stake is a quorum",
        "validators.py",
        "return 3 * stake > 2 * self.total_stake",
        "return 2 * stake >= self.total_stake",
    ),
    Mutant(
        "two thirds are a quorum without more",
        "validators.py",
        "return 3 * stake > 2 * self.total_stake",
        "return 3 * stake >= 2 * self.total_stake",
    ),
    Mutant(
        "one signature for votes and commit votes",
        "verify.py",
        'return digest("commit-vote", encode((epoch, round_, block_id, height)), chain_id)',
        'return digest("vote", encode((epoch, round_, block_id, bytes(32), height)), chain_id)',
        "test_codec.py",
    ),
    Mutant(
        "signatures of other epochs count",
        "verify.py",
        '    if epoch != context.epoch:\n        raise InvalidSignature("signed for another epoch")\n',
        "",
        _VERIFY,
    ),
    Mutant(
        "certificates of other epochs count",
        "verify.py",
        '    if epoch != context.epoch:\n        raise InvalidCertificate("certificate of another epoch")\n',
        "",
        _VERIFY,
    ),
    Mutant(
        "QC signatures are not checked",
        "verify.py",
        "        if not context.verifier(validators.validators[index].id, message, signature):\n",
        "        if False:\n",
        _VERIFY,
    ),
)

LIVENESS = (
    Mutant(
        "first guard: a late QC clears the TC",
        "certificates.py",
        "if core.last_tc is not None and qc.round >= core.last_tc.round:",
        "if core.last_tc is not None:",
        "test_replica_rounds.py",
        named=True,
    ),
    Mutant(
        "second guard: a replayed TC replaces the TC",
        "certificates.py",
        "    if tc.round < core.round:\n        return\n",
        "",
        "test_replica_rounds.py",
        named=True,
    ),
    Mutant(
        "nobody joins a timeout",
        "timeouts.py",
        "validators.is_one_honest(stake):",
        "False:",
        "test_replica_rounds.py",
    ),
    Mutant(
        "no help for laggards",
        "timeouts.py",
        "        help_laggard(core, timeout)\n",
        "        pass\n",
        "test_replica_rounds.py",
    ),
    Mutant(
        "round timeouts never grow",
        "pacemaker.py",
        "exponent = min(core.rounds_since_commit(), 64)",
        "exponent = 0",
        "test_replica_rounds.py",
    ),
    Mutant(
        "a timeout is not repeated",
        "pacemaker.py",
        "        return core.timed_out_ms + min(patience, core.config.timeout_repeat_ms_max)\n",
        "        return None\n",
        "test_replica_rounds.py",
    ),
    Mutant(
        "a missing ancestor is not fetched",
        "proposals.py",
        "    core.orphans[block.id] = (block, core.now_ms)\n    want_block(core, block.qc, source)\n",
        "    core.orphans[block.id] = (block, core.now_ms)\n",
        "test_replica.py",
    ),
)

BLOCKS = (
    Mutant(
        "anybody may propose",
        "rules.py",
        "_require(header.proposer == leader,",
        "_require(True,",
        "test_verify.py",
    ),
    Mutant(
        "a block need not name its QC's block as parent",
        "rules.py",
        "_require(header.parent == qc.block_id,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "a proposal's TC may be of any round",
        "rules.py",
        "_require(tc.round + 1 == header.round,",
        "_require(True,",
        "test_replica_rounds.py",
    ),
    Mutant(
        "proposal ignores the TC's high round",
        "rules.py",
        "_require(qc.round >= tc.max_high_qc_round,",
        "_require(True,",
        "test_replica_rounds.py",
    ),
    Mutant(
        "height is free",
        "rules.py",
        "_require(header.height == above.height + 1,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "timestamps may fall",
        "rules.py",
        "_require(header.timestamp_ms > above.timestamp_ms,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "clocks do not matter",
        "voting.py",
        "not node.timely\n        or node.rejected",
        "node.rejected",
        "test_replica.py",
    ),
    Mutant(
        "beacon reveal unchecked",
        "rules.py",
        "_require(reveal_hash(header.beacon_reveal) == last,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "executed height may fall",
        "rules.py",
        "_require(header.executed_height >= above.executed_height,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "payload while execution lags",
        "rules.py",
        "_require(not header.payload or lag <= config.lag_max,",
        "_require(True,",
        "test_replica.py",
    ),
    Mutant(
        "payload does not gate the vote",
        "voting.py",
        "    if missing:\n        return False\n",
        "",
        "test_replica.py",
    ),
    Mutant(
        "a batch may be ordered twice", "voting.py", "return named.isdisjoint(header.payload)", "return True"
    ),
    Mutant(
        "execution is not compared",
        "voting.py",
        "return claim is Claim.AGREES",
        "return True",
        "test_replica.py",
    ),
    Mutant(
        "sends before it persists",
        "outbox.py",
        "effects: list[Effect] = [] if persist is None else [persist]\n        effects.extend(self.sends)",
        "effects: list[Effect] = [*self.sends]\n        effects.extend([] if persist is None else [persist])",
        "test_replica.py",
    ),
    Mutant("commits newest first", "tree.py", "        path.reverse()\n", "", "test_replica.py"),
)

EPOCHS = (
    Mutant(
        "a descendant of the boundary is delivered",
        "certificates.py",
        "path = whole if at is None else whole[: at + 1]",
        "path = whole",
    ),
    Mutant(
        "descendants get commit votes",
        "voting.py",
        "if node.past_boundary or (core.collects and not _spreads(core)):",
        "if core.collects and not _spreads(core):",
    ),
    Mutant(
        "descendants may carry payload",
        "rules.py",
        'not parent.closes or (not header.payload and header.next_validators_hash == b""),',
        "True,",
    ),
    Mutant(
        "the frozen set need not be named",
        "execution.py",
        "return Claim.AGREES if owed(own, node.past_boundary) == claimed(node.block.header) else Claim.DIFFERS",
        "mine, said = owed(own, node.past_boundary), claimed(node.block.header)\n"
        '    mine, said = (replace(row, next_validators_hash=b"") for row in (mine, said))\n'
        "    return Claim.AGREES if mine == said else Claim.DIFFERS",
    ),
    Mutant(
        "an ended epoch goes on",
        "certificates.py",
        "    if handover is not None:\n        end_epoch(core, handover)\n",
        "",
    ),
    Mutant(
        "a hand-over of another chain of headers",
        "verify.py",
        "if (block_id, round_) != (header_id(last), last.round):",
        "if False:",
    ),
    Mutant(
        "a hand-over's headers need not link",
        "verify.py",
        "        header.parent != header_id(parent)\n",
        "        False\n",
    ),
    Mutant(
        "a new anchor goes on with old reveals",
        "epochs.py",
        "if index is not None and old_set.validators[index].beacon_anchor == validator.beacon_anchor:",
        "if index is not None:",
    ),
)

COLLECTORS = (
    Mutant(
        "a collector keeps a certificate to itself",
        "voting.py",
        "return core.collected == core.high_qc.round and not proposes_soon(core)",
        "return False",
    ),
    Mutant(
        "a collector's votes go to the leader of the same round",
        "voting.py",
        "collector = core.leader(vote.round + 1)",
        "collector = core.leader(vote.round)",
    ),
)

MUTANTS = (*SIGNING, *CERTIFICATES, *LIVENESS, *BLOCKS, *EPOCHS, *COLLECTORS, *CHECKS)
