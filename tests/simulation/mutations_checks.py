"""More rules broken once: what a signer and a replica check before they believe, and who is accused of what."""

from tests.simulation.mutant import Mutant

_SAFETY = "test_safety_rules.py"
_VERIFY = "test_verify.py"
_BELIEF = "test_belief.py"
_EVIDENCE = "test_evidence.py"
_WATCH = "test_watch.py"

SIGNERS_CHECKS = (
    Mutant(
        "a proposal of another epoch is voted for",
        "safety.py",
        'self._require(header.epoch == record.epoch, "proposal of another epoch")\n        self._require(header.round >',
        "self._require(header.round >",
        _SAFETY,
    ),
    Mutant(
        "a vote for a block whose parent is not the QC's",
        "safety.py",
        "self._require(header.parent == qc.block_id and qc.round < header.round,",
        "self._require(True,",
        _BELIEF,
    ),
    Mutant(
        "the signer believes a proposal's QC",
        "safety.py",
        "        verify_qc(self._context, qc)\n        if header.round",
        "        if header.round",
        _SAFETY,
    ),
    Mutant(
        "the signer believes a proposal's TC",
        "safety.py",
        "                verify_tc(self._context, tc)\n",
        "                pass\n",
        _BELIEF,
    ),
    Mutant(
        "a commit vote under a QC of another epoch",
        "safety.py",
        'self._require(qc.epoch == record.epoch, "QC of another epoch")',
        'self._require(True, "QC of another epoch")',
        _BELIEF,
    ),
    Mutant(
        "a commit vote for a block that its QC does not certify",
        "safety.py",
        "self._require(qc.block_id == block_id and qc.round == header.round,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "the signer believes a commit vote's QC",
        "safety.py",
        "        verify_qc(self._context, qc)\n        message = commit_vote_message",
        "        message = commit_vote_message",
        _BELIEF,
    ),
    Mutant(
        "a timeout under a QC of another epoch",
        "safety.py",
        "self._require(high_qc.epoch == record.epoch,",
        "self._require(True,",
        _SAFETY,
    ),
    Mutant(
        "the signer believes a timeout's QC",
        "safety.py",
        "        verify_qc(self._context, high_qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "the signer believes a timeout's TC",
        "safety.py",
        "                verify_tc(self._context, last_tc)\n",
        "                pass\n",
        _BELIEF,
    ),
    Mutant(
        "a proposal of another epoch is signed",
        "safety.py",
        'self._require(header.epoch == record.epoch, "proposal of another epoch")\n        self._require(header.proposer',
        "self._require(header.proposer",
        _BELIEF,
    ),
    Mutant(
        "proposes in another's name",
        "safety.py",
        "self._require(header.proposer == self.public,",
        "self._require(True,",
        _SAFETY,
    ),
)

BELIEVING = (
    Mutant(
        "votes need no signature",
        "verify.py",
        "    if not context.verifier(author, message, signature):\n",
        "    if False:\n",
        _VERIFY,
    ),
    Mutant(
        "a QC of round 0 is the genesis QC",
        "verify.py",
        "        if qc != context.genesis_qc:\n",
        "        if False:\n",
        _VERIFY,
    ),
    Mutant(
        "a QC's parent may be as new as its block",
        "verify.py",
        "if qc.parent_round >= qc.round:",
        "if False:",
        _BELIEF,
    ),
    Mutant(
        "a TC's highest QC is believed",
        "verify.py",
        "    verify_qc(context, tc.high_qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a TC's highest QC may be of its own round",
        "verify.py",
        "if tc.high_qc.round != tc.max_high_qc_round or tc.high_qc.round >= tc.round:",
        "if tc.high_qc.round != tc.max_high_qc_round:",
        _VERIFY,
    ),
    Mutant(
        "a two-chain of strangers",
        "verify.py",
        "if (proof.child_qc.parent_id, proof.child_qc.parent_round) != (proof.qc.block_id, proof.qc.round):",
        "if False:",
        _VERIFY,
    ),
    Mutant(
        "a two-chain's lower QC is believed",
        "verify.py",
        "    verify_qc(context, proof.qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a two-chain's upper QC is believed",
        "verify.py",
        "    verify_qc(context, proof.child_qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a lone TC is believed",
        "timeouts.py",
        "        verify_tc(core.context, tc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a lone CC is believed",
        "timeouts.py",
        "        verify_cc(core.context, cc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a lone QC is believed",
        "timeouts.py",
        "        verify_qc(core.context, info.high_qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a timeout's QC is believed",
        "timeouts.py",
        "    verify_qc(core.context, qc)\n",
        "",
        _BELIEF,
    ),
    Mutant(
        "a timeout need not carry the QC it signed for",
        "timeouts.py",
        "if qc.round != timeout.high_qc_round or qc.round >= timeout.round:",
        "if qc.round >= timeout.round:",
        _BELIEF,
    ),
    Mutant(
        "a commit vote's QC is believed",
        "voting.py",
        "        verify_qc(core.context, qc)\n        apply_qc(core, qc, sender)\n",
        "        apply_qc(core, qc, sender)\n",
        _BELIEF,
    ),
    Mutant(
        "a commit vote may carry another block's QC",
        "voting.py",
        "if (qc.round, qc.block_id) != (vote.round, vote.block_id):",
        "if False:",
        _BELIEF,
    ),
    Mutant(
        "a range's blocks need not link",
        "sync.py",
        "if block.header.parent != parent.id or block.height != parent.height + 1:",
        "if False:",
        _BELIEF,
    ),
    Mutant(
        "a range is proven by another block's proof",
        "sync.py",
        "    if block_id != parent.id:\n",
        "    if False:\n",
        _BELIEF,
    ),
    Mutant(
        "a range's blocks are believed",
        "sync.py",
        "        verify_block(core.context, core.config, core.leaders, block)\n",
        "",
        _BELIEF,
    ),
)

HEADERS = (
    *(
        Mutant(name, "rules.py", f"_require({condition},", "_require(True,", _BELIEF)
        for name, condition in (
            ("a block of another chain", "header.chain_id == context.chain_id"),
            ("a block of another epoch", "header.epoch == context.epoch"),
            ("a block older than its QC", "header.round > qc.round"),
            ("a block claims its own execution", "header.executed_height < header.height"),
            ("any number of batches in a block", "len(header.payload) <= config.payload_digests_max"),
            ("a block skips rounds without a TC", "(tc is None) == (qc.round + 1 == header.round)"),
            ("a block's QC may be of any round", "block.qc.round == above.round"),
        )
    ),
    Mutant(
        "anybody may sign a block", "rules.py", "    verify_proposal_signature(context, block)\n", "", _BELIEF
    ),
    Mutant("a block's QC is believed", "rules.py", "    verify_qc(context, qc)\n", "", _BELIEF),
    Mutant(
        "a block's TC is believed", "rules.py", "        verify_tc(context, tc)\n", "        pass\n", _BELIEF
    ),
)

EVIDENCE = (
    Mutant(
        "evidence needs no signature",
        "evidence.py",
        "if not crypto.verify(author, _message(chain_id, statement), statement.signature):",
        "if False:",
        _EVIDENCE,
    ),
    Mutant(
        "one statement twice is evidence",
        "evidence.py",
        "return ordered and _content(first) != _content(second)",
        "return ordered",
        _EVIDENCE,
    ),
    Mutant(
        "a timeout before the commit vote is evidence",
        "evidence.py",
        "return timeout.round >= first.round > timeout.high_qc_round",
        "return first.round > timeout.high_qc_round",
        _EVIDENCE,
    ),
    Mutant(
        "evidence of two epochs",
        "evidence.py",
        "if (author, epoch) != _who_and_when(second)[:2]:",
        "if author != _who_and_when(second)[0]:",
        _EVIDENCE,
    ),
    Mutant(
        "evidence of another chain",
        "evidence.py",
        "if isinstance(statement, SignedHeader) and statement.header.chain_id != chain_id:",
        "if False:",
        _EVIDENCE,
    ),
    Mutant(
        "hidden locks go unnoticed",
        "timeouts.py",
        "    watch_timeout(core, author, timeout)\n",
        "",
        _EVIDENCE,
    ),
    Mutant(
        "votes after a timeout go unnoticed",
        "voting.py",
        '        contradicts(core, earlier, vote, "two votes in a round")\n        return\n    watch_vote(core, author, vote)\n',
        '        contradicts(core, earlier, vote, "two votes in a round")\n        return\n',
        _EVIDENCE,
    ),
    Mutant(
        "commit votes after a timeout go unnoticed",
        "voting.py",
        '        contradicts(core, earlier, vote, "two commit votes in a round")\n        return\n'
        "    watch_vote(core, author, vote)\n",
        '        contradicts(core, earlier, vote, "two commit votes in a round")\n        return\n',
        _WATCH,
    ),
    Mutant(
        "a second proposal goes unnoticed",
        "proposals.py",
        "    two_proposals(core, earlier, block)\n",
        "",
        "test_replica.py",
    ),
    Mutant(
        "a second proposal that was fetched goes unnoticed",
        "proposals.py",
        "            two_proposals(core, proposed, block)\n",
        "            pass\n",
        _WATCH,
    ),
    Mutant(
        "two votes go unnoticed",
        "voting.py",
        '        contradicts(core, earlier, vote, "two votes in a round")\n',
        "",
        "test_replica.py",
    ),
    Mutant(
        "two commit votes go unnoticed",
        "voting.py",
        '        contradicts(core, earlier, vote, "two commit votes in a round")\n',
        "",
        _WATCH,
    ),
    Mutant(
        "two timeouts go unnoticed",
        "timeouts.py",
        '        contradicts(core, earlier.timeout, timeout, "two timeouts in a round")\n',
        "        pass\n",
        _WATCH,
    ),
    Mutant("votes in a QC go unwatched", "certificates.py", "    watch_qc(core, qc)\n", "", _WATCH),
    Mutant("commit votes in a CC go unwatched", "certificates.py", "    watch_cc(core, cc)\n", "", _WATCH),
    Mutant("timeouts in a TC go unwatched", "certificates.py", "    watch_tc(core, tc)\n", "", _WATCH),
    Mutant(
        "an offence is reported each time it is met",
        "watch.py",
        "        remember(core.accused, key, ACCUSED_MAX)\n",
        "",
        _WATCH,
    ),
)

CHECKS = (*SIGNERS_CHECKS, *BELIEVING, *HEADERS, *EVIDENCE)
