"""Snapshots, catching up, pruning, rollback: whom a late node believes, what stays on disk, and what a stuck node says."""

from tests.hardening.removal import Removal

_FETCHING = "tests/unit/node/test_snapshot_fetching.py"
_MAKING = "tests/unit/node/test_snapshot_making.py"
_PRUNING = "tests/unit/node/test_pruning.py"
_CATCH_UP = "tests/unit/node/test_catch_up.py"
_OFFLINE = "tests/unit/node/test_cli_offline.py"
_READY = "tests/unit/node/test_rpc_readiness.py"
_LATE = "tests/fuzz/test_late.py"

_LIAR = f"{_FETCHING}::test_a_liar_is_blamed_and_left_and_an_honest_peer_is_enough"
_TYPES = "tests/fuzz/test_fuzz.py::test_no_field_takes_a_boolean_for_an_integer_or_a_value_of_another_type"
_GREAT = f"{_FETCHING}::test_who_claims_a_great_height_costs_a_round_of_questions_and_no_more_for_a_while"
_KEPT = f"{_PRUNING}::test_what_an_honest_peer_may_still_need_stays"

REMOVALS: tuple[Removal, ...] = (
    # --- whom a late node believes ---
    Removal(
        "a state of a peer's own that no header carries",
        "node/snapshot/fetching.py",
        "            if block.header.snapshot_root != manifest.root:\n",
        "            if not manifest.digests:\n",
        (f"{_FETCHING}::test_a_whole_state_of_a_peers_own_is_not_taken",),
    ),
    Removal(
        "a header with a root that nobody voted for",
        "node/snapshot/fetching.py",
        """            context = context_of(self._rows[block.header.epoch], self._chain_id)
            if verify_commit_proof(context, proof)[0] != block.id:
                raise SnapshotInvalid("the proof is of another block")
        except""",
        "        except",
        (f"{_LIAR}[a root that nobody voted for]",),
    ),
    Removal(
        "a chunk that is not the one asked for",
        "node/snapshot/fetching.py",
        "if len(data) > CHUNK_BYTES_MAX or chunk_digest(data, self._chain_id) != name:",
        "if not name:",
        (f"{_LIAR}[another chunk]", f"{_LIAR}[a chunk without end]"),
    ),
    Removal(
        "a state that does not add up to its digest",
        "node/snapshot/fetching.py",
        "        if lthash != head.head.lthash:\n",
        "        if not lthash:\n",
        (f"{_FETCHING}::test_a_state_that_does_not_add_up_is_refused_even_with_a_quorums_root",),
    ),
    Removal(
        "blocks after the state that the proof is not of",
        "node/snapshot/fetching.py",
        """        if verify_commit_proof(context, proof)[0] != blocks[-1].id:
            raise InvalidBlock("committed range: the proof is of another block")
        return Joint""",
        "        return Joint",
        (f"{_LIAR}[a range without its end]",),
    ),
    Removal(
        "keys that come out of order, or twice",
        "node/snapshot/format.py",
        "            if key <= last:\n",
        "            if not key:\n",
        (
            f"{_MAKING}::test_chunks_that_no_node_makes_are_refused[falling]",
            f"{_MAKING}::test_chunks_that_no_node_makes_are_refused[twice]",
        ),
    ),
    Removal(
        "a head whose digests are not those of its own LtHash",
        "node/snapshot/format.py",
        "state_digest(lthash, chain_id) != digest_",
        "not digest_",
        (f"{_MAKING}::test_a_head_that_contradicts_itself_is_refused",),
    ),
    Removal(
        "a peer that claims a great height makes a node skip blocks",
        "node/snapshot/late.py",
        "        above = here if gone else here + self.section.lag_heights_max // 2\n",
        "        above = here\n",
        (_GREAT,),
    ),
    Removal(
        "a peer that claims a great height makes a node ask for ever",
        "node/snapshot/late.py",
        "        if trio.current_time() < self._tried_s + PAUSE_S:\n",
        "        if height < here:\n",
        (_GREAT,),
    ),
    Removal(
        "one peer that says that blocks are gone",
        "node/sync.py",
        "        return bool(self._pruned) and awake <= self._pruned\n",
        "        return bool(self._pruned)\n",
        (
            f"{_FETCHING}::test_blocks_that_everybody_ahead_has_pruned_are_noticed_and_one_alone_is_not_believed",
        ),
    ),
    # --- installing ---
    Removal(
        "a snapshot that is half installed and then believed",
        "node/storage/upkeep.py",
        "        self._db.write({_INSTALLING: plan.mark}, sync=True)\n",
        "",
        (f"{_FETCHING}::test_an_installation_that_is_interrupted_anywhere_is_done_again",),
    ),
    Removal(
        "a half installed snapshot whose chunks are gone",
        "node/snapshot/plan.py",
        '        if begun is not None:\n            raise StorageError(\n                f"a snapshot was half',
        '        if False:\n            raise StorageError(\n                f"a snapshot was half',
        (f"{_FETCHING}::test_a_database_half_overwritten_whose_snapshot_is_gone_is_refused",),
    ),
    Removal(
        "a chunk that rots before it is installed",
        "node/snapshot/plan.py",
        "        for _ in incoming.chunks(manifest, chain_id):\n            pass\n",
        "",
        (f"{_FETCHING}::test_a_chunk_that_rots_before_it_is_installed_costs_another_fetch_and_nothing_else",),
    ),
    Removal(
        "an installation that forgets what the key has signed",
        "node/storage/upkeep.py",
        "            _CERTIFICATES: None,\n            PRUNED_KEY",
        '            _CERTIFICATES: None,\n            b"msafety": None,\n            PRUNED_KEY',
        (f"{_FETCHING}::test_the_safety_record_survives_an_installation",),
    ),
    # --- making ---
    Removal(
        "a process that ends before a root is known",
        "node/snapshot/making.py",
        "            overlay |= found.values\n",
        "",
        (f"{_MAKING}::test_a_process_that_ends_before_the_root_is_known_finds_the_state_again[1]",),
    ),
    Removal(
        "a full disk ends the daemon",
        "node/snapshot/making.py",
        "        except OSError as error:\n",
        "        except ZeroDivisionError as error:\n",
        (f"{_MAKING}::test_a_full_disk_costs_the_files_and_never_the_root",),
    ),
    Removal(
        "half a snapshot stays on disk",
        "node/snapshot/files.py",
        "            shutil.rmtree(left_over)\n",
        "            pass\n",
        (f"{_MAKING}::test_half_a_snapshot_is_swept_and_the_newest_few_stay",),
    ),
    # --- pruning ---
    Removal(
        "pruned: an old batch that a later block names again",
        "node/storage/upkeep.py",
        '                if self._db.get(b"n" + name) == key:\n',
        "                if name:\n",
        (f"{_PRUNING}::test_a_batch_that_a_later_block_names_again_outlives_the_first",),
    ),
    Removal(
        "pruned: blocks that whoever starts from a served snapshot needs",
        "node/pruning.py",
        "min(lowest, *snapshots, executed_height",
        "min(lowest, executed_height",
        (f"{_KEPT}[1000-params6-snapshots6-2120]",),
    ),
    Removal(
        "pruned: what evidence can be about",
        "node/pruning.py",
        "RETAIN_HEIGHTS_MIN, params.evidence_heights)",
        "RETAIN_HEIGHTS_MIN)",
        (f"{_KEPT}[1000-params3-snapshots3-3121]",),
    ),
    Removal(
        "pruned: committed blocks that are not executed",
        "node/storage/upkeep.py",
        "low + HEIGHTS_PER_WRITE, self._store.executed().height)",
        "low + HEIGHTS_PER_WRITE)",
        (f"{_PRUNING}::test_what_is_not_executed_is_never_pruned",),
    ),
    Removal(
        "batches that earlier runs left unused stay for ever",
        "node/pruning.py",
        "                self._store.drop_batch(name)\n",
        "                continue\n",
        (f"{_PRUNING}::test_batches_that_an_earlier_run_left_unused_go_and_named_ones_stay",),
    ),
    # --- catching up ---
    Removal(
        "a peer that lies or stalls is asked again and again",
        "node/sync.py",
        '            self._network.penalise(peer_id, WRONG_BYTES_POINTS, f"bad range: {error}")\n            self._rest(peer_id)\n',
        '            self._network.penalise(peer_id, WRONG_BYTES_POINTS, f"bad range: {error}")\n',
        (f"{_CATCH_UP}::test_a_peer_that_fails_in_the_middle_is_left_and_the_others_are_enough[lies]",),
    ),
    Removal(
        "more is fetched than execution takes",
        "node/sync.py",
        "            while self._executor.waiting_blocks > WAITING_BLOCKS_MAX:\n",
        "            while self._executor.waiting_blocks < 0:\n",
        (f"{_CATCH_UP}::test_no_more_is_fetched_than_execution_can_take",),
    ),
    Removal(
        "a late node is serial: it fetches only while nothing executes",
        "node/sync.py",
        "WAITING_BLOCKS_MAX = 4 * RANGE_BLOCKS_MAX\n",
        "WAITING_BLOCKS_MAX = 0\n",
        (f"{_CATCH_UP}::test_fetching_goes_on_while_blocks_execute",),
    ),
    Removal(
        "true chunks under a false height, which make all honest peers look as if they had nothing",
        "node/snapshot/fetching.py",
        "            if manifest.height != snapshot_height(block.header.executed_height, self._every):",
        "            if not manifest.height:",
        (f"{_LIAR}[another height for the same chunks]",),
    ),
    # --- what a stranger's row or a damaged file may raise ---
    Removal(
        "a set that cannot be, beside a true hand-over: what it raises ends the node",
        "node/epochs.py",
        "    except ValueError as error:\n        raise CodecError",
        "    except KeyError as error:\n        raise CodecError",
        (
            f"{_LATE}::test_a_row_with_a_set_that_consensus_cannot_have_is_no_row",
            f"{_LIAR}[an epoch of a set that cannot be]",
        ),
    ),
    Removal(
        "a row whose set is in another order than what was handed over to",
        "node/epochs.py",
        "    if ordered != [entry.consensus_key for entry in row.validators.validators]:",
        "    if not ordered:",
        (f"{_LATE}::test_a_row_with_a_set_that_consensus_cannot_have_is_no_row[out of order]",),
    ),
    Removal(
        "a peer's own accounts and addresses for the validators",
        "node/snapshot/fetching.py",
        "    return (*rows[:-1], replace(last, validators=validators))",
        "    return rows",
        (f"{_LATE}::test_only_the_state_says_whose_accounts_and_addresses_the_validators_have",),
    ),
    Removal(
        "a plan of another shape raises what nobody catches",
        "node/snapshot/plan.py",
        '    if type(item) is not bytes:\n        fields.fail("plan: not bytes")\n',
        "",
        (f"{_LATE}::test_a_plan_of_other_shapes_is_refused_as_damaged",),
    ),
    Removal(
        "a plan beside the manifest of another snapshot",
        "node/snapshot/plan.py",
        "        if plan.root != manifest.root:",
        "        if not plan.root:",
        (f"{_FETCHING}::test_a_plan_beside_the_manifest_of_another_snapshot_is_not_installed",),
    ),
    Removal(
        "a manifest with true for its version",
        "node/snapshot/files.py",
        "    known = type(version) is int and version == MANIFEST_VERSION",
        "    known = version == MANIFEST_VERSION",
        (f"{_TYPES}[manifest]",),
    ),
    Removal(
        "a snapshot's head with true for its version",
        "node/snapshot/format.py",
        "        if type(version) is not int or version != SNAPSHOT_VERSION or",
        "        if version != SNAPSHOT_VERSION or",
        (f"{_TYPES}[snapshot-head]",),
    ),
    Removal(
        "a value that should have been cut",
        "node/snapshot/format.py",
        "        if len(value) > VALUE_PART_BYTES:\n            raise",
        "        if len(value) < 0:\n            raise",
        (f"{_LATE}::test_a_value_that_should_have_been_cut_is_refused",),
    ),
    Removal(
        "a node that forgets blocks on a chain that nobody could join then",
        "node/node.py",
        "        check_retention(document, config.storage.retain_heights)\n",
        "",
        (
            "tests/unit/node/test_startup.py::test_a_node_that_forgets_blocks_on_a_chain_without_snapshots_is_refused",
        ),
    ),
    Removal(
        "a snapshot that is not on disk, and nobody told",
        "node/observe.py",
        "storage_snapshot_failed=int(bool(node.snapshots.problem)),",
        "storage_snapshot_failed=0,",
        (
            "tests/unit/node/test_rpc_readiness.py::test_a_snapshot_that_could_not_be_written_shows_in_the_metrics",
        ),
    ),
    # --- commands, and what a stuck node says ---
    Removal(
        "a rollback to a height that nothing proves",
        "node/offline.py",
        "    while target > 0 and store.proof_at(target) is None:\n",
        "    while target < 0:\n",
        (f"{_OFFLINE}::test_rollback_ends_at_a_height_with_a_proof_and_not_below_what_is_remembered",),
    ),
    Removal(
        "a dump that says where passphrases lie",
        "node/cli/debug.py",
        'hidden = _REDACTED if config.keys.passphrase_file else ""',
        "hidden = config.keys.passphrase_file",
        (f"{_OFFLINE}::test_a_dump_of_a_node_at_rest_has_no_secret",),
    ),
    Removal(
        "ready with a full disk",
        "node/observe.py",
        "    if standing.disk_free_bytes < DISK_FREE_BYTES_MIN:\n",
        "    if standing.disk_free_bytes < 0:\n",
        (f"{_READY}::test_each_reason_alone_is_enough[disk]",),
    ),
    Removal(
        "ready although execution does not keep up",
        "node/observe.py",
        "    if standing.blocks_waiting > BLOCKS_WAITING_MAX:\n",
        "    if standing.blocks_waiting < 0:\n",
        (f"{_READY}::test_each_reason_alone_is_enough[behind]",),
    ),
    Removal(
        "ready although transactions wait and nothing is committed",
        "node/observe.py",
        "silence_ms_max = standing.pending_silence_ms_max if waits else SILENCE_MS_MAX\n",
        "silence_ms_max = SILENCE_MS_MAX\n",
        (f"{_READY}::test_each_reason_alone_is_enough[pending]",),
    ),
)
