"""What holds key files, passphrases, the configuration and the command line."""

from tests.hardening.removal import Removal

KEYS = "tests/unit/node/test_keys.py::"
STORE = "tests/unit/node/test_keystore.py::"
PASSPHRASE = "tests/unit/node/test_keystore_passphrase.py::"
CONFIG = "tests/unit/node/test_config.py::"
COMMANDS = "tests/unit/node/test_cli_keys.py::"
ERRORS = "tests/unit/node/test_cli_errors.py::"
DAEMON = "tests/integration/test_cli_daemon.py::"

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

REMOVALS: tuple[Removal, ...] = (*_FILES, *_FORMAT, *_PASSPHRASES, *_CONFIG, *_COMMANDS)
