"""What holds key files, passphrases, the configuration and the command line."""

from tests.hardening.removal import Removal

KEYS = "tests/unit/node/test_keys.py::"
STORE = "tests/unit/node/test_keystore.py::"
PASSPHRASE = "tests/unit/node/test_keystore_passphrase.py::"
CONFIG = "tests/unit/node/test_config.py::"
COMMANDS = "tests/unit/node/test_cli_keys.py::"
ERRORS = "tests/unit/node/test_cli_errors.py::"
DAEMON = "tests/integration/test_cli_daemon.py::"
STARTUP = "tests/unit/node/test_startup.py::"

_SIGNATURES = tuple(
    Removal(
        threat=f"a {who} whose library takes signatures that do not count",
        file=file,
        text="        check_signature_rule()\n",
        instead="",
        tests=(STARTUP + "test_neither_daemon_nor_signer_runs_where_other_signatures_count",),
    )
    for who, file in (("daemon", "node/daemon.py"), ("signer", "node/signer/process.py"))
)

_FILES = (
    Removal(
        threat="a symbolic link in a key's place",
        file="node/keys.py",
        text=" | os.O_NOFOLLOW",
        instead="",
        tests=(KEYS + "test_a_symbolic_link_to_a_key_is_refused",),
    ),
    Removal(
        threat="a pipe or a folder in a key's place",
        file="node/keys.py",
        text="if not stat.S_ISREG(details.st_mode):",
        instead="if False:",
        tests=(KEYS + "test_absent_keys_folders_and_pipes_are_refused",),
    ),
    Removal(
        threat="a key that another user put there",
        file="node/keys.py",
        text='owner if details.st_uid != mine else ""',
        instead='""',
        tests=(KEYS + "test_another_users_key_is_refused",),
    ),
    Removal(
        threat="a key or folder of keys that others may read or write",
        file="node/keys.py",
        text='exposed if mode & 0o077 else ""',
        instead='""',
        tests=(
            KEYS + "test_a_key_that_others_may_read_or_write_is_refused",
            KEYS + "test_a_folder_that_others_may_enter_is_refused",
        ),
    ),
    Removal(
        threat="a node's folder of keys that others may write to",
        file="node/startup.py",
        text="    check_folder(home.node_key_path.parent)\n",
        instead="",
        tests=(KEYS + "test_a_node_refuses_keys_in_a_folder_that_others_may_enter",),
    ),
    Removal(
        threat="a signer's folder of keys that others may write to",
        file="node/cli/connection.py",
        text="        check_folder(path.parent)\n",
        instead="",
        tests=(COMMANDS + "test_every_command_refuses_a_folder_of_keys_that_others_may_enter",),
    ),
    Removal(
        threat="a key that is overwritten",
        file="node/keys.py",
        text="write_new(path, data, mode=0o600)",
        instead="write_atomic(path, data, mode=0o600)",
        tests=(
            KEYS + "test_a_key_is_never_overwritten",
            KEYS + "test_an_encrypted_key_comes_back_under_the_same_rules",
        ),
    ),
    Removal(
        threat="a key that is written for others to read",
        file="node/keys.py",
        text="write_new(path, data, mode=0o600)",
        instead="write_new(path, data, mode=0o644)",
        tests=(KEYS + "test_a_stored_seed_comes_back_and_only_its_owner_may_read_it",),
    ),
    Removal(
        threat="a key that is replaced by one that does not open",
        file="node/keys.py",
        text="if open_sealed(path, parse_sealed(path, data), passphrase) != seed:",
        instead="if False:",
        tests=(KEYS + "test_a_key_that_does_not_open_again_is_not_replaced",),
    ),
)

_FORMAT = (
    Removal(
        threat="a key file that demands memory",
        file="node/keystore.py",
        text=" or memory_bytes > high.memory_bytes",
        instead="",
        tests=(STORE + "test_a_hostile_cost_is_refused_before_it_is_paid[1-1073741825]",),
    ),
    Removal(
        threat="a key file that demands time",
        file="node/keystore.py",
        text="passes > high.passes or ",
        instead="",
        tests=(STORE + "test_a_hostile_cost_is_refused_before_it_is_paid[17-8192]",),
    ),
    Removal(
        threat="a public key that is not the seed's",
        file="node/keystore.py",
        text="if public_key(seed) != sealed.public_key:",
        instead="if False:",
        tests=(STORE + "test_another_public_key_is_noticed_once_the_file_is_opened",),
    ),
    Removal(
        threat="a key file with a flipped bit",
        file="node/keystore.py",
        text='if members["checksum"] != ',
        instead='if members["checksum"] is None and members["checksum"] != ',
        tests=(STORE + "test_every_flipped_bit_is_noticed_before_the_passphrase_is_used",),
    ),
    Removal(
        threat="a member of a key file that comes twice",
        file="node/keystore.py",
        text="if len(members) != len(pairs):",
        instead="if False:",
        tests=(STORE + "test_no_member_may_be_missing_or_come_twice",),
    ),
    Removal(
        threat="a member of a key file that is unknown or missing",
        file="node/keystore.py",
        text="if not isinstance(value, dict) or set(value) != names:",
        instead="if not isinstance(value, dict):",
        tests=(STORE + "test_what_is_not_of_the_form_is_refused_though_its_checksum_is_right",),
    ),
    Removal(
        threat="a key file of any size",
        file="node/keystore.py",
        text="if len(data) > SEALED_BYTES_MAX:",
        instead="if False:",
        tests=(STORE + "test_a_file_over_its_limit_is_refused_though_it_would_parse",),
    ),
    Removal(
        threat="a key file that is deeply nested",
        file="node/keystore.py",
        text="except (ValueError, RecursionError):",
        instead="except ValueError:",
        tests=(STORE + "test_deep_nesting_is_refused",),
    ),
    Removal(
        threat="a machine without the memory to open a key",
        file="node/keystore.py",
        text="except (SodiumError, MemoryError) as error:",
        instead="except ZeroDivisionError as error:",
        tests=(STORE + "test_too_little_memory_is_an_error_that_says_how_much_is_needed",),
    ),
    Removal(
        threat="a passphrase in a log",
        file="node/keystore.py",
        text='return "Passphrase(...)"',
        instead="return repr(self._secret)",
        tests=(STORE + "test_a_passphrase_and_what_holds_it_print_as_nothing",),
    ),
)

_PASSPHRASES = (
    Removal(
        threat="a passphrase file that others may read",
        file="node/passphrase.py",
        text="if stat.S_ISREG(details.st_mode) and details.st_mode & 0o077:",
        instead="if False:",
        tests=(PASSPHRASE + "test_a_file_that_others_may_read_is_refused",),
    ),
    Removal(
        threat="a passphrase that child processes inherit",
        file="node/passphrase.py",
        text="name: environment.pop(name)",
        instead="name: environment[name]",
        tests=(PASSPHRASE + "test_a_nodes_environment_beats_its_configuration_and_is_not_inherited",),
    ),
    Removal(
        threat="a passphrase that a guess finds at once",
        file="node/passphrase.py",
        text="if passphrase.characters < PASSPHRASE_CHARACTERS_MIN:",
        instead="if False:",
        tests=(COMMANDS + "test_a_short_passphrase_encrypts_nothing",),
    ),
    Removal(
        threat="a passphrase that was mistyped when it was set",
        file="node/passphrase.py",
        text='if not passphrase.equals(ask_passphrase("The same again: ")):',
        instead='if ask_passphrase("The same again: ") is None:',
        tests=(DAEMON + "test_two_different_answers_write_no_key",),
    ),
    Removal(
        threat="a passphrase that is changed for some of a node's keys",
        file="node/cli/keys.py",
        text="        open_key(path, read_key(path), unlock)\n",
        instead="        pass\n",
        tests=(COMMANDS + "test_a_passphrase_is_changed_for_all_of_a_nodes_keys_or_for_none",),
    ),
)

_CONFIG = (
    Removal(
        threat="an unknown key in config.toml",
        file="node/config.py",
        text="        raise ConfigInvalid(name, _key_expected(section, key, known))\n",
        instead="        return config\n",
        tests=(CONFIG + "test_what_is_unknown_or_out_of_bounds_is_refused_by_name",),
    ),
    Removal(
        threat="a variable with a typing error in its section",
        file="node/config.py",
        text="elif near := get_close_matches(section, _sections(), n=1):",
        instead="elif near := list[str]():",
        tests=(CONFIG + "test_a_variable_that_nearly_names_a_section_is_refused",),
    ),
    Removal(
        threat="a value of another type in config.toml",
        file="node/config.py",
        text="if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:",
        instead="if not isinstance(value, int) or not low <= value <= high:",
        tests=(CONFIG + "test_what_is_unknown_or_out_of_bounds_is_refused_by_name",),
    ),
    Removal(
        threat="a deeply nested config.toml",
        file="node/config.py",
        text="except RecursionError:",
        instead="except ZeroDivisionError:",
        tests=(CONFIG + "test_what_the_toml_reader_itself_trips_over_is_refused_in_a_short_line[nested]",),
    ),
    Removal(
        threat="a number of thousands of digits in config.toml",
        file="node/config.py",
        text="    except ValueError as error:\n        # Not only",
        instead="    except tomllib.TOMLDecodeError as error:\n        # Not only",
        tests=(
            CONFIG + "test_what_the_toml_reader_itself_trips_over_is_refused_in_a_short_line[long-decimal]",
        ),
    ),
    Removal(
        threat="a value that Python refuses to write",
        file="node/errors.py",
        text="    except ValueError:\n",
        instead="    except ZeroDivisionError:\n",
        tests=(CONFIG + "test_what_the_toml_reader_itself_trips_over_is_refused_in_a_short_line[long-hex]",),
    ),
    Removal(
        threat="a configuration that is written and cannot be read",
        file="node/config.py",
        text="json.dumps(value, ensure_ascii=False)",
        instead="json.dumps(value)",
        tests=(CONFIG + "test_a_path_in_any_script_is_rendered_as_toml",),
    ),
)

_COMMANDS = (
    Removal(
        threat="terminal escapes in text from strangers",
        file="node/cli/output.py",
        text="    if text.isprintable():\n",
        instead="    if text:\n",
        tests=(ERRORS + "test_text_from_strangers_cannot_move_the_cursor_or_reorder_the_line",),
    ),
    Removal(
        threat="a node that answers another shape",
        file="node/cli/connection.py",
        text="        raise NodeUnreachable(client.url, reason) from error\n",
        instead="        raise\n",
        tests=(ERRORS + "test_a_node_that_answers_another_shape_is_not_our_fault",),
    ),
    Removal(
        threat="a URL that is none",
        file="node/cli/connection.py",
        text="    except ValueError:\n        good = False\n",
        instead="    except ZeroDivisionError:\n        good = False\n",
        tests=(ERRORS + "test_a_mistake_is_one_line_that_says_what_to_do",),
    ),
    Removal(
        threat="a node that accepts and never answers",
        file="node/cli/query.py",
        text="connect(parsed, retries=0)",
        instead="connect(parsed)",
        tests=(ERRORS + "test_a_status_of_a_node_that_never_answers_is_asked_once",),
    ),
    Removal(
        threat="output that was lost, reported as done",
        file="node/cli/main.py",
        text="        sys.stdout.flush()\n",
        instead="        pass\n",
        tests=(ERRORS + "test_a_reader_that_leaves_and_a_full_disk_have_their_exit_codes",),
    ),
    Removal(
        threat="a submitted transaction that Ctrl-C hides",
        file="node/cli/tx.py",
        text="    except KeyboardInterrupt:\n",
        instead="    except ZeroDivisionError:\n",
        tests=(ERRORS + "test_ctrl_c_names_the_transaction_that_was_submitted",),
    ),
    Removal(
        threat="an amount with more decimals than money has",
        file="node/cli/tx.py",
        text="if len(decimals) > _DECIMALS:",
        instead="if False:",
        tests=(ERRORS + "test_a_mistake_is_one_line_that_says_what_to_do",),
    ),
    Removal(
        threat="a fault of ours, shown as a traceback",
        file="node/cli/output.py",
        text="            if os.environ.get(TRACEBACK_VARIABLE):\n                raise\n",
        instead="            raise\n",
        tests=(ERRORS + "test_a_fault_of_ours_is_one_line_and_has_its_own_code",),
    ),
)

CUSTODY = "tests/unit/node_signer/test_custodian.py::"
SOCKET = "tests/unit/node_signer/test_signer_socket.py::"
REMOTE = "tests/unit/node_signer/test_remote_signer.py::"
SIGNER_HOME = "tests/unit/node_signer/test_signer_home.py::"

_SIGNER = (
    Removal(
        threat="a signer's signature that leaves before it is on the disk",
        file="node/signer/custodian.py",
        text="        self._book.write(page)\n",
        instead="        self._book.page = page\n",
        tests=(CUSTODY + "test_every_signature_is_on_the_disk_before_it_is_handed_out",),
    ),
    Removal(
        threat="a signer's book from an old copy",
        file="node/signer/custodian.py",
        text="            self._guard.note(page.record.to_bytes())\n",
        instead="            pass\n",
        tests=(
            CUSTODY + "test_a_book_restored_from_an_old_copy_is_refused_by_the_guard",
            CUSTODY + "test_a_book_that_lost_its_latest_page_is_refused_by_the_guard",
        ),
    ),
    Removal(
        threat="a signer's guard that stays behind after a crash",
        file="node/signer/custodian.py",
        text="            guard.note(record.to_bytes())\n",
        instead="            pass\n",
        tests=(
            CUSTODY
            + "test_killed_between_book_and_guard_it_goes_on_and_the_guard_catches_up_before_anything_leaves",
        ),
    ),
    Removal(
        threat="locks whose certificates nobody has after a power cut",
        file="node/signer/custodian.py",
        text="                certificates = _highest(certificates, *relied)\n",
        instead="                pass\n",
        tests=(
            CUSTODY + "test_who_lost_the_certificates_gets_them_back_and_can_go_on",
            CUSTODY + "test_the_tc_that_permitted_a_round_comes_back_too",
        ),
    ),
    Removal(
        threat="a made-up certificate that a signer hands on",
        file="node/signer/custodian.py",
        text="relied = (qc, None if round_ == qc.round + 1 else tc)",
        instead="relied = (qc, tc)",
        tests=(CUSTODY + "test_a_certificate_that_was_not_looked_at_is_not_remembered",),
    ),
    Removal(
        threat="a hand-over that nobody signed, given to a signer",
        file="node/signer/custodian.py",
        text="            verify_handover(self._context, handover)\n",
        instead="",
        tests=(CUSTODY + "test_a_hand_over_that_proves_something_else_is_refused[no quorum]",),
    ),
    Removal(
        threat="a signer that goes on although its key is used elsewhere",
        file="node/signer/custodian.py",
        text="            self._guard.note_foreign(found)\n",
        instead="",
        tests=(CUSTODY + "test_a_signature_that_is_not_in_the_book_ends_the_signer_for_good",),
    ),
    Removal(
        threat="a signer's socket that others may use",
        file="node/signer/server.py",
        text="path.chmod(0o666 if shared else 0o600)",
        instead="path.chmod(0o666)",
        tests=(SOCKET + "test_the_socket_is_for_its_owner_alone_and_goes_with_the_signer",),
    ),
    Removal(
        threat="a folder around the socket that others may enter",
        file="node/signer/server.py",
        text="    folder.chmod(mode)\n",
        instead="",
        tests=(SOCKET + "test_a_folder_that_others_may_enter_is_closed_to_them",),
    ),
    Removal(
        threat="a process of another user at the signer's socket",
        file="node/signer/server.py",
        text="if not admits(uid, self._uids):",
        instead="if False:",
        tests=(SOCKET + "test_whoever_is_of_another_user_gets_no_answer",),
    ),
    Removal(
        threat="another user's process that poses as the signer",
        file="node/signer/remote.py",
        text="if not admits(uid, uids):",
        instead="if False:",
        tests=(REMOTE + "test_whatever_another_user_listens_as_is_not_asked",),
    ),
    Removal(
        threat="a file in the place of the signer's socket",
        file="node/signer/server.py",
        text="if not stat.S_ISSOCK(details.st_mode):",
        instead="if False:",
        tests=(SOCKET + "test_a_stale_socket_is_replaced_and_anything_else_is_left_alone",),
    ),
    Removal(
        threat="connections to the signer that never ask",
        file="node/signer/server.py",
        text='float("inf") if visitor.established else FIRST_REQUEST_S_MAX',
        instead='float("inf")',
        tests=(SOCKET + "test_who_never_asks_is_closed_and_who_has_asked_may_be_silent",),
    ),
    Removal(
        threat="half a request to the signer",
        file="node/signer/server.py",
        text="with trio.fail_after(FRAME_S_MAX):\n                head",
        instead="with trio.CancelScope():\n                head",
        tests=(SOCKET + "test_half_a_frame_has_its_time_and_then_is_closed",),
    ),
    Removal(
        threat="an answer of the signer that nobody takes",
        file="node/signer/server.py",
        text="with trio.fail_after(FRAME_S_MAX):\n                await stream.send_all",
        instead="with trio.CancelScope():\n                await stream.send_all",
        tests=(SOCKET + "test_who_does_not_take_its_answer_is_closed",),
    ),
    Removal(
        threat="a request to the signer of any size",
        file="node/signer/server.py",
        text="length_of(head, REQUEST_BYTES_MAX)",
        instead="length_of(head, 2**32)",
        tests=(SOCKET + "test_garbage_closes_its_connection_and_nothing_else[too long]",),
    ),
    Removal(
        threat="thousands of connections to the signer",
        file="node/signer/server.py",
        text="if len(self._visitors) >= CONNECTIONS_MAX:",
        instead="if False:",
        tests=(SOCKET + "test_thousands_of_connections_leave_the_daemons_own_alone[1000]",),
    ),
    Removal(
        threat="a crowd that pushes the daemon out of its signer",
        file="node/signer/server.py",
        text="for visitor in self._visitors if not visitor.established",
        instead="for visitor in self._visitors",
        tests=(SOCKET + "test_thousands_of_connections_leave_the_daemons_own_alone[1000]",),
    ),
    Removal(
        threat="a signer's answer that does not verify",
        file="node/signer/remote.py",
        text="if author != self.public or not verify(author, message, signature):",
        instead="if False:",
        tests=(
            REMOTE + "test_an_answer_that_is_not_what_was_asked_for_counts_as_no_signer[another key's]",
            REMOTE + "test_an_answer_that_is_not_what_was_asked_for_counts_as_no_signer[does not verify]",
        ),
    ),
    Removal(
        threat="another validator's signer at the socket",
        file="node/signer/remote.py",
        text="if (status.public, status.chain_id) != (self.public, self.chain_id):",
        instead="if False:",
        tests=(REMOTE + "test_a_signer_with_another_key_or_of_another_chain_is_refused",),
    ),
    Removal(
        threat="a signer that stands still and stalls its daemon again and again",
        file="node/signer/remote.py",
        text="            self.drop(error.reason)\n",
        instead="",
        tests=(REMOTE + "test_an_answer_that_is_not_what_was_asked_for_counts_as_no_signer[half a frame]",),
    ),
    Removal(
        threat="a question that was refused, asked again at every step",
        file="node/signer/remote.py",
        text="if known is not None and name is not None and known[0] == name:",
        instead="if known is not None and False:",
        tests=(REMOTE + "test_what_was_refused_is_not_asked_again_at_every_step",),
    ),
    Removal(
        threat="a second daemon of one signer that takes its signatures for a thief's",
        file="consensus/custody.py",
        text="if core.safety is not None and core.safety.disowns(found):",
        instead="if core.safety is not None:",
        tests=(
            REMOTE + "test_a_signature_made_for_the_other_daemon_is_no_alarm_and_one_made_elsewhere_is",
            REMOTE + "test_while_the_signer_is_away_nobody_is_accused",
        ),
    ),
    Removal(
        threat="a leader without its signer that asks for payload for ever",
        file="consensus/leading.py",
        text="        core.payload_asked = True\n        return\n    block = ",
        instead="        return\n    block = ",
        tests=(REMOTE + "test_without_a_signer_it_follows_as_an_observer_and_asks_for_no_payload_again",),
    ),
    Removal(
        threat="one key with two records, in a signer and beside it",
        file="node/startup.py",
        text="    if home.consensus_key_path.exists():\n        # One key",
        instead="    if False:\n        # One key",
        tests=(SIGNER_HOME + "test_a_daemon_with_a_signer_keeps_no_key_beside_it",),
    ),
    Removal(
        threat="a key that is copied to a signer instead of moved",
        file="node/signer/home.py",
        text="        parked.unlink()\n",
        instead="        os.rename(parked, node.consensus_key_path)\n",
        tests=(SIGNER_HOME + "test_a_key_that_is_taken_over_comes_with_what_it_signed_and_leaves_its_home",),
    ),
    Removal(
        threat="a key that is copied back from a signer to a record that lags",
        file="node/signer/home.py",
        text="        node.safety_guard_path.unlink(missing_ok=True)\n",
        instead="",
        tests=(SIGNER_HOME + "test_a_key_that_is_copied_back_is_refused_by_the_home_it_came_from",),
    ),
    Removal(
        threat="a key that is taken over from a home that was rolled back",
        file="node/signer/home.py",
        text="            witness.check(data, str(node.data_path))\n",
        instead="            pass\n",
        tests=(SIGNER_HOME + "test_nothing_is_taken_from_a_home_that_was_rolled_back",),
    ),
)

REMOVALS: tuple[Removal, ...] = (
    *_SIGNATURES,
    *_FILES,
    *_FORMAT,
    *_PASSPHRASES,
    *_CONFIG,
    *_COMMANDS,
    *_SIGNER,
)
