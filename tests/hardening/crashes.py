"""Crashes: what a validator's disk must keep, what it may lose, and who else may hold its key."""

from tests.hardening.removal import Removal

_DRIVER = "tests/unit/node/test_driver.py"
_MACHINES = "tests/simulation/test_machines.py"
_POINTS = "tests/simulation/test_crash_points.py"
_CUSTODY = "tests/simulation/test_custody.py"
_DAMAGE = "tests/unit/node_storage/test_database_damage.py"
_GUARD = "tests/unit/node_storage/test_guard.py"
_ROLLBACK = "tests/unit/node/test_startup_guard.py"
_STARTUP = "tests/unit/node/test_startup.py"

_NOTICED = f"{_CUSTODY}::test_a_verified_signature_of_ours_that_the_record_does_not_know_is_noticed"
_DIES = f"{_MACHINES}::test_a_machine_that_dies_at_its_writes_in_every_manner_keeps_its_word"
_OLD_COPY = f"{_MACHINES}::test_a_machine_whose_whole_disk_is_an_old_copy_stops_before_it_contradicts_itself"
_SAYS_WHY = f"{_STARTUP}::test_the_daemon_ends_with_a_code_and_a_line_that_says_why_and_what_to_do"

REMOVALS: tuple[Removal, ...] = (
    # --- the contract of the driver, and what a write holds ---
    Removal(
        "a driver that sends before it persists",
        "node/driver.py",
        "            for effect in effects:\n",
        "            for effect in sorted(effects, key=lambda effect: isinstance(effect, Persist)):\n",
        (f"{_DRIVER}::test_effects_are_performed_in_the_order_persist_send_deliver", _DIES),
    ),
    Removal(
        "an input of this node that comes before the replica was started",
        "node/driver.py",
        "self._own.appendleft(Started(start_ms))",
        "self.tell(Started(start_ms))",
        (f"{_DRIVER}::test_this_nodes_own_inputs_go_before_peers_messages",),
    ),
    Removal(
        "a safety record that is not synced",
        "node/storage/chain.py",
        "            self._db.write(changes, sync=effect.sync)\n",
        "            self._db.write(changes, sync=False)\n",
        (
            "tests/unit/node_storage/test_chain_store.py::"
            "test_a_step_that_signed_waits_for_the_disk_and_one_that_did_not_does_not",
        ),
    ),
    Removal(
        "a replica that does not ask for the sync",
        "consensus/replica.py",
        "                sync=signed,\n",
        "                sync=False,\n",
        (f"{_POINTS}::test_one_node_ends_at_any_write_keeps_its_word_and_the_chain_goes_on",),
    ),
    Removal(
        "a power cut of all after a vote whose block is on no disk",
        "consensus/replica.py",
        "                blocks=tuple(node.block for node in fresh if node is not core.tree.root),\n",
        "                blocks=(),\n",
        (f"{_POINTS}::test_all_machines_lose_power_at_any_write_and_nothing_committed_is_lost",),
    ),
    # --- rollback of the safety record ---
    Removal(
        "a database restored from a backup: the guard is not told",
        "node/storage/chain.py",
        "            self.guard.note(effect.record)\n",
        "            pass\n",
        (f"{_ROLLBACK}::test_a_database_restored_from_a_backup_is_refused_and_says_what_to_do",),
    ),
    Removal(
        "a database restored from a backup: the guard is not asked",
        "node/startup.py",
        "    guard.check(None if record is None else record.to_bytes(), str(home.data_path))\n",
        "",
        (
            f"{_ROLLBACK}::test_a_database_restored_from_a_backup_is_refused_and_says_what_to_do",
            f"{_ROLLBACK}::test_a_log_that_loses_its_end_unnoticed_is_noticed_by_the_guard",
        ),
    ),
    Removal(
        "a guard that was deleted",
        "node/startup.py",
        "        if was_used or record is not None:\n",
        "        if False:\n",
        (f"{_ROLLBACK}::test_a_missing_guard_is_refused_also_where_the_note_of_use_is_missing",),
    ),
    Removal(
        "a guard whose only copy is torn by a crash",
        "node/storage/guard.py",
        "        slot = (self._slot + 1) % SLOTS\n",
        "        slot = self._slot\n",
        (f"{_GUARD}::test_a_write_that_is_torn_anywhere_leaves_the_one_before",),
    ),
    Removal(
        "a torn guard that is believed",
        "node/storage/guard.py",
        'if not body or check != digest("safety-guard", body):',
        "if not body or not check:",
        (f"{_GUARD}::test_a_write_that_is_torn_anywhere_leaves_the_one_before",),
    ),
    Removal(
        "another record of the same rounds",
        "node/storage/guard.py",
        "if (record.epoch, rounds) == (mark.epoch, mark.rounds) and _digest(data) != mark.record:",
        "if not rounds:",
        (f"{_GUARD}::test_a_record_that_is_older_in_any_respect_or_another_is_refused",),
    ),
    Removal(
        "a validator whose database is gone begins anew",
        "node/startup.py",
        "    if store.chain_id() is None and path.is_file() and path.read_text().strip() == chain.hex():\n",
        "    if not chain:\n",
        (f"{_STARTUP}::test_a_validator_whose_database_is_gone_does_not_begin_anew_on_the_same_chain",),
    ),
    # --- one key in two places ---
    Removal(
        "a second process with the same key, or a whole home that is an old copy",
        "node/driver.py",
        "            if (found := self.replica.foreign_signature) is not None:\n",
        "            if (found := self.replica.foreign_signature) is not None and not effects:\n",
        (
            f"{_DRIVER}::test_a_signature_of_our_key_that_we_did_not_make_ends_the_daemon_before_anything_is_written_or_sent",
        ),
    ),
    Removal(
        "a daemon that was stopped for a foreign signature and is started again",
        "node/storage/chain.py",
        "            self.guard.note_foreign(found)\n",
        "            pass\n",
        (_OLD_COPY,),
    ),
    Removal(
        "an old copy that proposes and times out before it has heard anybody",
        "node/driver.py",
        "        self._listen_ms = listen_ms\n",
        "        self._listen_ms = 0\n",
        (f"{_DRIVER}::test_a_validator_first_listens_and_starts_nothing",),
    ),
    Removal(
        "our vote in a QC",
        "consensus/certificates.py",
        "    notice_qc(core, qc)\n",
        "",
        (f"{_NOTICED}[QC]",),
    ),
    Removal(
        "our commit vote in a CC",
        "consensus/certificates.py",
        "    notice_cc(core, cc)\n",
        "",
        (f"{_NOTICED}[CC]",),
    ),
    Removal(
        "our timeout in a TC",
        "consensus/certificates.py",
        "    notice_tc(core, tc)\n",
        "",
        (f"{_NOTICED}[TC]",),
    ),
    Removal(
        "our timeout on its own",
        "consensus/timeouts.py",
        "    notice_statement(core, author, timeout)\n",
        "",
        (f"{_NOTICED}[own timeout]",),
    ),
    Removal(
        "a block in our name",
        "consensus/proposals.py",
        "    notice_block(core, block)\n",
        "",
        (f"{_NOTICED}[own block]",),
    ),
    Removal(
        "another statement of ours about the latest round",
        "consensus/custody.py",
        " or (seen[0] == known[0] and seen[1] != known[1])",
        "",
        (f"{_CUSTODY}::test_another_statement_about_the_round_of_the_last_one_is_noticed",),
    ),
    Removal(
        "a second daemon on the same home",
        "node/home.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        ("tests/unit/node/test_keys.py::test_a_home_serves_one_process_until_that_ends_however_it_ends",),
    ),
    # --- LevelDB ---
    Removal(
        "a damaged log or manifest that is taken for a short one",
        "node/storage/database.py",
        "                paranoid_checks=True,\n",
        "                paranoid_checks=False,\n",
        (f"{_DAMAGE}::test_a_flipped_bit_is_reported_or_without_effect[*.log]",),
    ),
    Removal(
        "a damaged table: point reads",
        "node/storage/database.py",
        "self._db.get(key, verify_checksums=True)",
        "self._db.get(key)",
        (f"{_DAMAGE}::test_a_scan_or_read_believes_no_block_whose_checksum_is_wrong",),
    ),
    Removal(
        "a damaged table: scans",
        "node/storage/database.py",
        "self._db.iterator(prefix=prefix, verify_checksums=True)",
        "self._db.iterator(prefix=prefix)",
        (f"{_DAMAGE}::test_a_scan_or_read_believes_no_block_whose_checksum_is_wrong",),
    ),
    Removal(
        "a database without its CURRENT, which LevelDB would empty",
        "node/storage/database.py",
        'if not (path / "CURRENT").exists() and (',
        "if not path.name and (",
        (
            f"{_DAMAGE}::test_a_file_that_is_gone_or_cut_short_is_reported[CURRENT]",
            f"{_SAYS_WHY}[lose_current-1-move it away and restart]",
        ),
    ),
    Removal(
        "a full disk without a word of what to do",
        "node/storage/database.py",
        "            raise DatabaseNotWritable(self.path, str(error)) from error\n",
        "            raise\n",
        (f"{_DAMAGE}::test_a_full_disk_ends_the_write_with_what_to_do_and_keeps_all_that_was_written",),
    ),
)
