"""The rules of consensus, range sync and the mempool, held by the executable model and by state machines."""

from tests.hardening.removal import Removal

SIGNERS = "tests/model/test_model_signers.py::test_real_signers_grant_and_refuse_what_the_model_does"
NODES = "tests/model/test_model_nodes.py::test_replicas_do_what_the_model_does_and_recover"
POOL = "tests/property/test_mempool_machine.py"
SYNC = "tests/property/test_sync_machine.py::"

REMOVALS: tuple[Removal, ...] = (
    # --- the signer, beside the model's rules ---
    Removal(
        "a second vote in a round",
        "consensus/safety.py",
        "self._require(header.round > record.last_voted, ",
        "self._require(header.round > 0, ",
        (SIGNERS,),
    ),
    Removal(
        "a vote across skipped rounds on a TC of another round",
        "consensus/safety.py",
        'self._require(tc is not None and tc.round + 1 == header.round, "skips rounds without a TC")',
        'self._require(tc is not None, "skips rounds without a TC")',
        (SIGNERS,),
    ),
    Removal(
        "a vote for less than the TC's highest QC",
        "consensus/safety.py",
        "self._require(qc.round >= tc.max_high_qc_round, ",
        "self._require(qc.round >= 0, ",
        (SIGNERS,),
    ),
    Removal(
        "a vote does not lock",
        "consensus/safety.py",
        "record, last_voted=header.round, lock=max(record.lock, qc.round), last_vote=vote",
        "record, last_voted=header.round, last_vote=vote",
        (SIGNERS, NODES),
    ),
    Removal(
        "a commit vote after a timeout",
        "consensus/safety.py",
        "self._require(qc.round > record.highest_timeout, ",
        "self._require(qc.round > 0, ",
        (SIGNERS, NODES),
    ),
    Removal(
        "a commit vote does not lock",
        "consensus/safety.py",
        "replace(record, lock=max(record.lock, qc.round), last_commit_vote=vote)",
        "replace(record, last_commit_vote=vote)",
        (SIGNERS, NODES),
    ),
    Removal(
        "a timeout that hides the lock",
        "consensus/safety.py",
        "self._require(high_qc.round >= record.lock, ",
        "self._require(high_qc.round >= 0, ",
        (SIGNERS,),
    ),
    Removal(
        "a timeout of a round that nothing led to",
        "consensus/safety.py",
        'self._require(last_tc is not None and last_tc.round + 1 == round_, "round was not reached")',
        'self._require(round_ > 0, "round was not reached")',
        (SIGNERS,),
    ),
    Removal(
        "a vote in a round that was timed out",
        "consensus/safety.py",
        "last_voted=max(record.last_voted, round_),",
        "last_voted=record.last_voted,",
        (SIGNERS, NODES),
    ),
    Removal(
        "a timeout is forgotten",
        "consensus/safety.py",
        "highest_timeout=max(record.highest_timeout, round_),",
        "highest_timeout=record.highest_timeout,",
        (SIGNERS, NODES),
    ),
    # --- the replica, beside the model's node ---
    Removal(
        "a late QC removes the TC that permits the round",
        "consensus/certificates.py",
        "if core.last_tc is not None and qc.round >= core.last_tc.round:",
        "if core.last_tc is not None:",
        (NODES,),
    ),
    Removal(
        "a replayed TC replaces the one that permits the round",
        "consensus/certificates.py",
        "    if tc.round < core.round:\n        return\n",
        "",
        (NODES,),
    ),
    Removal(
        "a two-chain with a gap commits",
        "consensus/certificates.py",
        "    if node.block.round == parent.block.round + 1:",
        "    if node.block.round > parent.block.round:",
        (NODES,),
    ),
    Removal(
        "nobody joins a timeout",
        "consensus/timeouts.py",
        "    if core.timed_out_ms is None and core.safety is not None and validators.is_one_honest(stake):",
        "    if core.timed_out_ms is None and core.safety is not None and validators.is_quorum(stake):",
        (NODES,),
    ),
    Removal(
        "a restart forgets that the round was entered by a TC",
        "consensus/sync.py",
        "    core.round = max(core.high_qc.round, passed) + 1",
        "    core.round = core.high_qc.round + 1",
        (NODES,),
    ),
    # --- the mempool, beside a dictionary ---
    Removal(
        "a replacement that pays no more",
        "node/mempool.py",
        "            if transaction.fee < fee_min:",
        "            if transaction.fee < 0:",
        (POOL,),
    ),
    Removal(
        "more bytes wait than the pool may hold",
        "node/mempool.py",
        "        if self._bytes + size_bytes > self.limits.bytes_max:",
        "        if self._bytes < 0:",
        (POOL,),
    ),
    Removal(
        "a leader proposes again what is proposed already",
        "node/mempool.py",
        "        if pooled.tx_hash not in already_proposed:\n            if not includable",
        "        if pooled.tx_hash:\n            if not includable",
        (POOL,),
    ),
    # --- range sync, among liars ---
    Removal(
        "a range is believed without a quorum's proof of its end",
        "node/sync.py",
        "        if verify_commit_proof(context, proof)[0] != parent:",
        "        if not proof:",
        (SYNC + "test_every_manner_alone_leaves_only_what_is_proven",),
    ),
    Removal(
        "a batch is stored that no block names",
        "node/sync.py",
        "store_batch(self._store, batch, self._chain_id, expected=name)",
        "store_batch(self._store, batch, self._chain_id)",
        (SYNC + "test_every_manner_alone_leaves_only_what_is_proven",),
    ),
    Removal(
        "an honest peer is blamed for a range of an epoch that ended meanwhile",
        "node/sync.py",
        "        epoch = blocks[0].header.epoch\n        if epoch >",
        "        epoch = self._epochs.current.number\n        if blocks[0].header.epoch >",
        (SYNC + "test_a_range_of_an_epoch_that_ended_meanwhile_costs_nobody_anything",),
    ),
)
