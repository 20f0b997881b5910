"""The daemon's middle: quotas and collection of blobs, the mempool, admissions, duties, the worker."""

from tests.hardening.removal import Removal

LOOSE = "tests/unit/node_storage/test_loose_blobs.py::"
KEEPER = "tests/unit/node/test_keeper.py::"
POOL = "tests/unit/node/test_mempool_eviction.py::"
INTAKE = "tests/unit/node/test_intake.py::"
ADMISSION = "tests/unit/node/test_admission.py::"
VOUCHING = "tests/unit/node/test_vouching.py::"
ENVELOPE = "tests/unit/node_ledger/test_ledger_envelope.py::"
SUBMIT = "tests/unit/node/test_submit_together.py::"
EXECUTOR = "tests/unit/node/test_executor_memory.py::"
INBOX = "tests/unit/node/test_inbox.py::"
CLOCK = "tests/unit/node/test_clock.py::"
WIRING = "tests/unit/node/test_node_wiring.py::"
BATCHES = "tests/unit/node/test_batches.py::"
TASKS = "tests/unit/node/test_small_tasks.py::"
PROCESS = "tests/unit/node_recompute/test_process.py::"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a flood of consensus messages keeps every other task of the node waiting",
        "node/driver.py",
        "            if not taken:",
        "            if False:",
        ("tests/unit/node/test_driver.py::test_a_flood_of_inputs_leaves_the_other_tasks_their_turns",),
    ),
    # --- blobs ---
    Removal(
        "one sender's blobs fill a validator's disk",
        "node/storage/blobs.py",
        "        if taken + size_bytes > own_max:",
        "        if taken < 0:",
        (
            LOOSE + "test_one_sender_is_refused_past_its_quota_and_others_are_not",
            VOUCHING + "test_a_senders_blobs_have_a_quota_with_a_typed_refusal_that_leaves_no_trace",
            VOUCHING + "test_a_peers_transaction_over_its_senders_quota_fetches_nothing",
        ),
    ),
    Removal(
        "the first to come take all room that blobs have",
        "node/storage/blobs.py",
        "own_max = min(limits.owner_bytes_max if owner else limits.unnamed_bytes_max, free)",
        "own_max = limits.owner_bytes_max if owner else limits.unnamed_bytes_max",
        (LOOSE + "test_nobody_takes_more_than_is_left_for_all_the_others_together",),
    ),
    Removal(
        "millions of tiny blobs",
        "node/storage/blobs.py",
        "        size_bytes = max(self._sizes[name.hex()], LOOSE_BYTES_MIN)",
        "        size_bytes = self._sizes[name.hex()]",
        (LOOSE + "test_tiny_blobs_count_what_they_take_of_the_disk",),
    ),
    Removal(
        "blobs put by RPC and never named stay for ever",
        "node/backend.py",
        "run_sync(self._node.blobs.put, data, None, note)",
        "run_sync(self._node.blobs.put, data, None, None)",
        (WIRING + "test_blobs_that_come_by_rpc_are_loose_and_bounded",),
    ),
    Removal(
        "a blob that the ledger refers to is collected",
        "node/keeper.py",
        "                self._blobs.keep(name)\n            if before",
        "                pass\n            if before",
        (KEEPER + "test_what_the_ledger_refers_to_is_never_collected",),
    ),
    Removal(
        "what a restarted node holds for the ledger is collected",
        "node/keeper.py",
        "        for key, value in self._store.scan_state():",
        "        for key, value in ():",
        (KEEPER + "test_what_the_ledger_refers_to_is_never_collected",),
    ),
    Removal(
        "a blob that was lost and put again is collected though the ledger refers to it",
        "node/storage/blobs.py",
        "            if note is not None and self.referred(name):  # it came late, or its copy was lost",
        "            if note is not None and not name:",
        (KEEPER + "test_a_copy_that_replaces_a_lost_one_is_kept_like_it",),
    ),
    Removal(
        "a blob that was named while it was judged is collected",
        "node/storage/blobs.py",
        "            if self._notes.get(name) != note:",
        "            if name not in self._notes:",
        (LOOSE + "test_a_blob_that_was_named_since_it_was_judged_is_not_collected",),
    ),
    Removal(
        "a clock that jumps ahead ends the time of every blob",
        "node/keeper.py",
        "            height >= note.height + self._section.blobs_loose_heights_max\n            and ",
        "            ",
        (KEEPER + "test_a_loose_blob_goes_only_when_heights_and_milliseconds_have_both_passed",),
    ),
    Removal(
        "a blob that was vouched for goes before its transaction can no longer execute",
        "node/keeper.py",
        "            and height > note.until_height\n",
        "",
        (KEEPER + "test_a_blob_that_was_vouched_for_stays_until_its_transaction_has_expired",),
    ),
    Removal(
        "vouching for what would have to be kept for days",
        "node/admission.py",
        "        if transaction.kind in STORED_KINDS and transaction.valid_until > height + VOUCHED_HEIGHTS_MAX:",
        "        if transaction.kind < 0:",
        (ADMISSION + "test_nothing_is_vouched_for_that_would_have_to_be_kept_for_very_long",),
    ),
    Removal(
        "a blob of an ordered transaction is collected before it executes",
        "node/keeper.py",
        "needed = waiting | {name for batch in ordered for name in self._blobs_of(batch)}",
        "needed = waiting",
        (KEEPER + "test_a_blob_of_an_ordered_transaction_stays_until_that_has_executed",),
    ),
    Removal(
        "two calls with one opening: the end of one audit blinds the other",
        "node/node.py",
        " and not self.keeper.refers(record.blob_digest):",
        ":",
        (WIRING + "test_an_opening_that_answers_another_open_call_is_not_forgotten_with_the_first",),
    ),
    Removal(
        "a note of a killed run keeps a quota taken for ever",
        "node/storage/blobs.py",
        "if note is None or file.stem not in self._sizes:",
        "if note is None:",
        (LOOSE + "test_damaged_and_orphaned_notes_are_swept",),
    ),
    # --- batches of others, and small tasks ---
    Removal(
        "a validator fills the disks of the others with batches",
        "node/batches.py",
        "            if not self._pushed.add(entry.account, name, len(data), height):",
        "            if not name:",
        (BATCHES + "test_batches_past_their_authors_quota_are_not_stored",),
    ),
    Removal(
        "a batch that a block in flight names is removed as unused",
        "node/batches.py",
        "        needed = set(self.ordered())\n",
        "        needed: set[bytes] = set()\n",
        (
            BATCHES
            + "test_what_no_block_came_to_use_goes_and_what_an_executed_or_a_waiting_block_names_stays",
        ),
    ),
    Removal(
        "small tasks without bound",
        "node/small_tasks.py",
        "self._nursery is None or self._running >= TASKS_MAX:",
        "self._nursery is None:",
        (TASKS + "test_past_the_bound_a_task_is_refused_until_another_has_ended",),
    ),
    # --- mempool ---
    Removal(
        "a pool full of cheap transactions locks out who pays",
        "node/mempool.py",
        "            cheapest = self._cheapest_tail(pooled, nonce_next) if len(evicted) < EVICTIONS_MAX else None",
        "            cheapest = None",
        (
            POOL + "test_who_pays_a_tenth_more_takes_the_place_of_the_cheapest_end",
            POOL + "test_promises_behind_a_gap_give_way_to_anything_that_can_be_ordered_and_push_out_nothing",
        ),
    ),
    Removal(
        "outbidding by one unit is free flooding",
        "node/mempool.py",
        "if least != UNREADY and 100 * worth <= (100 + REPLACEMENT_PERCENT_MIN) * least:",
        "if least != UNREADY and worth <= least:",
        (POOL + "test_who_pays_no_tenth_more_is_refused_and_nothing_changes",),
    ),
    Removal(
        "a dear end shelters a cheap line",
        "node/mempool.py",
        "        return min(pooled.rate for pooled in self.waiting.values())",
        "        return self.tail.rate",
        (POOL + "test_a_dear_end_does_not_shelter_a_cheap_line",),
    ),
    Removal(
        "dear promises behind a gap push out what can be ordered",
        "node/mempool.py",
        "        if max(self.waiting) >= self.expected + len(self.waiting):",
        "        if not self.waiting:",
        (POOL + "test_promises_behind_a_gap_give_way_to_anything_that_can_be_ordered_and_push_out_nothing",),
    ),
    Removal(
        "one long transaction costs many short ones",
        "node/mempool.py",
        " if len(evicted) < EVICTIONS_MAX else None",
        "",
        (POOL + "test_one_long_transaction_does_not_cost_many_others",),
    ),
    Removal(
        "a refused transaction costs those that were to give way",
        "node/mempool.py",
        "                for back, expected in reversed(evicted):\n                    self._insert(back, expected)\n",
        "",
        (POOL + "test_one_long_transaction_does_not_cost_many_others",),
    ),
    Removal(
        "a transaction leaves the pool without a word",
        "node/mempool.py",
        "            self._remember(gone, Drop.EVICTED)",
        "            continue",
        (
            POOL + "test_who_pays_a_tenth_more_takes_the_place_of_the_cheapest_end",
            WIRING + "test_a_clients_transaction_that_had_to_give_way_says_so",
        ),
    ),
    Removal(
        "the memory of drops grows without bound",
        "node/mempool.py",
        "        if len(self._dropped) >= DROPS_REMEMBERED_MAX:",
        "        if not self._by_hash and not self._dropped.get(b''):\n            return\n        if False:",
        (POOL + "test_the_memory_of_drops_is_bounded",),
    ),
    Removal(
        "a hostile validator's duties fill the memory",
        "node/mempool.py",
        "        if self._duty_bytes.get(sender, 0) + len(pooled.raw) > DUTY_BYTES_PER_SENDER_MAX:",
        "        if len(pooled.raw) < 0:",
        (POOL + "test_duties_and_payers_take_no_room_from_one_another_and_duties_have_bounds_of_their_own",),
    ),
    Removal(
        "one balance promises the fees of many transactions",
        "node/admission.py",
        "        if promised + transaction.fee > balance:",
        "        if promised < 0:",
        (ADMISSION + "test_a_sender_cannot_promise_more_fees_than_it_has",),
    ),
    # --- admissions ---
    Removal(
        "many who send hold up the event loop together",
        "node/intake.py",
        """            async with self._door:
                taken += [""",
        """            await trio.lowlevel.checkpoint()
            if True:
                taken += [""",
        (INTAKE + "test_one_group_is_admitted_at_a_time_however_many_send",),
    ),
    Removal(
        "a long block holds up the event loop",
        "node/executor.py",
        "            await trio.lowlevel.checkpoint()\n            try:\n                next(steps)",
        "            try:\n                next(steps)",
        (EXECUTOR + "test_others_have_their_turn_while_a_long_block_executes",),
    ),
    Removal(
        "a block of storage receipts holds up the event loop",
        "node/ledger/execute.py",
        "            left -= 1 + len(stored)",
        "            left -= 1",
        (ENVELOPE + "test_a_block_pauses_by_its_signatures_those_of_storage_receipts_included",),
    ),
    Removal(
        "a forged signature costs its sender nothing",
        "node/intake.py",
        "frozenset({InvalidCode.MALFORMED, InvalidCode.BAD_SIGNATURE})",
        "frozenset({InvalidCode.MALFORMED})",
        (INTAKE + "test_who_sends_a_forged_signature_is_blamed_who_passes_one_on_is_not",),
    ),
    Removal(
        "what a caller who left had admitted stays here",
        "node/intake.py",
        "        self._own[pooled.tx_hash] = trio.current_time()\n",
        "",
        (SUBMIT + "test_what_a_caller_who_left_had_admitted_is_passed_on_by_repetition",),
    ),
    Removal(
        "each signature is verified again and again",
        "consensus/crypto.py",
        "        self._good[key] = None\n",
        "",
        (ADMISSION + "test_each_signature_is_verified_once_and_then_known",),
    ),
    Removal(
        "one peer's messages fill the memory",
        "node/inbox.py",
        "        elif len(queue) >= MESSAGES_PER_PEER_MAX or self._bytes[peer_id] + len(message) > BYTES_PER_PEER_MAX:",
        "        elif len(queue) < 0:",
        (
            INBOX + "test_past_its_limit_a_peer_loses_its_own_newest_messages_only",
            INTAKE + "test_what_one_peer_offers_too_much_is_dropped_and_another_has_its_turn",
        ),
    ),
    Removal(
        "one peer's messages keep the others waiting",
        "node/inbox.py",
        "        peer_id = next(iter(self._waiting))",
        "        peer_id = max(self._waiting, key=lambda peer: len(self._waiting[peer]))",
        (INBOX + "test_peers_take_turns_however_much_one_of_them_sends",),
    ),
    Removal(
        "a state read for each sender before each block",
        "node/admission.py",
        "        value = self._known[key] = self._store.get(key)",
        "        value = self._store.get(key)",
        (ADMISSION + "test_what_the_state_says_of_senders_is_read_once_and_anew_after_a_block",),
    ),
    Removal(
        "what was read of a sender outlives the block that changed it",
        "node/admission.py",
        "            self._known.pop(ACCOUNT + address, None)",
        "            continue",
        (ADMISSION + "test_what_the_state_says_of_senders_is_read_once_and_anew_after_a_block",),
    ),
    Removal(
        "a flood of batches becomes a flood of log lines",
        "node/pushed.py",
        "        first = self._told.get(author) != height",
        "        first = True",
        (
            "tests/unit/node/test_pushed.py::"
            "test_a_flood_of_refused_batches_is_told_once_a_height_for_each_author",
        ),
    ),
    # --- duties, worker, ledger ---
    Removal(
        "every open audit is decoded at each block",
        "node/duties.py",
        "        if known is None or known[0] != data:",
        "        if known is None or known[0]:",
        ("tests/unit/node/test_duties.py::test_an_audit_that_did_not_change_is_not_decoded_again",),
    ),
    Removal(
        "an index build holds up audits",
        "node/recompute/worker.py",
        "result = engine.perform(index, between)",
        "result = engine.perform(index)",
        (PROCESS + "test_an_audit_is_done_while_an_index_is_being_built",),
    ),
    Removal(
        "an index that kills the process takes an audit with it",
        "node/recompute/process.py",
        "return audits if alone or not (audits.suspect or indices.suspect) else None",
        "return audits",
        (PROCESS + "test_what_may_have_killed_a_process_is_done_alone",),
    ),
    Removal(
        "an adapter of more records than an index can hold",
        "node/ledger/models.py",
        "    if records > RECORDS_PER_ADAPTER_MAX:",
        "    if records < 0:",
        (
            "tests/unit/node_ledger/test_ledger_models.py::"
            "test_an_adapter_of_more_records_than_an_index_can_hold_is_refused",
        ),
    ),
    Removal(
        "a change of parameters makes honest validators disagree",
        "node/ledger/execute.py",
        "            if key == PARAMS_KEY:",
        '            if key == b"":',
        (
            "tests/unit/node_ledger/test_ledger_envelope.py::"
            "test_no_block_changes_the_parameters_that_audits_read",
        ),
    ),
    # --- clocks ---
    Removal(
        "setting the clock of a running machine stops its validator for as long",
        "node/clock.py",
        "        return (self._offset_ns + self._counted_ns()) // 1_000_000",
        "        return self._time_of_day_ns() // 1_000_000",
        (CLOCK + "test_whoever_sets_the_clock_of_a_running_machine_moves_no_node",),
    ),
    Removal(
        "a wrong clock goes unnoticed",
        "node/clock.py",
        "        if not steady or (self._told_s is not None and now_s - self._told_s < REPEATED_AFTER_S):",
        "        if now_s >= 0:",
        (CLOCK + "test_a_clock_that_jumped_either_way_is_reported_once_in_a_while",),
    ),
    Removal(
        "a node that catches up is told that its clock is wrong",
        "node/clock.py",
        "if self._since_s is None or abs(offset_ms - self._offset_ms) > self.drift_ms_max:",
        "if self._since_s is None:",
        (CLOCK + "test_a_node_that_catches_up_is_not_told_that_its_clock_is_wrong",),
    ),
)
