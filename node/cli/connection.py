"""Which node a command talks to, and with which key it signs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from node.client import Client
from node.config import load_config
from node.home import Home
from node.keys import account_path, load_seed

URL_VARIABLE = "OPENLEDGER_URL"
HOME_VARIABLE = "OPENLEDGER_HOME"
_URL_BYTES_MAX = 512


def default_home() -> Path:
    """``$OPENLEDGER_HOME``, else ``~/.openledger``."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".openledger"


def add_home_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--home``."""
    text = f"{purpose} (default: ${HOME_VARIABLE}, else ~/.openledger)"
    parser.add_argument("--home", type=Path, metavar="DIR", help=text)


def home_of(parsed: argparse.Namespace) -> Home:
    """The home that ``--home`` or its defaults name; it may not exist."""
    return Home((parsed.home or default_home()).absolute())


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--rpc``, ``--home`` and ``--timeout``."""
    text = f"the node to talk to (default: ${URL_VARIABLE}, else that of --home)"
    parser.add_argument("--rpc", metavar="URL", help=text)
    add_home_argument(parser, "home of the node to talk to, and of --key's accounts")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (default: 60)"
    )


def connect(parsed: argparse.Namespace) -> Client:
    """Return a client of the node the arguments name: --rpc, $OPENLEDGER_URL, or where --home's daemon listens."""
    url = parsed.rpc or (None if parsed.home else os.environ.get(URL_VARIABLE))
    return Client(url or _url_of(home_of(parsed)), timeout_s=parsed.timeout)


def _url_of(home: Home) -> str:
    """The URL that the home's daemon wrote when it began to listen, else what its configuration says."""
    try:
        with home.rpc_url_path.open(encoding="ascii") as file:
            return file.read(_URL_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError):
        rpc = load_config(home.config_path if home.config_path.is_file() else None).rpc
        host = f"[{rpc.host}]" if ":" in rpc.host else rpc.host
        return f"http://{host}:{rpc.port}"


def add_signer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--key`` and ``--key-file``."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--key", metavar="NAME", help="sign with the account NAME of --home (`openledger keys list`)"
    )
    group.add_argument("--key-file", type=Path, metavar="FILE", help="sign with the seed in FILE")


def load_signer(parsed: argparse.Namespace) -> bytes:
    """Return the 32-byte seed that the arguments name."""
    if parsed.key_file is not None:
        return load_seed(parsed.key_file)
    return load_seed(account_path(home_of(parsed).accounts_path, parsed.key))


def hex_argument(size_bytes: int | None = 32) -> Callable[[str], bytes]:
    """Return an argparse type: lowercase hex of ``size_bytes`` bytes (None: any number) as bytes."""

    def parse(text: str) -> bytes:
        expected = "lowercase hex digits" if size_bytes is None else f"{2 * size_bytes} lowercase hex digits"
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if data.hex() != text or (size_bytes is not None and len(data) != size_bytes):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:80]!r}")
        return data

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 86400, got {text!r}")
    return value
