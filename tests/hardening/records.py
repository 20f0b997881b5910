"""What keeps spans, near-duplicates, erased records and large indices right, and which test notices its absence."""

from __future__ import annotations

from tests.hardening.removal import Removal

_SPANS = "tests/unit/attribution/test_spans.py::"
_DUPLICATES = "tests/unit/attribution/test_duplicates.py::"
_COPIES = "tests/unit/attribution/test_copies.py::"
_ERASURE = "tests/unit/attribution/test_erasure.py::"
_FILES = "tests/unit/attribution/test_index_files.py::"
_ROWS = "tests/unit/attribution/test_rows.py::"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a span that runs from one record into the next",
        "attribution/spans/segment.py",
        "return self._map[begin : min(begin + size, end)]",
        "return self._map[begin : begin + size]",
        (f"{_SPANS}test_spans_are_those_of_a_plain_search_after_any_history",),
    ),
    Removal(
        "erased text that stays in the segment's old file",
        "attribution/spans/store.py",
        "        _clear(self.directory, {segment.path for segment in segments})\n        self._hold",
        "        self._hold",
        (f"{_SPANS}test_what_was_erased_is_in_no_file_and_its_number_is_not_used_again",),
    ),
    Removal(
        "erased text that a crash left behind",
        "attribution/spans/store.py",
        "            _clear(directory, {segment.path for segment in segments})\n        return cls(",
        "            pass\n        return cls(",
        (f"{_SPANS}test_a_crash_after_the_list_is_replaced_leaves_no_erased_byte_behind",),
    ),
    Removal(
        "a damaged place that leads outside its segment",
        "attribution/spans/segment.py",
        "        if place >= self.token_count:\n",
        "        if place < 0:\n",
        (f"{_SPANS}test_damaged_and_foreign_files_are_refused_or_stay_within_bounds",),
    ),
    Removal(
        "every addition sorts everything again",
        "attribution/spans/store.py",
        "<= RECORDS_MAX and old < 2 * new",
        "<= RECORDS_MAX and new > 0",
        (f"{_SPANS}test_adding_sorts_little_and_leaves_large_segments_alone",),
    ),
    Removal(
        "clusters that drift along chains of small changes",
        "attribution/duplicates.py",
        "        if leader is None:\n            leader = own\n            for bucket, key in zip(buckets, keys, strict=True):\n"
        "                bucket.setdefault(key, []).append(own)\n        found.append(leader)",
        "        for bucket, key in zip(buckets, keys, strict=True):\n"
        "            bucket.setdefault(key, []).append(own)\n        found.append(own if leader is None else found[leader])",
        (f"{_DUPLICATES}test_a_chain_of_small_changes_ends_where_its_leader_is_no_longer_similar",),
    ),
    Removal(
        "records that are copies only by their hashes",
        "attribution/duplicates.py",
        "if common * JACCARD_DENOMINATOR >= united * JACCARD_NUMERATOR:",
        "if common >= 0:",
        (f"{_DUPLICATES}test_shingles_are_numbered_exactly_whatever_their_hashes",),
    ),
    Removal(
        "a copier who puts its contribution first in the index",
        "attribution/duplicates.py",
        "live.sort(key=lambda i: (commits[i], i))",
        "live.sort()",
        (
            f"{_DUPLICATES}test_the_order_of_commitment_decides_and_not_the_place_in_the_index",
            f"{_COPIES}test_copies_that_were_committed_later_are_led_wherever_they_stand_in_the_index",
        ),
    ),
    Removal(
        "copies that move others' scores through the whitening",
        "attribution/index.py",
        "[i for i in part if clusters is None or clusters[i] == i]",
        "list(part)",
        (f"{_COPIES}test_copies_raise_nobodys_payout_and_lower_nobodys",),
    ),
    Removal(
        "copies that are paid beside their leader",
        "attribution/shares.py",
        "        if scores.rows.leaders[index] == index:\n",
        "        if True:\n",
        (
            f"{_COPIES}test_copies_raise_nobodys_payout_and_lower_nobodys",
            "tests/unit/attribution/test_shares.py::test_whatever_copies_score_and_whoever_owns_them_no_share_changes",
        ),
    ),
    Removal(
        "an erasure that a crash interrupted",
        "attribution/index.py",
        "            blank_rows(directory, rows, standing.erased)\n",
        "",
        (f"{_ERASURE}test_an_erasure_that_was_interrupted_is_ended_by_the_next_opening",),
    ),
    Removal(
        "a damaged list of erased rows that has sound ones blanked",
        "attribution/index_standing.py",
        "if found.encode(records) != data:",
        "if found.encode(records)[: -_CHECK.size] != data[: -_CHECK.size]:",
        (f"{_ERASURE}test_a_damaged_file_beside_the_index_is_refused_before_it_blanks_a_row",),
    ),
    Removal(
        "an erased record that still leads its copies",
        "attribution/index_standing.py",
        "if any(i in self.erased or self.clusters[i] in self.erased for i in led):",
        "if any(i in self.erased for i in led):",
        (f"{_ERASURE}test_records_that_are_not_there_and_missing_leaders_are_refused",),
    ),
    Removal(
        "gradients of all records in memory",
        "attribution/index_files.py",
        "at_once = max(1, min(RECORDS_AT_ONCE, PART_BYTES // (4 * coordinates)))",
        "at_once = len(records) + 0 * coordinates",
        (f"{_FILES}test_an_index_whose_gradients_exceed_memory_is_built_and_asked",),
    ),
    Removal(
        "rows that grow with the model",
        "attribution/rows.py",
        "> COORDINATES_SIGNED_MAX",
        "> COORDINATES_SIGNED_MAX << 9",
        (f"{_ROWS}test_a_row_is_digest_scale_and_signs_of_the_definitions_sums",),
    ),
    Removal(
        "a row of the other form at the limit",
        "attribution/rows.py",
        "> COORDINATES_SIGNED_MAX",
        ">= COORDINATES_SIGNED_MAX",
        (f"{_ROWS}test_only_rows_of_more_coordinates_than_the_limit_are_sketched",),
    ),
    Removal(
        "a sketch of nothing that is scored",
        "attribution/sketch.py",
        "np.any(sums, axis=1, keepdims=True).astype(np.uint32)",
        "np.ones((len(sums), 1), np.uint32)",
        (f"{_ROWS}test_a_gradient_of_nothing_has_scale_and_score_zero",),
    ),
    Removal(
        "a score cut to 64 bits",
        "attribution/shares.py",
        'array("q", self.values)',
        'array("q", [(v + 2**63) % 2**64 - 2**63 for v in self.values])',
        ("tests/unit/attribution/test_shares.py::test_scores_are_kept_as_64_bits_and_none_is_cut_to_fit",),
    ),
    Removal(
        "a result that names another form of rows than its index has",
        "node/recompute/worker.py",
        "                index.header.version,\n",
        "                2,\n",
        (
            "tests/unit/node_recompute/test_engine.py::test_an_adapter_of_many_coordinates_is_audited_by_sketched_rows_and_the_result_says_so",
        ),
    ),
)
