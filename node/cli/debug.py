"""``openledger debug dump``: one file with what somebody needs who is asked why a node does what it does. No secrets."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from node.cli.connection import add_home_argument, home_of
from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result

if TYPE_CHECKING:
    from node.home import Home

LOG_TAIL_BYTES = 1 << 20
LOGS_MAX = 16
ANSWER_BYTES_MAX = 8 << 20
ANSWER_TIMEOUT_S = 10.0
STACKS_WAIT_S = 5.0
_REDACTED = "(left out)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``debug``."""
    add_example(parser, "openledger debug dump --home ~/.openledger --out node.tar.gz")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    text = "collect configuration, logs, metrics, state and stacks in one file, without secrets"
    dump = kinds.add_parser(
        "dump", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    dump.formatter_class = argparse.RawDescriptionHelpFormatter
    add_home_argument(dump, "the node's home, whether it runs or not")
    dump.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write; never overwritten (default: debug-TIME.tar.gz here)",
    )
    add_json_argument(dump)
    add_example(dump, "openledger debug dump --home ~/.openledger --out node.tar.gz --json")
    dump.set_defaults(run=run_dump)


def run_dump(parsed: argparse.Namespace) -> int:
    """Write the file and print what is in it, and what could not be had and why."""
    from node.errors import HomeExists
    from node.home import open_home, write_new

    home = open_home(home_of(parsed).root)
    out: Path = parsed.out or Path(f"debug-{int(time.time())}.tar.gz")
    parts, missing = collect(home)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(f"debug/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    try:
        write_new(out, buffer.getvalue(), mode=0o600)
    except HomeExists as error:
        raise UsageError(str(error)) from error
    document: dict[str, object] = {
        "file": str(out),
        "bytes": len(buffer.getvalue()),
        "parts": [{"name": name, "bytes": len(data)} for name, data in parts.items()],
        "missing": [{"name": name, "reason": reason} for name, reason in missing.items()],
    }
    print_result(document, parsed.as_json, "debug dump")
    return Exit.OK


def collect(home: Home) -> tuple[dict[str, bytes], dict[str, str]]:
    """What can be had, by name, and what cannot, with the reason. One part that fails costs no other."""
    parts: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    sources: dict[str, Callable[[], bytes]] = {
        "config.toml": lambda: _config(home),
        "genesis.json": lambda: _read(home.genesis_path),
        "versions.json": _versions,
        "files.json": lambda: _files(home),
    }
    pid = _daemon(home)
    if pid is None:
        sources["inspect.json"] = lambda: _inspect(home)
        missing["stacks.txt"] = "the daemon does not run"
    else:
        url = _read(home.rpc_url_path).decode().strip()
        sources["metrics.txt"] = lambda: _get(f"{url}/metrics")
        sources["ready.json"] = lambda: _get(f"{url}/ready")
        sources["status.json"] = lambda: _status(url)
        sources["stacks.txt"] = lambda: _stacks(home, pid)
        missing["inspect.json"] = "the daemon runs; status.json says where it stands"
    for name, source in sources.items():
        try:
            parts[name] = source()
        except Exception as error:  # whatever is wrong is what is looked for: it is written down
            missing[name] = f"{type(error).__name__}: {error}"
    for path in sorted(home.logs_path.glob("*.log*"))[:LOGS_MAX]:
        try:
            parts[f"logs/{path.name}"] = _read(path, LOG_TAIL_BYTES, tail=True)
        except OSError as error:
            missing[f"logs/{path.name}"] = str(error)
    return parts, missing


def _config(home: Home) -> bytes:
    """The configuration in force, without where passphrases lie."""
    from dataclasses import replace

    from node.config import load_config, render_toml

    config = load_config(home.config_path)
    hidden = _REDACTED if config.keys.passphrase_file else ""
    return render_toml(replace(config, keys=replace(config.keys, passphrase_file=hidden))).encode()


def _versions() -> bytes:
    import platform
    from importlib.metadata import version

    from node import __version__
    from node.form import form

    names = ("trio", "libp2p", "plyvel", "pynacl", "blake3", "msgpack", "h11", "starlette")
    found = {"openledger": __version__, "code": form(), "python": platform.python_version()}
    found["system"] = platform.platform()
    return _json(found | {name: version(name) for name in names})


def _files(home: Home) -> bytes:
    """Names and sizes of everything in the home but keys and accounts, whose names are nobody's business."""
    hidden = {home.node_key_path.parent, home.accounts_path}
    rows = []
    for folder, folders, names in os.walk(home.root):
        folders[:] = [name for name in folders if Path(folder, name) not in hidden]
        for name in names:
            path = Path(folder, name)
            try:
                rows.append([str(path.relative_to(home.root)), path.stat().st_size])
            except OSError:
                continue  # removed meanwhile
    return _json(sorted(rows))


def _inspect(home: Home) -> bytes:
    from node.offline import open_offline, summary

    with open_offline(home) as offline:
        return _json(summary(offline, deep=False))


def _daemon(home: Home) -> int | None:
    """Process id of the daemon that holds the home; None where none does."""
    from node.errors import HomeLocked
    from node.home import lock_home

    try:
        with lock_home(home):
            return None
    except HomeLocked as error:
        return error.pid


def _stacks(home: Home, pid: int) -> bytes:
    """Ask the daemon for its stacks, and wait for the file to be replaced."""
    from node.stacks import STACKS_BYTES_MAX, STACKS_SIGNAL, stacks_path

    path = stacks_path(home)
    path.unlink(missing_ok=True)
    os.kill(pid, STACKS_SIGNAL)
    deadline_s = time.monotonic() + STACKS_WAIT_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"the daemon wrote no stacks within {STACKS_WAIT_S:g} s: its event loop stands still"
            )
        time.sleep(0.05)  # another process's file: there is no event to wait for
    return _read(path, STACKS_BYTES_MAX)


def _get(url: str, data: bytes | None = None) -> bytes:
    from urllib.error import HTTPError
    from urllib.request import Request

    if not url.startswith("http://"):
        raise URLError(f"not a node's address: {url[:80]}")
    request = Request(url, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            body: bytes = answer.read(ANSWER_BYTES_MAX)
    except HTTPError as error:  # a node that is not ready says so with a status of its own
        body = error.read(ANSWER_BYTES_MAX)
    return body


def _status(url: str) -> bytes:
    call = {"jsonrpc": "2.0", "id": 1, "method": "status", "params": {}}
    return _get(url, json.dumps(call).encode())


def _read(path: Path, bytes_max: int = ANSWER_BYTES_MAX, *, tail: bool = False) -> bytes:
    with path.open("rb") as file:
        if tail:
            file.seek(max(0, path.stat().st_size - bytes_max))
        return file.read(bytes_max)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
