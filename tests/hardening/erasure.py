"""What keeps copies from paying on the ledger, and erased records erased; and which test notices its absence."""

from __future__ import annotations

from tests.hardening.removal import Removal

_LEDGER = "tests/unit/node_ledger/test_ledger_erasure.py::"
_PAID = "tests/unit/node/test_paid_records.py::"
_SPANS = "tests/unit/node/test_spans_follower.py::"
_ENGINE = "tests/unit/node_recompute/test_engine.py::"
_CLI = "tests/unit/node/test_cli_records.py::"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a publisher that puts copies before the original",
        "node/ledger/models.py",
        "    if misplaced is not None:\n",
        "    if False:\n",
        (f"{_LEDGER}test_contributions_of_an_adapter_stand_in_the_order_of_commitment",),
    ),
    Removal(
        "contributions of one block without an order",
        "node/ledger/order.py",
        "        if number is None or number < before:\n",
        "        if number is None:\n",
        (f"{_LEDGER}test_contributions_of_an_adapter_stand_in_the_order_of_commitment",),
    ),
    Removal(
        "an adapter whose near-duplicates take a validator's memory",
        "node/ledger/models.py",
        "    if tokens > TOKENS_PER_ADAPTER_MAX:\n",
        "    if False:\n",
        (
            "tests/unit/node_ledger/test_ledger_models.py::"
            "test_an_adapter_of_more_tokens_than_leaders_are_found_among_is_refused",
        ),
    ),
    Removal(
        "copies that pay the copier: an index without leaders",
        "node/recompute/worker.py",
        "leaders(records, between=between)\n",
        "None\n",
        (f"{_PAID}test_copies_by_another_contributor_change_no_share",),
    ),
    Removal(
        "erasing another's records",
        "node/ledger/erasure.py",
        "    if contribution.contributor != sender:\n",
        "    if False:\n",
        (f"{_LEDGER}test_only_the_contributor_erases_known_records_and_each_once",),
    ),
    Removal(
        "erasing twice",
        "node/ledger/erasure.py",
        "        if number in earlier:\n",
        "        if False:\n",
        (f"{_LEDGER}test_only_the_contributor_erases_known_records_and_each_once",),
    ),
    Removal(
        "erasing records that are not there",
        "node/ledger/erasure.py",
        "    if body.records[-1] >= contribution.record_count:\n",
        "    if False:\n",
        (f"{_LEDGER}test_only_the_contributor_erases_known_records_and_each_once",),
    ),
    Removal(
        "an index of erasures without a bound",
        "node/ledger/erasure.py",
        "        if len(pending) >= ERASURES_PENDING_MAX:\n",
        "        if False:\n",
        (f"{_LEDGER}test_erasures_that_wait_are_bounded",),
    ),
    Removal(
        "rows blanked while an audit of before needs them",
        "node/ledger/erasure.py",
        "        heights.append(inference.height)\n",
        "        heights.append(env.context.height)\n",
        (f"{_LEDGER}test_bytes_stay_until_every_inference_from_before_is_closed",),
    ),
    Removal(
        "records blanked while an adapter of before waits for its holders",
        "node/ledger/erasure.py",
        "    heights += [entry.height - waiting for entry in get_deadlines(overlay, ARTEFACTS_KEY)[:1]]\n",
        "",
        (f"{_LEDGER}test_bytes_stay_while_an_adapter_from_before_may_still_be_rebuilt",),
    ),
    Removal(
        "an erasure that reaches back to inferences of before",
        "node/artefacts.py",
        "erased = training.erased_rows(record.height)",
        "erased = training.erased_rows()",
        (f"{_PAID}test_an_inference_of_after_an_erasure_pays_as_if_the_record_were_not_there",),
    ),
    Removal(
        "an erased record that is still paid",
        "node/recompute/worker.py",
        "        if job.erased:\n",
        "        if False:\n",
        (f"{_PAID}test_an_inference_of_after_an_erasure_pays_as_if_the_record_were_not_there",),
    ),
    Removal(
        "copies of an erased record that nobody leads",
        "attribution/index_standing.py",
        "        ScoredRows(norms, tuple(leaders)),\n",
        "        ScoredRows(norms, scores.rows.leaders),\n",
        (f"{_PAID}test_blanked_rows_give_the_result_that_the_same_rows_gave_before",),
    ),
    Removal(
        "a verdict from rows that are blanked too early here",
        "node/recompute/worker.py",
        "        if not index.standing.erased.keys() <= set(job.erased):\n",
        "        if False:\n",
        (f"{_PAID}test_an_index_of_which_records_were_erased_is_never_built_from_the_rest",),
    ),
    Removal(
        "an index built from what is left, under the root of the whole",
        "node/recompute/worker.py",
        "        if len(records) < len(rows):\n",
        "        if False:\n",
        (f"{_PAID}test_an_index_of_which_records_were_erased_is_never_built_from_the_rest",),
    ),
    Removal(
        "erased bytes that are put back",
        "node/storage/blobs.py",
        "        if self.erased(name):\n            raise BlobErased(name)\n",
        "",
        (f"{_PAID}test_erased_bytes_do_not_come_back_by_any_door",),
    ),
    Removal(
        "erased bytes that are served out of a backup",
        "node/storage/blobs.py",
        "        if self.erased(name) or (offset == 0 and self.get(name) is None):\n",
        "        if offset == 0 and self.get(name) is None:\n",
        (f"{_PAID}test_erased_bytes_do_not_come_back_by_any_door",),
    ),
    Removal(
        "a peer's rest that lacks more than was erased",
        "node/erasing.py",
        "            if not missing <= gone.records:\n",
        "            if False:\n",
        (f"{_PAID}test_a_peers_rest_is_taken_only_with_every_record_that_was_not_erased",),
    ),
    Removal(
        "a peer that has a Merkle tree built with every request",
        "node/erasing.py",
        "        if self._proven.get(name) == (gone, blob_digest(data)):\n",
        "        if False:\n",
        (f"{_PAID}test_a_rest_is_proven_once_and_again_when_it_changed",),
    ),
    Removal(
        "a blob that another contribution still needs",
        "node/erasing.py",
        "done if before is None else before.records & done",
        "done if before is None else before.records | done",
        (f"{_PAID}test_nobody_erases_what_another_contributed_too",),
    ),
    Removal(
        "the original left on disk",
        "node/erasing.py",
        "        for name in sorted(blobs & found.keys()):\n            self._blobs.remove(name)\n",
        "",
        (f"{_PAID}test_a_node_killed_in_the_middle_finishes_at_its_next_start",),
    ),
    Removal(
        "an erasure that a kill interrupts and nobody resumes",
        "node/erasing.py",
        "        self._follow(names)\n        self._rows.update(names)\n",
        "",
        (f"{_PAID}test_a_node_killed_in_the_middle_finishes_at_its_next_start",),
    ),
    Removal(
        "spans of erased records",
        "node/spans/follower.py",
        "        gone = index.erase([entry.first + number for number in erasures.done])\n",
        "        gone = 0\n",
        (f"{_SPANS}test_erased_records_are_found_no_more_and_leave_no_bytes",),
    ),
    Removal(
        "span indices without a bound on disk",
        "node/spans/follower.py",
        "                if not self._has_room():\n",
        "                if False:\n",
        (f"{_SPANS}test_what_cannot_be_had_or_has_no_room_is_tried_again",),
    ),
    Removal(
        "a fee paid to hear that contributions stand in another order",
        "node/cli/tx.py",
        "            _check_order(client, body)\n",
        "            pass\n",
        (f"{_CLI}test_an_adapter_in_another_order_is_not_sent_and_the_right_one_is_said",),
    ),
    Removal(
        "another's index whose root is not looked at",
        "node/recompute/worker.py",
        "Index.open(fetched, job.index_root).standing",
        "Index.open(fetched).standing",
        (
            f"{_PAID}test_a_peer_that_sends_another_index_is_left_for_the_next",
            f"{_ENGINE}test_what_the_root_does_not_prove_is_refused_and_its_senders_fault",
        ),
    ),
    Removal(
        "another's index without rows that count",
        "node/recompute/worker.py",
        "        if not standing.erased.keys() <= set(job.rows):  #",
        "        if False:  #",
        (f"{_ENGINE}test_an_index_without_rows_that_count_here_is_refused_and_nobodys_fault",),
    ),
    Removal(
        "leaders taken on a peer's word",
        "node/recompute/worker.py",
        "erase_rows(fetched, job.rows, self._leaders_without(job, job.rows, between))",
        "erase_rows(fetched, job.rows, standing.clusters)",
        (f"{_ENGINE}test_an_index_of_anothers_is_taken_with_the_leaders_of_ones_own",),
    ),
    Removal(
        "an index without end",
        "node/fetch.py",
        "if not offset or size_bytes >= INDEX_BYTES_MAX:",
        "if not offset:",
        (f"{_PAID}test_a_peer_that_sends_another_index_is_left_for_the_next",),
    ),
    Removal(
        "an index that is fetched again for each inference of before an erasure",
        "node/artefacts.py",
        "            if whole or not await",
        "            if not await",
        (f"{_PAID}test_an_inference_of_before_the_erasure_fetches_nothing",),
    ),
    Removal(
        "a half-fetched index that stays",
        "node/artefacts.py",
        "                shutil.rmtree(folder, ignore_errors=True)  #",
        "                pass  #",
        (
            f"{_PAID}test_where_nobody_has_it_nothing_is_attested_and_nothing_stays",
            f"{_PAID}test_a_full_disk_in_the_middle_costs_nothing_but_the_time",
        ),
    ),
)
