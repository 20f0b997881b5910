"""``openledger signer``: hold a validator's consensus key in a process of its own."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.connection import add_home_argument, add_passphrase_argument, home_of
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result

if TYPE_CHECKING:
    from node.keystore import Passphrase
    from node.signer.home import SignerHome

_GENESIS_BYTES_MAX = 4 << 20
_UID_MAX = 2**31 - 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``signer``."""
    parser.description = (
        "Hold a validator's consensus key, and what it has signed, in a process of its own. A daemon with "
        "[signer] socket asks it for signatures; it refuses whatever would contradict what it signed before."
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("run", "init", "status"),
        default="run",
        metavar="ACTION",
        help="run (default): sign until stopped; init: make the home; status: ask a running signer where it stands",
    )
    add_home_argument(parser, "the signer's home")
    parser.add_argument("--socket", type=Path, metavar="FILE", help="socket (default: HOME/run/signer.sock)")
    text = "run: let processes of this user id connect as well; may be repeated"
    parser.add_argument("--allow-uid", type=_uid, action="append", default=[], metavar="UID", help=text)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--genesis", type=Path, metavar="FILE", help="init: draw a new key for this chain")
    text = "init: move the key of a stopped validator here, with the record of what it signed"
    source.add_argument("--take-over", type=Path, metavar="NODE_HOME", help=text)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--no-passphrase", action="store_true", help="init: store a new key in the clear")
    add_passphrase_argument(group, "of the key")
    add_json_argument(parser)
    add_example(
        parser,
        "openledger signer init --home ~/.signer --take-over ~/.openledger",
        "openledger signer --home ~/.signer",
        "openledger signer status --home ~/.signer",
    )
    parser.set_defaults(run=run)


def _uid(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > _UID_MAX:
        raise argparse.ArgumentTypeError(f"expected a user id, got {text[:80]!r}")
    return int(text)


def run(parsed: argparse.Namespace) -> int:
    """Do what the action says."""
    from node.signer.home import SignerHome

    place = SignerHome(home_of(parsed).root)
    if parsed.action != "init" and (parsed.genesis or parsed.take_over or parsed.no_passphrase):
        raise UsageError("--genesis, --take-over and --no-passphrase belong to `openledger signer init`")
    if parsed.action != "run" and parsed.allow_uid:
        raise UsageError("--allow-uid belongs to `openledger signer run`")
    if parsed.action == "init":
        return _init(parsed, place)
    return _status(parsed, place) if parsed.action == "status" else _run(parsed, place)


def _init(parsed: argparse.Namespace, place: SignerHome) -> int:
    from node.home import Home
    from node.keys import public_key_of, read_key
    from node.keystore import SealedKey
    from node.signer.home import create_signer, take_over

    if parsed.take_over is not None:
        if parsed.no_passphrase or parsed.passphrase_file is not None:
            raise UsageError(
                "a key that is taken over keeps its passphrase; `openledger keys` changes it before"
            )
        take_over(place, Home(parsed.take_over.absolute()))
    elif parsed.genesis is not None:
        create_signer(place, _read(parsed.genesis), _new_passphrase(parsed))
    else:
        raise UsageError("give --genesis FILE for a new key, or --take-over NODE_HOME for one in use")
    key = read_key(place.home.consensus_key_path)
    document = {
        "home": str(place.root),
        "public_key": public_key_of(key).hex(),
        "encrypted": isinstance(key, SealedKey),
        "socket": str(parsed.socket or place.socket_path),
    }
    print_result(document, parsed.as_json, "created")
    if not parsed.as_json:
        print(
            "in the daemon's config.toml:\n\n[signer]\n"
            f'socket = "{document["socket"]}"\npublic_key = "{document["public_key"]}"',
            file=sys.stderr,
        )
    return Exit.OK


def _new_passphrase(parsed: argparse.Namespace) -> Passphrase | None:
    from node.cli.keys import PLAIN_WARNING, new_passphrase

    if parsed.no_passphrase:
        print(PLAIN_WARNING, file=sys.stderr)
        return None
    return new_passphrase(parsed.passphrase_file, "A passphrase for consensus.key")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_GENESIS_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"--genesis {path}: {error.strerror}") from error
    if len(data) > _GENESIS_BYTES_MAX:
        raise UsageError(f"--genesis {path}: over {_GENESIS_BYTES_MAX} bytes")
    return data


def _run(parsed: argparse.Namespace, place: SignerHome) -> int:
    import os

    from node.passphrase import take_variables, unlock_with
    from node.signer.process import main

    variables = take_variables(os.environ)
    unlock = unlock_with(parsed.passphrase_file, variables)
    form = "json" if parsed.as_json else "console"
    return main(place, unlock, parsed.socket or place.socket_path, parsed.allow_uid, form)


def _status(parsed: argparse.Namespace, place: SignerHome) -> int:
    from node.signer.errors import SignerUnavailable
    from node.signer.protocol import AskStatus, Status
    from node.signer.remote import Channel

    path = (parsed.socket or place.socket_path).absolute()
    channel = Channel(path)
    try:
        status = channel.ask(AskStatus())
    finally:
        channel.close()
    if not isinstance(status, Status):
        raise SignerUnavailable(path, "an answer of another kind")
    record = status.record
    document = {
        "public_key": status.public.hex(),
        "chain_id": status.chain_id.hex(),
        "epoch": record.epoch,
        "last_voted": record.last_voted,
        "lock": record.lock,
        "highest_timeout": record.highest_timeout,
        "last_proposed": record.last_proposed,
    }
    print_result(document, parsed.as_json, "signer")
    return Exit.OK
