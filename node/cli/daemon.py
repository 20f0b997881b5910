"""``openledger init`` and ``openledger start``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.connection import add_home_argument, home_of
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result

if TYPE_CHECKING:
    from node.home import Home

_GENESIS_BYTES_MAX = 16 * 2**20


def configure_init(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``init``."""
    add_home_argument(parser, "where to create the home")
    parser.add_argument("--validator", action="store_true", help="create consensus and beacon keys as well")
    parser.add_argument("--moniker", metavar="NAME", help="the node's name (default: node)")
    parser.add_argument(
        "--genesis", type=Path, metavar="FILE", help="copy the chain's genesis.json from FILE"
    )
    add_set_argument(parser)
    add_json_argument(parser)
    add_example(
        parser, "openledger init --home ~/.openledger --validator --moniker alice --genesis genesis.json"
    )
    parser.set_defaults(run=run_init)


def configure_start(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``start``."""
    add_home_argument(parser, "the node's home")
    add_set_argument(parser)
    add_example(
        parser,
        "openledger start --home ~/.openledger",
        "openledger start --home ~/.openledger --set rpc.port=0 --set log.format=json",
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
        raise argparse.ArgumentTypeError(f"expected SECTION.KEY=VALUE, got {text!r}")
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
    config = load_config(None, environment={}, overrides=overrides)
    genesis = None
    if parsed.genesis is not None:
        genesis = _read_genesis(parsed.genesis)
    home = create_home(home_of(parsed).root, config, genesis)
    document: dict[str, object] = {
        "home": str(home.root),
        "moniker": config.node.moniker,
        "validator": config.node.validator,
        "account": public_key(load_seed(home.account_key_path)).hex(),
        "genesis": home.genesis_path.is_file(),
    }
    document["peer_id"] = peer_id_of_seed(load_seed(home.node_key_path))
    if config.node.validator:
        document |= _validator_keys(home)
    print_result(document, parsed.as_json, "created")
    return Exit.OK


def _validator_keys(home: Home) -> dict[str, object]:
    """What a genesis says of this validator, besides account, peer id and stake."""
    from consensus.beacon import BeaconChain
    from node.keys import load_seed, public_key
    from node.startup import BEACON_REVEALS

    return {
        "consensus_key": public_key(load_seed(home.consensus_key_path)).hex(),
        "beacon_anchor": BeaconChain(load_seed(home.beacon_key_path), BEACON_REVEALS).anchor.hex(),
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

    overrides = dict(parsed.overrides)
    # Before the heavy imports and before logging is set up: these mistakes are the user's to mend, in one line.
    load_config(open_home(home_of(parsed).root).config_path, overrides=overrides)

    from node.daemon import main

    return main(home_of(parsed).root, overrides)
