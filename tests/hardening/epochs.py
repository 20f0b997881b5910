"""Epochs, evidence and leaders: what a hand-over rests on, and what must not be possible across it."""

from tests.hardening.removal import Removal

_RULES = "tests/unit/consensus/test_epoch_rules.py"
_HANDOVER = "tests/unit/consensus/test_handover.py"
_CHANGE = "tests/unit/consensus/test_epoch_change.py"
_EVIDENCE = "tests/unit/consensus/test_evidence.py"
_FANOUT = "tests/unit/consensus/test_fanout_timeouts.py"
_LEADERS = "tests/unit/consensus/test_leaders_beacon.py"
_SAFETY = "tests/unit/consensus/test_safety_rules.py"

_SILENT = f"{_RULES}::test_nothing_is_signed_sent_delivered_or_timed_after_the_end"
_CLAIMS = f"{_RULES}::test_a_claim_that_leaves_out_or_changes_what_our_ledger_says_gets_no_vote"
_COMPARED = "owed(own, node.past_boundary) == claimed(node.block.header)"
_DESCENDANT = f"{_HANDOVER}::test_each_rule_of_a_descendant_is_checked_with_a_certificate_to_match"

REMOVALS: tuple[Removal, ...] = (
    # --- the boundary ---
    Removal(
        "a boundary that names another set than the ledger froze",
        "consensus/execution.py",
        _COMPARED,
        "replace(own, next_validators_hash=node.block.header.next_validators_hash) == claimed(node.block.header)",
        (_CLAIMS, f"{_RULES}::test_a_boundary_before_the_ledger_froze_anything_gets_no_vote"),
    ),
    Removal(
        "a snapshot root that nobody compares",
        "consensus/execution.py",
        _COMPARED,
        "replace(own, snapshot_root=node.block.header.snapshot_root) == claimed(node.block.header)",
        (_CLAIMS,),
    ),
    Removal(
        "payload or a second boundary past the boundary",
        "consensus/rules.py",
        "        not parent.closes or (",
        "        True or (",
        (f"{_RULES}::test_a_descendant_that_is_not_empty_never_enters",),
    ),
    Removal(
        "a commit vote past the boundary",
        "consensus/voting.py",
        "if node.past_boundary or (",
        "if (",
        (f"{_RULES}::test_descendants_get_votes_and_no_commit_votes",),
    ),
    Removal(
        "a delivery past the boundary",
        "consensus/certificates.py",
        "    path = whole if at is None else whole[: at + 1]\n",
        "    path = whole\n",
        (f"{_RULES}::test_committing_a_descendant_delivers_nothing_past_the_boundary",),
    ),
    Removal(
        "an epoch that ends a second time by results of the one before",
        "consensus/execution.py",
        "    result = owed(result, result.height < core.genesis.height)\n",
        "",
        (f"{_RULES}::test_results_from_before_the_epoch_do_not_end_it_again",),
    ),
    # --- after the end ---
    Removal(
        "signatures after the end of the epoch",
        "consensus/replica.py",
        "acted = (core.ended is None and act(core)) or acted",
        "acted = act(core) or acted",
        (f"{_RULES}::test_nothing_is_signed_in_the_very_step_that_ends_the_epoch",),
    ),
    Removal(
        "inputs that still work on an epoch that is over",
        "consensus/replica.py",
        "            if core.ended is None or isinstance(event, (MessageReceived, Executed)):\n",
        "            if True:\n",
        (_SILENT,),
    ),
    Removal(
        "an end that is forgotten in a restart",
        "consensus/sync.py",
        "    if is_boundary(committed.header) and committed.header.epoch == epoch and core.proof is not None:\n",
        "    if False:\n",
        (f"{_RULES}::test_an_ended_replica_says_so_again_after_a_restart_and_stays_silent",),
    ),
    Removal(
        "a late result that contradicts the committed boundary",
        "consensus/replica.py",
        "isinstance(event, (MessageReceived, Executed)):",
        "isinstance(event, MessageReceived):",
        (f"{_RULES}::test_a_late_result_that_contradicts_what_was_committed_is_still_noticed",),
    ),
    # --- the next epoch ---
    Removal(
        "safety data of the epoch before in the next one",
        "consensus/safety.py",
        "        fresh = record is None or record.epoch < context.epoch\n",
        "        fresh = record is None\n",
        (
            f"{_SAFETY}::test_a_record_of_an_earlier_epoch_makes_room_for_a_fresh_one",
            f"{_RULES}::test_rounds_and_safety_data_begin_anew_and_are_stored_before_the_first_signature",
        ),
    ),
    Removal(
        "a signer whose record is ahead of its replica's epoch",
        "consensus/safety.py",
        "        if self.record.epoch != context.epoch:\n",
        "        if False:\n",
        (f"{_RULES}::test_a_replica_of_an_epoch_that_is_over_gets_no_signer",),
    ),
    Removal(
        "an epoch that starts with another set than the boundary named",
        "consensus/epochs.py",
        "    if next_set.epoch != header.epoch + 1 or next_set.hash != header.next_validators_hash:\n",
        "    if False:\n",
        (f"{_HANDOVER}::test_an_epoch_starts_only_where_one_ended_and_with_the_set_it_named",),
    ),
    Removal(
        "an epoch that starts on another block than its boundary",
        "consensus/sync.py",
        "    if committed.id not in (genesis.id, genesis.header.parent):\n",
        "    if False:\n",
        (f"{_RULES}::test_an_epoch_begins_on_its_own_boundary_and_with_its_reveals",),
    ),
    Removal(
        "reveals of a chain that was anchored anew",
        "consensus/epochs.py",
        "if index is not None and old_set.validators[index].beacon_anchor == validator.beacon_anchor:",
        "if index is not None:",
        (
            f"{_HANDOVER}::test_reveals_go_on_for_who_stays_and_begin_anew_for_who_is_new_or_has_anchored_again",
        ),
    ),
    # --- the hand-over ---
    Removal(
        "a hand-over whose headers do not link up",
        "consensus/verify.py",
        "if (\n        header.parent != header_id(parent)\n        or",
        "if (\n        False\n        or",
        (_DESCENDANT,),
    ),
    Removal(
        "a hand-over through blocks that are not empty",
        "consensus/verify.py",
        "    if header.payload or header.next_validators_hash:\n",
        "    if False:\n",
        (_DESCENDANT,),
    ),
    Removal(
        "a hand-over proven for another block",
        "consensus/verify.py",
        "    if (block_id, round_) != (header_id(last), last.round):\n",
        "    if False:\n",
        (
            f"{_HANDOVER}::test_no_bit_of_a_hand_over_can_be_changed",
            f"{_HANDOVER}::test_a_certificate_of_another_block_or_of_a_block_that_ends_nothing_proves_nothing",
        ),
    ),
    Removal(
        "a hand-over that ends nothing",
        "consensus/verify.py",
        "    if not is_boundary(boundary):\n",
        "    if False:\n",
        (f"{_HANDOVER}::test_a_certificate_of_another_block_or_of_a_block_that_ends_nothing_proves_nothing",),
    ),
    # --- other epochs ---
    Removal(
        "blame for a message of another epoch",
        "consensus/replica.py",
        "        if of_another_epoch(core, event):\n            return\n",
        "",
        (
            f"{_RULES}::test_a_message_of_a_later_epoch_is_no_fault_and_shows_that_we_lag",
            f"{_RULES}::test_a_message_of_an_earlier_epoch_is_no_fault_and_its_sender_is_helped_rarely",
        ),
    ),
    Removal(
        "help out of a past epoch as often as it is asked for",
        "consensus/ending.py",
        "    if helped_ms is not None and core.now_ms < helped_ms + HANDOVER_INTERVAL_MS:\n",
        "    if False:\n",
        (f"{_RULES}::test_a_message_of_an_earlier_epoch_is_no_fault_and_its_sender_is_helped_rarely",),
    ),
    Removal(
        "senders of later epochs remembered without limit",
        "consensus/ending.py",
        "        if len(core.newer) > NEWER_MAX:\n",
        "        if False:\n",
        (f"{_RULES}::test_of_many_that_speak_of_a_later_epoch_the_latest_few_are_asked",),
    ),
    Removal(
        "a two-chain that only some saw, and nobody asks for",
        "consensus/sync.py",
        "    if proposal is None or proposal.header.executed_height <= core.root.height:\n",
        "    if True:\n",
        (
            "tests/unit/consensus/test_replica.py::test_whoever_executed_what_is_not_committed_here_is_asked_for_its_proof",
            "tests/simulation/test_chances.py::test_a_certificate_shown_late_and_to_some_leaves_nobody_behind",
        ),
    ),
    Removal(
        "a range past the end of the epoch that costs its sender",
        "consensus/sync.py",
        " or any(block.header.epoch > core.context.epoch for block in blocks):",
        ":",
        (f"{_RULES}::test_a_range_that_goes_past_the_end_is_nobodys_fault",),
    ),
    Removal(
        "a laggard that cannot use a hand-over",
        "consensus/proposals.py",
        "    if core.handover is not None and core.handover[0] == block.id:\n",
        "    if False:\n",
        (f"{_RULES}::test_a_hand_over_makes_a_laggard_fetch_what_it_lacks_until_the_boundary_is_here",),
    ),
    # --- evidence ---
    Removal(
        "evidence without signatures",
        "consensus/evidence.py",
        "        if not crypto.verify(author, _message(chain_id, statement), statement.signature):\n",
        "        if False:\n",
        (f"{_EVIDENCE}::test_evidence_has_one_form_and_needs_both_signatures_on_this_chain",),
    ),
    Removal(
        "evidence of one statement with two signatures",
        "consensus/evidence.py",
        "    return ordered and _content(first) != _content(second)\n",
        "    return ordered\n",
        (f"{_EVIDENCE}::test_words_said_twice_with_two_good_signatures_are_no_offence",),
    ),
    Removal(
        "one offence in two forms",
        "consensus/evidence.py",
        "    ordered = encode(first.to_obj()) < encode(second.to_obj())\n",
        "    ordered = True\n",
        (f"{_EVIDENCE}::test_evidence_has_one_form_and_needs_both_signatures_on_this_chain",),
    ),
    Removal(
        "evidence of two authors or two epochs",
        "consensus/evidence.py",
        "    if (author, epoch) != _who_and_when(second)[:2]:\n",
        "    if False:\n",
        (f"{_EVIDENCE}::test_statements_of_two_epochs_exclude_nothing_although_each_is_signed",),
    ),
    Removal(
        "an offence reported again with each message",
        "consensus/watch.py",
        "    if key not in core.accused:\n",
        "    if True:\n",
        (f"{_EVIDENCE}::test_a_replica_reports_a_timeout_that_hides_a_lock_once_and_with_evidence",),
    ),
    # --- leaders, collectors, timers ---
    Removal(
        "leaders drawn without their weights",
        "consensus/leaders.py",
        "accumulate(entry.leader_weight or entry.stake for entry in validators.validators)",
        "accumulate(1 for entry in validators.validators)",
        (f"{_LEADERS}::test_leaders_are_drawn_as_often_as_they_weigh_and_without_a_cycle",),
    ),
    Removal(
        "a seed or weights that the set's hash does not cover",
        "consensus/validators.py",
        "encode((self.epoch, rows, self.seed))",
        "encode((self.epoch, rows))",
        (f"{_LEADERS}::test_validator_sets_are_checked",),
    ),
    Removal(
        "a certificate that stays with its collector",
        "consensus/voting.py",
        "    return core.collected == core.high_qc.round and not proposes_soon(core)\n",
        "    return False\n",
        (
            f"{_FANOUT}::test_a_certificate_that_only_its_collector_has_goes_out_with_a_commit_vote_or_a_proposal",
            f"{_FANOUT}::test_among_collectors_a_batch_is_final_in_five_delays_and_not_at_the_next_heartbeat",
        ),
    ),
    Removal(
        "an idle chain of collectors that slows its timers",
        "consensus/certificates.py",
        "    if path[-1].block.header.payload or isinstance(proof, CommitCertificate):\n",
        "    if True:\n",
        (f"{_FANOUT}::test_an_empty_block_that_waited_for_the_next_heartbeat_does_not_slow_the_timer",),
    ),
    Removal(
        "a timer that follows one slow commit",
        "consensus/pacemaker.py",
        "    target = max(base // 2, min(base * 2, target))\n",
        "",
        (f"{_FANOUT}::test_the_base_moves_with_commits_at_most_by_two_and_never_below_its_floor",),
    ),
)
