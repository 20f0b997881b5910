"""Which node a command talks to, and with which key it signs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from node.cli.output import UsageError
from node.client import Client, NodeUnreachable
from node.config import load_config
from node.home import Home
from node.keys import PlainKey, account_path, check_folder, open_key, read_key
from node.passphrase import unlock_with

URL_VARIABLE = "OPENLEDGER_URL"
HOME_VARIABLE = "OPENLEDGER_HOME"
_URL_BYTES_MAX = 512


def default_home() -> Path:
    """``$OPENLEDGER_HOME``, else ``~/.openledger``."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named)
    try:
        return Path.home() / ".openledger"
    except RuntimeError as error:
        raise UsageError(
            f"you have no home directory here; name one with --home or ${HOME_VARIABLE}"
        ) from error


def add_home_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--home``."""
    text = f"{purpose} (default: ${HOME_VARIABLE}, else ~/.openledger)"
    parser.add_argument("--home", type=Path, metavar="DIR", help=text)


def home_of(parsed: argparse.Namespace) -> Home:
    """The home that ``--home`` or its defaults name; it may not exist."""
    return Home((parsed.home or default_home()).absolute())


def add_node_arguments(parser: argparse.ArgumentParser, timeout_s: float = 60.0) -> None:
    """Add ``--rpc``, ``--home`` and ``--timeout``."""
    text = f"the node to talk to, http://HOST:PORT (default: ${URL_VARIABLE}, else that of --home)"
    parser.add_argument("--rpc", type=_url, metavar="URL", help=text)
    add_home_argument(parser, "home of the node to talk to, and of --key's accounts")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout_s,
        metavar="S",
        help=f"seconds to wait (default: {timeout_s:g})",
    )


def connect(parsed: argparse.Namespace, retries: int = 2) -> Client:
    """Return a client of the node the arguments name: --rpc, $OPENLEDGER_URL, or where --home's daemon listens."""
    url = parsed.rpc
    if url is None and parsed.home is None and os.environ.get(URL_VARIABLE):
        url = _checked_url(os.environ[URL_VARIABLE], f"${URL_VARIABLE}")
    if url is None:
        url = _url_of(home_of(parsed))
    return Client(url, timeout_s=parsed.timeout, retries=retries)


@contextmanager
def reading_answers(client: Client) -> Iterator[None]:
    """Turn what an answer of another shape does to its reader into `NodeUnreachable`: a node says what it likes.

    To be held around nothing but the reading of answers.
    """
    try:
        yield
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = f"its answer has another shape than this program expects ({type(error).__name__})"
        raise NodeUnreachable(client.url, reason) from error


def _url(text: str) -> str:
    try:
        return _checked_url(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _checked_url(text: str, source: str = "") -> str:
    """Return a URL that a `Client` takes; raises `UsageError`."""
    try:
        parts = urlsplit(text)
        good = parts.scheme == "http" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not text.isascii() or not text.isprintable() or len(text) > _URL_BYTES_MAX:
        where = f"{source}: " if source else ""
        raise UsageError(f"{where}expected http://HOST:PORT, got {text[:80]!r}")
    return text


def _url_of(home: Home) -> str:
    """The URL that the home's daemon wrote when it began to listen, else what its configuration says."""
    try:
        with home.rpc_url_path.open(encoding="ascii") as file:
            return _checked_url(file.read(_URL_BYTES_MAX).strip(), str(home.rpc_url_path))
    except (OSError, UnicodeDecodeError):
        rpc = load_config(home.config_path if home.config_path.is_file() else None).rpc
        host = f"[{rpc.host}]" if ":" in rpc.host else rpc.host
        return f"http://{host}:{rpc.port}"


def add_signer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--key``, ``--key-file`` and ``--passphrase-file``."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--key", metavar="NAME", help="sign with the account NAME of --home (`openledger keys list`)"
    )
    group.add_argument("--key-file", type=Path, metavar="FILE", help="sign with the key in FILE")
    add_passphrase_argument(parser, "of an encrypted key")


def add_passphrase_argument(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add ``--passphrase-file``."""
    text = f"file with the passphrase {purpose} (default: $OPENLEDGER_PASSPHRASE or $OPENLEDGER_PASSPHRASE_FILE, else you are asked)"
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help=text)


def load_signer(parsed: argparse.Namespace) -> bytes:
    """Return the 32-byte seed that the arguments name; the passphrase of an encrypted key is looked for here."""
    if parsed.key_file is not None:
        path: Path = parsed.key_file
    else:
        path = account_path(home_of(parsed).accounts_path, parsed.key)
        check_folder(path.parent)
    key = read_key(path)
    if isinstance(key, PlainKey) and parsed.key is not None:
        advice = f"encrypt it with `openledger keys encrypt {parsed.key}`"
        print(f"note: the key {parsed.key} is stored in the clear; {advice}", file=sys.stderr)
    return open_key(path, key, unlock_with(parsed.passphrase_file))


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
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 86400, got {text[:80]!r}")
    return value
