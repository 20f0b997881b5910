"""``openledger keys``: accounts kept in HOME/accounts, one file each, in the clear and 0600 (see `node.keys`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node.cli.connection import add_home_argument, home_of
from node.cli.output import (
    Exit,
    UsageError,
    add_example,
    add_json_argument,
    print_json,
    print_result,
    print_rows,
)
from node.keys import account_path, generate_seed, list_accounts, load_seed, public_key, store_seed


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``keys``."""
    parser.description = (
        "Create and list account keys. An account's address is its public key. Seeds are stored in the clear, readable by "
        "you alone (0600)."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = _action(actions, "new", "create an account", run_new)
    new.add_argument("name")
    add_example(new, "openledger keys new alice")
    add_example(_action(actions, "list", "list accounts", run_list), "openledger keys list --json")
    show = _action(actions, "show", "show an account's address", run_show)
    show.add_argument("name")
    add_example(show, "openledger keys show alice")
    bring = _action(actions, "import", "store a seed under a name", run_import)
    bring.add_argument("name")
    bring.add_argument(
        "--file",
        type=Path,
        required=True,
        metavar="FILE",
        help="a key file: 64 hex digits, 0600; - reads them from standard input",
    )
    add_example(bring, "openledger keys import alice --file alice.key")
    out = _action(actions, "export", "write an account's seed to a new file (0600)", run_export)
    out.add_argument("name")
    out.add_argument(
        "--file", type=Path, required=True, metavar="FILE", help="where to write it; never overwritten"
    )
    add_example(out, "openledger keys export alice --file alice.key")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: object
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_home_argument(parser, "home whose accounts to use")
    add_json_argument(parser)
    parser.set_defaults(run=run)
    return parser


def run_new(parsed: argparse.Namespace) -> int:
    """Generate a key."""
    return _store(parsed, generate_seed())


def run_import(parsed: argparse.Namespace) -> int:
    """Store a seed from a file or standard input."""
    if str(parsed.file) == "-":
        text = sys.stdin.read(66).strip()
        if len(text) != 64 or text.strip("0123456789abcdef"):
            raise UsageError("standard input: expected 64 lowercase hex digits")
        return _store(parsed, bytes.fromhex(text))
    return _store(parsed, load_seed(parsed.file))


def _store(parsed: argparse.Namespace, seed: bytes) -> int:
    path = _path(parsed)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    store_seed(path, seed)
    document = {"name": parsed.name, "address": public_key(seed).hex(), "file": str(path)}
    print_result(document, parsed.as_json)
    return Exit.OK


def run_list(parsed: argparse.Namespace) -> int:
    """List accounts by name."""
    rows: list[dict[str, object]] = [
        {"name": key.name, "address": key.address.hex(), "file": str(key.path)}
        for key in list_accounts(home_of(parsed).accounts_path)
    ]
    if parsed.as_json:
        print_json(rows)
    else:
        print_rows("accounts", rows)
    return Exit.OK


def run_show(parsed: argparse.Namespace) -> int:
    """Show one account's address, never its seed."""
    path = _path(parsed)
    document = {"name": parsed.name, "address": public_key(load_seed(path)).hex(), "file": str(path)}
    print_result(document, parsed.as_json)
    return Exit.OK


def run_export(parsed: argparse.Namespace) -> int:
    """Copy a seed into a new file."""
    store_seed(parsed.file, load_seed(_path(parsed)))
    print_result({"name": parsed.name, "file": str(parsed.file)}, parsed.as_json)
    return Exit.OK


def _path(parsed: argparse.Namespace) -> Path:
    return account_path(home_of(parsed).accounts_path, parsed.name)
