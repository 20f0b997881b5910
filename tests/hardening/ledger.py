"""Stakes, epochs and evidence in the ledger."""

from tests.hardening.removal import Removal

STAKING = "tests/unit/node_ledger/test_ledger_staking.py::"
EPOCHS = "tests/unit/node_ledger/test_ledger_epochs.py::"
EVIDENCE = "tests/unit/node_ledger/test_ledger_evidence.py::"

REMOVALS: tuple[Removal, ...] = (
    # --- registration ---
    Removal(
        "somebody registers a consensus key that is not theirs",
        "node/ledger/staking.py",
        "    if not env.check(body.consensus_key, possession_digest(env.context.chain_id, sender), body.possession):",
        "    if not body.possession:",
        (STAKING + "test_a_key_is_registered_only_by_the_account_that_its_owner_signed_for",),
    ),
    Removal(
        "one consensus key in two registrations",
        "node/ledger/staking.py",
        "    if overlay.get(KEY_OWNER + body.consensus_key) is not None:",
        "    if not body.consensus_key:",
        (
            STAKING + "test_account_key_and_peer_are_each_in_one_registration",
            STAKING + "test_who_leaves_is_paid_out_whole_and_its_names_are_free_only_then",
        ),
    ),
    Removal(
        "one peer id in two registrations",
        "node/ledger/staking.py",
        "    if overlay.get(PEER_OWNER + body.peer_id.encode()) is not None:",
        "    if not body.peer_id:",
        (STAKING + "test_account_key_and_peer_are_each_in_one_registration",),
    ),
    Removal(
        "small stakes take every place among the candidates",
        "node/ledger/staking.py",
        "    if not standing or stake <= min(standing)[0]:",
        "    if standing:",
        (
            STAKING
            + "test_candidates_are_bounded_and_a_larger_stake_displaces_the_smallest_that_is_in_no_set",
        ),
    ),
    Removal(
        "more candidates than a record holds",
        "node/ledger/staking.py",
        "    if len(accounts) < CANDIDATES_MAX:",
        "    if accounts:",
        (
            STAKING
            + "test_candidates_are_bounded_and_a_larger_stake_displaces_the_smallest_that_is_in_no_set",
        ),
    ),
    Removal(
        "a peer id that no network can read gets into every node's set",
        "node/ledger/peers.py",
        "        if type(value) is not str or not is_peer_id(value):",
        "        if type(value) is not str:",
        (STAKING + "test_a_peer_id_that_no_network_could_read_never_gets_into_a_set",),
    ),
    # --- unbonding ---
    Removal(
        "stake is given back before it can be slashed: only one of the two windows is waited for",
        "node/ledger/epochs.py",
        "not env.due(epoch.release_height, epoch.release_ms):",
        "env.context.height < epoch.release_height:",
        (
            STAKING
            + "test_unbonded_stake_leaves_the_next_set_and_comes_back_when_both_windows_after_it_have_passed",
        ),
    ),
    Removal(
        "stake that still secures the next epoch unbonds with this one",
        "node/ledger/stakes.py",
        "        return self.number + 1 if self.frozen_height else self.number",
        "        return self.number",
        (STAKING + "test_stake_that_unbonds_after_the_freezing_still_secures_the_next_epoch",),
    ),
    Removal(
        "one account unbonds without end",
        "node/ledger/staking.py",
        "        if len(entries) >= entries_max or len(waiting)",
        "        if len(waiting)",
        (STAKING + "test_unbonding_is_bounded_for_each_account_and_leaving_always_has_room",),
    ),
    Removal(
        "an epoch pays out accounts without end",
        "node/ledger/staking.py",
        " or len(waiting) >= UNBONDERS_PER_EPOCH_MAX:",
        ":",
        (STAKING + "test_an_epoch_pays_out_a_bounded_number_of_accounts",),
    ),
    Removal(
        "evidence comes when the stake is gone",
        "node/ledger/params.py",
        "        if evidence > unbonding:",
        "        if evidence < 0:",
        (EPOCHS + "test_windows_that_would_let_stake_go_before_evidence_or_keep_too_much_are_refused",),
    ),
    Removal(
        "ended epochs are kept without end",
        "node/ledger/params.py",
        "    if times > EPOCHS_KEPT_MAX - 2:",
        "    if times < 0:",
        (EPOCHS + "test_windows_that_would_let_stake_go_before_evidence_or_keep_too_much_are_refused",),
    ),
    # --- sets ---
    Removal(
        "everybody leaves and the chain has no validator",
        "node/ledger/staking.py",
        "    if stake.eligible(needed) and not any(other.eligible(needed) for other in others):",
        "    if not others:",
        (STAKING + "test_the_last_validator_that_the_next_set_could_hold_cannot_leave",),
    ),
    Removal(
        "a set of nobody",
        "node/ledger/epochs.py",
        " or list(env.validators.validators)",
        "",
        (EPOCHS + "test_a_set_is_never_empty_even_when_nobody_may_validate",),
    ),
    Removal(
        "a jailed validator stands for the next set",
        "node/ledger/stakes.py",
        "        return not (self.leaving or self.jailed or self.anchor_spent)",
        "        return not (self.leaving or self.anchor_spent)",
        (EVIDENCE + "test_two_votes_in_a_round_burn_a_part_of_the_stake_and_jail_their_author",),
    ),
    Removal(
        "a validator that comes back reveals what everybody knows",
        "node/ledger/stakes.py",
        "        return not (self.leaving or self.jailed or self.anchor_spent)",
        "        return not (self.leaving or self.jailed)",
        (EPOCHS + "test_who_dropped_out_of_a_set_comes_back_with_a_new_anchor_only",),
    ),
    Removal(
        "a node that starts from a snapshot checks other reveals than the rest",
        "node/ledger/epochs.py",
        "        overlay.delete(BEACON + entry.consensus_key)\n",
        "",
        (
            EPOCHS + "test_a_chain_of_reveals_that_was_left_does_not_go_on_where_it_was",
            EPOCHS + "test_who_dropped_out_of_a_set_comes_back_with_a_new_anchor_only",
        ),
    ),
    Removal(
        "a small coalition alone chooses the seed of the next leaders",
        "node/ledger/epochs.py",
        "    one_honest = 3 * revealed > env.validators.stake_total",
        "    one_honest = revealed > 0",
        (EPOCHS + "test_too_few_proposers_give_no_seed_and_leaders_take_turns",),
    ),
    Removal(
        "a block of another epoch is executed",
        "node/ledger/epochs.py",
        "    if context.epoch != epoch.number:",
        "    if context.epoch < 0:",
        (EPOCHS + "test_a_header_that_does_not_follow_the_epoch_stops_execution",),
    ),
    Removal(
        "an epoch ends without a next set",
        "node/ledger/epochs.py",
        '    if frozen is None:\n        raise ExecutionError("an epoch ends',
        '    frozen = frozen or env.validators\n    if not frozen.validators:\n        raise ExecutionError("an epoch ends',
        (EPOCHS + "test_a_header_that_does_not_follow_the_epoch_stops_execution",),
    ),
    # --- evidence ---
    Removal(
        "one offence is slashed again and again",
        "node/ledger/evidence.py",
        "    if author in done:",
        "    if author in ():",
        (EVIDENCE + "test_a_validator_is_slashed_once_for_an_epoch_whatever_it_did_and_whoever_reports",),
    ),
    Removal(
        "a key that validated in another epoch is slashed",
        "node/ledger/evidence.py",
        "    if author not in members:",
        "    if not members:",
        (EVIDENCE + "test_evidence_of_a_coming_epoch_or_of_no_validator_is_refused",),
    ),
    Removal(
        "evidence never expires",
        "node/ledger/evidence.py",
        "    if env.due(past.end_height + params.evidence_heights, past.end_ms + params.evidence_ms):",
        "    if params.evidence_ms < 0:",
        (EVIDENCE + "test_evidence_of_an_ended_epoch_counts_until_both_windows_after_it_are_over",),
    ),
    Removal(
        "whoever leaves after an offence escapes its slash",
        "node/ledger/evidence.py",
        "        part = cut(entry.amount) if entry.epoch >= epoch else 0",
        "        part = 0",
        (
            EVIDENCE + "test_who_leaves_after_an_offence_does_not_escape_its_slash",
            EVIDENCE + "test_stake_that_unbonds_is_slashed_with_what_is_bonded_and_what_left_before_is_not",
        ),
    ),
    Removal(
        "a slash is undone by an unjail in the next block",
        "node/ledger/staking.py",
        "    if not env.due(height, at_ms):",
        "    if height < 0:",
        (EVIDENCE + "test_a_jailed_validator_stays_out_until_it_asks_after_the_jail_windows",),
    ),
    # --- what is open across a change of the set ---
    Removal(
        "commitments of those that left fill an audit until its record cannot be read",
        "node/ledger/audits.py",
        "for entry in inference.commitments if entry[0] in seated)",
        "for entry in inference.commitments)",
        (EPOCHS + "test_attesters_that_left_are_neither_waited_for_nor_counted_as_there",),
    ),
    Removal(
        "openings of those that left fill an audit until its record cannot be read",
        "node/ledger/audits.py",
        " if entry.account != account and entry.account in seated]",
        " if entry.account != account]",
        (EPOCHS + "test_an_audit_settles_though_its_attesters_left",),
    ),
    Removal(
        "an audit opens before a validator that came could commit",
        "node/ledger/audits.py",
        "    if seated <= _heard(inference):",
        "    if len(seated) <= len(_heard(inference) | {account for account, _ in kept}) + 1:",
        (EPOCHS + "test_attesters_that_left_are_neither_waited_for_nor_counted_as_there",),
    ),
    Removal(
        "openings of validators that left are waited for",
        "node/ledger/audits.py",
        "for account, _ in inference.commitments if account in seated)",
        "for account, _ in inference.commitments)",
        (EPOCHS + "test_openings_of_those_that_left_are_not_waited_for",),
    ),
    Removal(
        "holders that left fill an artefact's list until its record cannot be read",
        "node/ledger/models.py",
        "for account in record.held if account in seated), sender)",
        "for account in record.held), sender)",
        (EPOCHS + "test_artefacts_find_their_holders_in_the_set_in_force",),
    ),
    Removal(
        "proposers that left fill a draw until its record cannot be read",
        "node/ledger/serving.py",
        "for key in group.proposers if key in keys and key != env.context.proposer)",
        "for key in group.proposers if key != env.context.proposer)",
        (EPOCHS + "test_an_inference_recorded_before_a_change_is_drawn_by_the_proposers_after_it",),
    ),
)
