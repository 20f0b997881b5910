"""``openledger init`` and ``openledger start``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.connection import add_home_argument, add_passphrase_argument, home_of
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result
from node.errors import HomeExists

if TYPE_CHECKING:
    from node.home import Home
    from node.keystore import Passphrase
    from node.passphrase import Unlock

_GENESIS_BYTES_MAX = 16 * 2**20


def configure_init(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``init``."""
    add_home_argument(parser, "where to create the home")
    parser.add_argument("--validator", action="store_true", help="create consensus and beacon keys as well")
    parser.add_argument("--moniker", metavar="NAME", help="the node's name (default: node)")
    parser.add_argument(
        "--genesis", type=Path, metavar="FILE", help="copy the chain's genesis.json from FILE"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--no-passphrase", action="store_true", help="store the keys in the clear")
    add_passphrase_argument(group, "to encrypt the keys with; the configuration then names FILE for `start`")
    add_set_argument(parser)
    add_json_argument(parser)
    add_example(
        parser,
        "openledger init --home ~/.openledger --passphrase-file passphrase.txt",
        "openledger init --home ~/.openledger --validator --moniker alice --genesis genesis.json",
    )
    parser.set_defaults(run=run_init)


def configure_start(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``start``."""
    add_home_argument(parser, "the node's home")
    add_passphrase_argument(parser, "of encrypted keys; beats [keys] passphrase_file")
    add_set_argument(parser)
    text = "log in JSON, one object a line; the same as --set log.format=json"
    parser.add_argument("--json", action="store_true", dest="as_json", help=text)
    add_example(
        parser,
        "openledger start --home ~/.openledger",
        "openledger start --home ~/.openledger --set rpc.port=0 --json",
    )
    parser.set_defaults(run=run_start)


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--set SECTION.KEY=VALUE``, the flags that override every other source of configuration."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        type=_override,
        metavar="SECTION.KEY=VALUE",
        help="override a value of config.toml; lists are separated by commas; may be repeated",
    )


def _override(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or "." not in name:
        raise argparse.ArgumentTypeError(f"expected SECTION.KEY=VALUE, got {text[:80]!r}")
    return name, value


def run_init(parsed: argparse.Namespace) -> int:
    """Create a home and print what it is."""
    from node.config import load_config
    from node.home import create_home
    from node.keys import load_seed, public_key
    from node.network.address import peer_id_of_seed

    overrides: dict[str, object] = {"node.validator": parsed.validator, **dict(parsed.overrides)}
    if parsed.moniker is not None:
        overrides["node.moniker"] = parsed.moniker
    if parsed.passphrase_file is not None:
        overrides.setdefault("keys.passphrase_file", str(parsed.passphrase_file.absolute()))
    config = load_config(None, environment={}, overrides=overrides)
    genesis = None
    if parsed.genesis is not None:
        genesis = _read_genesis(parsed.genesis)
    planned = home_of(parsed)
    for path in (planned.config_path, planned.genesis_path):
        if path.exists():
            raise HomeExists(path)
    passphrase = _init_passphrase(parsed)
    if passphrase is not None:
        _draw_encrypted_keys(planned, config.node.validator, passphrase)
    home = create_home(planned.root, config, genesis)
    unlock = None if passphrase is None else lambda path: passphrase
    document: dict[str, object] = {
        "home": str(home.root),
        "moniker": config.node.moniker,
        "validator": config.node.validator,
        "genesis": home.genesis_path.is_file(),
        "encrypted": passphrase is not None,
        "account": public_key(load_seed(home.account_key_path, unlock)).hex(),
        "peer_id": peer_id_of_seed(load_seed(home.node_key_path, unlock)),
    }
    if config.node.validator:
        document |= _validator_keys(home, unlock)
    print_result(document, parsed.as_json, "created")
    return Exit.OK


def _init_passphrase(parsed: argparse.Namespace) -> Passphrase | None:
    """The passphrase for the node's keys; None where they are to be plain, which is said."""
    from node.passphrase import ask_new_passphrase, given_passphrase, has_terminal, require_strong

    passphrase = None
    if not parsed.no_passphrase:
        passphrase = given_passphrase(parsed.passphrase_file)
        if passphrase is not None:
            return require_strong(passphrase, "the passphrase")
        if has_terminal():
            question = "A passphrase for the node's keys (empty: store them in the clear)"
            passphrase = ask_new_passphrase(question, may_be_empty=True)
    if passphrase is None:
        advice = "`openledger keys encrypt --node` encrypts them"
        print(f"warning: the node's keys are stored in the clear; {advice}", file=sys.stderr)
    return passphrase


def _draw_encrypted_keys(home: Home, validator: bool, passphrase: Passphrase) -> None:
    """Draw the keys that `create_home` would draw plain; it keeps the files that it finds, as this does."""
    from node.keys import generate_seed, load_seed, make_folder, store_sealed

    make_folder(home.node_key_path.parent)
    paths = [home.node_key_path, home.account_key_path]
    for path in [*paths, home.consensus_key_path, home.beacon_key_path] if validator else paths:
        if path.exists():
            # Left by an interrupted `init`: it has to open with the same passphrase, or the node would not start.
            load_seed(path, lambda path: passphrase)
        else:
            store_sealed(path, generate_seed(), passphrase)


def _validator_keys(home: Home, unlock: Unlock | None) -> dict[str, object]:
    """What a genesis says of this validator, besides account, peer id and stake."""
    from consensus.beacon import BeaconChain
    from node.keys import load_seed, public_key
    from node.startup import BEACON_REVEALS

    return {
        "consensus_key": public_key(load_seed(home.consensus_key_path, unlock)).hex(),
        "beacon_anchor": BeaconChain(load_seed(home.beacon_key_path, unlock), BEACON_REVEALS).anchor.hex(),
    }


def _read_genesis(path: Path) -> bytes:
    """Return the file's bytes, once the ledger accepts what they say."""
    from node.ledger.genesis import genesis_from_dict

    try:
        with path.open("rb") as file:
            data = file.read(_GENESIS_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"--genesis {path}: {error.strerror}") from error
    if len(data) > _GENESIS_BYTES_MAX:
        raise UsageError(f"--genesis {path}: over {_GENESIS_BYTES_MAX} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--genesis {path}: not JSON ({error})") from error
    genesis_from_dict(document)
    return data


def run_start(parsed: argparse.Namespace) -> int:
    """Run the daemon in the foreground until SIGINT or SIGTERM."""
    from node.config import load_config
    from node.home import open_home
    from node.passphrase import take_variables

    overrides: dict[str, object] = dict(parsed.overrides)
    if parsed.as_json:
        overrides.setdefault("log.format", "json")
    if parsed.passphrase_file is not None:
        overrides["keys.passphrase_file"] = str(parsed.passphrase_file.absolute())
    if "keys.passphrase_file" in overrides:
        # A flag beats the environment.
        take_variables(os.environ)
    # Before the heavy imports and before logging is set up: these mistakes are the user's to mend, in one line.
    load_config(open_home(home_of(parsed).root).config_path, overrides=overrides)

    from node.daemon import main

    return main(home_of(parsed).root, overrides)
