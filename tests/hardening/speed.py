"""What bounds the memories that make the common path fast, and what keeps them from changing an answer."""

from tests.hardening.removal import Removal

READING = "tests/unit/node_ledger/test_ledger_reading.py::"
TOGETHER = "tests/unit/node/test_submit_together.py::"
WIRING = "tests/unit/node/test_node_wiring.py::"

FAST_PATH = "tests/unit/node_network/test_fast_path.py::"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a frame on its way through libp2p gives its turn away at every lock",
        "node/network/fast_path.py",
        "            self._lock.acquire_nowait()",
        "            await self._lock.acquire()",
        (FAST_PATH + "test_a_frame_takes_few_turns_of_the_scheduler",),
    ),
    Removal(
        "a peer's flood of small frames keeps every other task waiting",
        "node/network/fast_path.py",
        "        if not self._reads:",
        "        if False:",
        (FAST_PATH + "test_a_flood_of_small_frames_leaves_the_other_tasks_their_turns",),
    ),
    Removal(
        "the rest of what a read of the socket brought is lost",
        "node/network/fast_path.py",
        "        del self._cipher[:at]",
        "        self._cipher.clear()",
        (FAST_PATH + "test_what_is_read_is_what_was_written_however_it_is_cut",),
    ),
    Removal(
        "the end of a connection inside a message passes for an end between two",
        "node/network/fast_path.py",
        "received_bytes=len(self._plain)",
        "received_bytes=0",
        (FAST_PATH + "test_the_end_inside_a_message_and_a_reset_are_told_apart_from_data",),
    ),
    Removal(
        "the memory of transactions read grows without bound",
        "node/ledger/reading.py",
        "            if len(self._known) >= REMEMBERED_MAX:",
        "            if False:",
        (READING + "test_a_transaction_is_read_once_and_the_memory_is_bounded",),
    ),
    Removal(
        "long transactions fill the memory of those that were read",
        "node/ledger/reading.py",
        "        if len(data) <= REMEMBERED_BYTES_MAX:",
        "        if True:",
        (READING + "test_a_long_transaction_is_not_remembered",),
    ),
    Removal(
        "a transaction is read anew wherever it is met",
        "node/ledger/reading.py",
        "            self._known[data] = read",
        "            self._known[b''] = read",
        (READING + "test_a_transaction_is_read_once_and_the_memory_is_bounded",),
    ),
    Removal(
        "what is remembered as signed is not what was signed",
        "node/ledger/reading.py",
        '_EIGHT_FIELDS = b"\\x98"',
        '_EIGHT_FIELDS = b"\\x99"',
        (READING + "test_what_is_read_once_is_what_each_part_would_say_alone",),
    ),
    Removal(
        "a remembered signature executes for another's transaction",
        "node/ledger/execute.py",
        "        if not env.check(*known.signed):",
        "        if False:",
        ("tests/unit/node_ledger/test_ledger_envelope.py",),
    ),
    Removal(
        "the memory of short values grows without bound",
        "node/ledger/fields.py",
        "        if len(_short) >= SHORT_REMEMBERED_MAX:",
        "        if False:",
        (READING + "test_short_values_are_remembered_by_class_and_bytes_and_their_memory_is_bounded",),
    ),
    Removal(
        "a remembered value is given where its bytes are over the caller's limit",
        "node/ledger/fields.py",
        "    if len(data) > min(SHORT_BYTES_MAX, bytes_max):",
        "    if len(data) > SHORT_BYTES_MAX:",
        (READING + "test_short_values_are_remembered_by_class_and_bytes_and_their_memory_is_bounded",),
    ),
    Removal(
        "an account that was removed lives on in the overlay",
        "node/ledger/state.py",
        "            self._accounts.pop(key, None)\n        self._changes.update(child._changes)",
        "            pass\n        self._changes.update(child._changes)",
        (READING + "test_the_last_of_put_record_and_delete_counts_before_and_after_a_merge",),
    ),
    Removal(
        "transactions submitted together are passed on in a frame each",
        "node/intake.py",
        "            for message in _messages(raws):\n                self._network.broadcast(",
        "            for message in [encode_transactions([raw]) for raw in raws]:\n                self._network.broadcast(",
        (TOGETHER + "test_many_are_admitted_in_order_verified_in_one_visit_and_passed_on_in_one_frame",),
    ),
    Removal(
        "what was submitted here is remembered for ever",
        "node/intake.py",
        "            self._own.pop(tx_hash, None)",
        "            continue",
        (TOGETHER + "test_what_was_submitted_here_is_forgotten_once_it_is_executed",),
    ),
    Removal(
        "a batch of submissions holds up the others without bound",
        "node/rpc/protocol.py",
        "min(len(requests), at + _TOGETHER_MAX)",
        "len(requests)",
        (TOGETHER + "test_submissions_that_follow_one_another_reach_the_node_together",),
    ),
    Removal(
        "a line is priced again for each of its transactions",
        "node/mempool.py",
        "        self._unpriced.add(sender)",
        "        self._unpriced.add(sender)\n        self._put_in_order()",
        (TOGETHER + "test_a_pool_that_is_not_full_never_works_out_what_lines_are_worth",),
    ),
    Removal(
        "every block walks through the whole pool",
        "node/mempool.py",
        "tuple(self._lines_by_sender) if changed is None else changed:",
        "tuple(self._lines_by_sender):",
        (TOGETHER + "test_a_block_looks_only_at_the_lines_of_the_accounts_that_it_changed",),
    ),
    Removal(
        "the pool's memory of expiries grows without bound",
        "node/mempool.py",
        "        if len(self._expiries) > 2 * len(self._by_hash) + 64:",
        "        if False:",
        (TOGETHER + "test_the_pools_memory_of_expiries_is_bounded_however_often_one_is_replaced",),
    ),
    Removal(
        "a gossip message for each block of a busy chain",
        "node/announcing.py",
        "        self._from_s = trio.current_time() + pause_s",
        "        self._from_s = 0.0",
        (WIRING + "test_blocks_that_follow_at_once_are_announced_together_and_the_last_of_them_always",),
    ),
)
