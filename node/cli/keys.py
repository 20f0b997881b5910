"""``openledger keys``: accounts in HOME/accounts, one encrypted file each, and the encryption of a node's own keys.

Results go to standard output; a seed never does, and a passphrase is neither an argument nor shown (`node.passphrase`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node.cli.connection import add_home_argument, add_passphrase_argument, home_of
from node.cli.output import (
    Exit,
    UsageError,
    add_example,
    add_json_argument,
    print_json,
    print_result,
    print_rows,
)
from node.keys import (
    NamedKey,
    PlainKey,
    account_path,
    check_folder,
    generate_seed,
    list_accounts,
    make_folder,
    open_key,
    public_key_of,
    read_key,
    read_private,
    reseal,
    store_bytes,
    store_sealed,
    store_seed,
)
from node.keystore import Passphrase, SealedKey, public_key, seal_seed
from node.passphrase import (
    PASSPHRASE_FILE_VARIABLE,
    PassphraseInvalid,
    Unlock,
    ask_new_passphrase,
    given_passphrase,
    has_terminal,
    read_passphrase_file,
    require_strong,
    unlock_with,
)

PLAIN_WARNING = (
    "warning: the key is stored in the clear; whoever reads the file, or a backup of it, has the money"
)
_SEED_DIGITS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``keys``."""
    parser.description = (
        "Create, list, move and encrypt keys. An account's address is its public\n"
        "key. Keys are encrypted (Argon2id, secretbox) unless told otherwise, and\n"
        "readable by you alone (0600)."
    )
    add_example(parser, "openledger keys new alice", "openledger keys encrypt --node")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = _action(actions, "new", "create an account", run_new)
    new.add_argument("name", metavar="NAME")
    _add_storing(new)
    add_example(
        new, "openledger keys new alice", "openledger keys new alice --passphrase-file passphrase.txt"
    )
    listing = _action(actions, "list", "list accounts; needs no passphrase", run_list)
    add_example(listing, "openledger keys list --json")
    show = _action(actions, "show", "show an account's address", run_show)
    show.add_argument("name", metavar="NAME")
    show.add_argument("--check", action="store_true", help="open the key as well, which proves the address")
    add_passphrase_argument(show, "for --check")
    add_example(show, "openledger keys show alice", "openledger keys show alice --check")
    _configure_moving(actions)
    _configure_encryption(actions)


def _configure_moving(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bring = _action(actions, "import", "store a key under a name", run_import)
    bring.add_argument("name", metavar="NAME")
    bring.add_argument(
        "--file",
        type=Path,
        required=True,
        metavar="FILE",
        help="a key file, encrypted or plain, 0600; - reads 64 hex digits from standard input",
    )
    _add_storing(bring)
    add_example(bring, "openledger keys import alice --file alice.key")
    out = _action(actions, "export", "write an account's key to a new file, encrypted", run_export)
    out.add_argument("name", metavar="NAME")
    out.add_argument(
        "--file", type=Path, required=True, metavar="FILE", help="where to write it (0600); never overwritten"
    )
    out.add_argument("--plain", action="store_true", help="write the seed in the clear, 64 hex digits")
    add_passphrase_argument(out, "of the key, for --plain; or to encrypt a plain key with")
    add_example(out, "openledger keys export alice --file alice.key")


def _configure_encryption(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    encrypt = _action(actions, "encrypt", "encrypt keys that are stored in the clear, in place", run_encrypt)
    _add_selection(encrypt)
    add_passphrase_argument(encrypt, "to encrypt with")
    add_example(
        encrypt, "openledger keys encrypt alice", "openledger keys encrypt --node --home ~/.openledger"
    )
    change = _action(actions, "passphrase", "change the passphrase of encrypted keys", run_passphrase)
    _add_selection(change)
    add_passphrase_argument(change, "used so far")
    change.add_argument(
        "--new-passphrase-file",
        type=Path,
        metavar="FILE",
        help="file with the new one (default: you are asked)",
    )
    add_example(change, "openledger keys passphrase alice")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: object
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_home_argument(parser, "home whose keys to use")
    add_json_argument(parser)
    parser.set_defaults(run=run)
    return parser


def _add_storing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--no-passphrase", action="store_true", help="store the key in the clear")
    add_passphrase_argument(group, "to encrypt with")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("name", nargs="?", metavar="NAME", help="an account")
    group.add_argument("--node", action="store_true", help="the keys of the node in --home, in HOME/keys")


def run_new(parsed: argparse.Namespace) -> int:
    """Generate a key."""
    path = _new_path(parsed)
    return _store(parsed, path, generate_seed(), _storing_passphrase(parsed, path))


def run_import(parsed: argparse.Namespace) -> int:
    """Store a key from a file or standard input; an encrypted one keeps its passphrase."""
    path = _new_path(parsed)
    key = _read_standard_input() if str(parsed.file) == "-" else read_key(parsed.file)
    if isinstance(key, PlainKey):
        return _store(parsed, path, key.seed, _storing_passphrase(parsed, path))
    unlock = unlock_with(parsed.passphrase_file)
    seed = open_key(parsed.file, key, unlock)
    return _store(parsed, path, seed, None if parsed.no_passphrase else unlock(parsed.file))


def _read_standard_input() -> PlainKey:
    # Bytes: what is not UTF-8 is as wrong as any other text. Standard input may be closed (`<&-`).
    data = sys.stdin.buffer.read(_SEED_DIGITS + 2).strip() if sys.stdin is not None else b""
    if len(data) != _SEED_DIGITS or data.strip(b"0123456789abcdef"):
        raise UsageError("standard input: expected 64 lowercase hex digits")
    return PlainKey(bytes.fromhex(data.decode()))


def _store(parsed: argparse.Namespace, path: Path, seed: bytes, passphrase: Passphrase | None) -> int:
    make_folder(path.parent)
    if passphrase is None:
        print(PLAIN_WARNING, file=sys.stderr)
        store_seed(path, seed)
    else:
        store_sealed(path, seed, passphrase)
    print_result(_described(parsed.name, public_key(seed), path, passphrase is not None), parsed.as_json)
    return Exit.OK


def _described(name: str, address: bytes, path: Path, encrypted: bool) -> dict[str, object]:
    return {"name": name, "address": address.hex(), "file": str(path), "encrypted": encrypted}


def _storing_passphrase(parsed: argparse.Namespace, path: Path) -> Passphrase | None:
    if parsed.no_passphrase:
        return None
    return new_passphrase(parsed.passphrase_file, f"A passphrase for {path.name}")


def new_passphrase(file: Path | None, question: str) -> Passphrase:
    """Return the passphrase to encrypt with: the file's, the environment's, else asked for twice at the terminal.

    Raises `node.passphrase.PassphraseInvalid`, also for one that is too short.
    """
    passphrase = given_passphrase(file)
    if passphrase is not None:
        return require_strong(passphrase, "the passphrase")
    asked = ask_new_passphrase(question) if has_terminal() else None
    if asked is None:
        raise PassphraseInvalid(
            "the passphrase", f"--passphrase-file, {PASSPHRASE_FILE_VARIABLE}, or a terminal to ask at"
        )
    return asked


def run_list(parsed: argparse.Namespace) -> int:
    """List accounts by name; exits with 1 if one of the files cannot be used."""
    folder = home_of(parsed).accounts_path
    accounts = list_accounts(folder)
    if parsed.as_json:
        print_json([_listed(key) for key in accounts])
    elif accounts:
        print_rows("accounts", [{"name": key.name, "address": key.address.hex()} for key in accounts])
    else:
        print(f"no accounts in {folder}; create one with `openledger keys new NAME`")
    plain = [key.name for key in accounts if not key.encrypted and key.problem is None]
    if plain and not parsed.as_json:
        names = ", ".join(plain)
        print(f"note: stored in the clear: {names}; `openledger keys encrypt NAME` encrypts", file=sys.stderr)
    bad = [key.problem for key in accounts if key.problem is not None]
    for problem in bad:
        print(f"openledger: {problem}", file=sys.stderr)
    return Exit.FAILED if bad else Exit.OK


def _listed(key: NamedKey) -> dict[str, object]:
    row = _described(key.name, key.address, key.path, key.encrypted)
    if key.problem is not None:
        row |= {"address": None, "encrypted": None, "problem": str(key.problem)}
    return row


def run_show(parsed: argparse.Namespace) -> int:
    """Show one account's address, never its seed."""
    path = _path(parsed)
    key = read_key(path)
    if parsed.check:
        open_key(path, key, unlock_with(parsed.passphrase_file))
    document = _described(parsed.name, public_key_of(key), path, isinstance(key, SealedKey))
    print_result(document | ({"opens": True} if parsed.check else {}), parsed.as_json)
    return Exit.OK


def run_export(parsed: argparse.Namespace) -> int:
    """Copy a key into a new file: an encrypted one as it is, a plain one encrypted, unless ``--plain``."""
    path = _path(parsed)
    key = read_key(path)
    if parsed.plain:
        seed = open_key(path, key, unlock_with(parsed.passphrase_file))
        print(PLAIN_WARNING, file=sys.stderr)
        store_seed(parsed.file, seed)
    elif isinstance(key, PlainKey):
        passphrase = new_passphrase(parsed.passphrase_file, f"A passphrase for {parsed.file.name}")
        store_bytes(parsed.file, seal_seed(key.seed, passphrase))
    else:
        store_bytes(parsed.file, read_private(path))
    print_result(_described(parsed.name, public_key_of(key), parsed.file, not parsed.plain), parsed.as_json)
    return Exit.OK


def run_encrypt(parsed: argparse.Namespace) -> int:
    """Encrypt plain keys; those that are encrypted already are left as they are."""
    keys = {path: read_key(path) for path in _selected(parsed)}
    plain = [path for path, key in keys.items() if isinstance(key, PlainKey)]
    if not plain:
        raise UsageError("encrypted already; `openledger keys passphrase` changes the passphrase")
    passphrase = new_passphrase(parsed.passphrase_file, f"A passphrase for {_names(plain)}")
    return _report_resealed(parsed, plain, passphrase, None)


def run_passphrase(parsed: argparse.Namespace) -> int:
    """Seal encrypted keys again under a new passphrase."""
    paths = [path for path in _selected(parsed) if isinstance(read_key(path), SealedKey)]
    if not paths:
        raise UsageError("stored in the clear; `openledger keys encrypt` encrypts")
    unlock = unlock_with(parsed.passphrase_file)
    for path in paths:
        # All of them open before the first is changed: else a folder could end with two passphrases.
        open_key(path, read_key(path), unlock)
    file = parsed.new_passphrase_file
    if file is not None:
        fresh = require_strong(read_passphrase_file(file, "--new-passphrase-file"), "--new-passphrase-file")
    else:
        asked = ask_new_passphrase(f"The new passphrase for {_names(paths)}") if has_terminal() else None
        if asked is None:
            raise PassphraseInvalid("the new passphrase", "--new-passphrase-file, or a terminal to ask at")
        fresh = asked
    return _report_resealed(parsed, paths, fresh, unlock)


def _report_resealed(
    parsed: argparse.Namespace, paths: list[Path], passphrase: Passphrase, unlock: Unlock | None
) -> int:
    rows = [_described(path.stem, reseal(path, passphrase, unlock), path, True) for path in paths]
    if parsed.as_json:
        print_json(rows)
    else:
        print_rows("encrypted", [{"name": row["name"], "public key": row["address"]} for row in rows])
    return Exit.OK


def _selected(parsed: argparse.Namespace) -> list[Path]:
    if not parsed.node:
        return [_path(parsed)]
    folder = home_of(parsed).node_key_path.parent
    check_folder(folder)
    found = sorted(folder.glob("*.key"))
    if not found:
        raise UsageError(f"{folder} has no keys; create a node's home with `openledger init`")
    return found


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _path(parsed: argparse.Namespace) -> Path:
    """Where an existing account is kept, in a folder that is ours alone."""
    path = account_path(home_of(parsed).accounts_path, parsed.name)
    if path.parent.exists():
        check_folder(path.parent)
    return path


def _new_path(parsed: argparse.Namespace) -> Path:
    """Where a new account will be kept; refused before anybody is asked for a passphrase."""
    path = _path(parsed)
    if path.is_symlink() or path.exists():
        raise UsageError(f"{path} exists already and is never overwritten; choose another name")
    return path
