"""Where passphrases come from: a file, the environment, a terminal. Never an argument: `ps` shows those to everybody.

A command's ``--passphrase-file`` beats ``OPENLEDGER_PASSPHRASE`` and ``OPENLEDGER_PASSPHRASE_FILE``, and those beat a node's
``[keys] passphrase_file``; where none is given, a person at a terminal is asked. What is read is never printed or logged.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from node.errors import ConfigInvalid
from node.keystore import PASSPHRASE_CHARACTERS_MIN, KeyLocked, Passphrase

PASSPHRASE_VARIABLE = "OPENLEDGER_PASSPHRASE"
PASSPHRASE_FILE_VARIABLE = "OPENLEDGER_PASSPHRASE_FILE"
PASSPHRASE_BYTES_MAX = 1024

Unlock = Callable[[Path], Passphrase]
"""Asked for the passphrase of the key file at a path, only once that turned out to be encrypted."""


class PassphraseInvalid(ConfigInvalid):
    """A passphrase cannot be had, or not be used. ``key`` says where it was to come from; its text is in no message."""


def read_passphrase_file(path: Path, source: str) -> Passphrase:
    """Read a passphrase: the file's first and only line, in UTF-8. Pipes are read to their end.

    ``source`` names the setting in messages. Raises `PassphraseInvalid`, also where others may read a regular file.
    """
    try:
        with path.open("rb") as file:
            details = os.fstat(file.fileno())
            if stat.S_ISREG(details.st_mode) and details.st_mode & 0o077:
                mode = stat.S_IMODE(details.st_mode)
                raise PassphraseInvalid(
                    source, f"{path} readable by you alone, its mode is {mode:04o}: `chmod 600 {path}`"
                )
            data = file.read(PASSPHRASE_BYTES_MAX + 2)
    except OSError as error:
        raise PassphraseInvalid(source, f"a readable file, {path} is not ({error.strerror})") from error
    return _checked(data.removesuffix(b"\n").removesuffix(b"\r"), f"{source} {path}")


def given_passphrase(
    file: Path | None, environment: Mapping[str, str] | None = None, source: str = "--passphrase-file"
) -> Passphrase | None:
    """Return the passphrase that ``file``, else the environment (default: the process's) names; None where neither does.

    ``source`` names in messages what ``file`` was given with. Raises `PassphraseInvalid`.
    """
    if file is not None:
        return read_passphrase_file(file, source)
    variables = os.environ if environment is None else environment
    text, named = variables.get(PASSPHRASE_VARIABLE), variables.get(PASSPHRASE_FILE_VARIABLE)
    if text is not None and named is not None:
        raise PassphraseInvalid(PASSPHRASE_VARIABLE, f"it or {PASSPHRASE_FILE_VARIABLE}, not both")
    if named is not None:
        return read_passphrase_file(Path(named), PASSPHRASE_FILE_VARIABLE)
    return None if text is None else _checked(os.fsencode(text), PASSPHRASE_VARIABLE)


def take_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Take both variables out of ``environment`` and return them: child processes then inherit neither."""
    names = (PASSPHRASE_VARIABLE, PASSPHRASE_FILE_VARIABLE)
    return {name: environment.pop(name) for name in names if name in environment}


def require_strong(passphrase: Passphrase, source: str) -> Passphrase:
    """Return ``passphrase``, for keys about to be encrypted; raises `PassphraseInvalid` for what a guess finds at once."""
    if passphrase.characters < PASSPHRASE_CHARACTERS_MIN:
        raise PassphraseInvalid(source, f"at least {PASSPHRASE_CHARACTERS_MIN} characters")
    return passphrase


def has_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask_passphrase(question: str) -> Passphrase:
    """Ask at the terminal, without echo; raises `PassphraseInvalid` at the end of input or a useless answer."""
    return _checked(_ask(question), "the terminal")


def ask_new_passphrase(question: str, *, may_be_empty: bool = False) -> Passphrase | None:
    """Ask twice at the terminal; None where the answer is empty and may be. Raises `PassphraseInvalid`."""
    first = _ask(f"{question}: ")
    if may_be_empty and not first:
        return None
    passphrase = require_strong(_checked(first, "the terminal"), "the terminal")
    if not passphrase.equals(ask_passphrase("The same again: ")):
        raise PassphraseInvalid("the terminal", "the same passphrase twice; nothing was written")
    return passphrase


def unlock_with(
    file: Path | None, environment: Mapping[str, str] | None = None, source: str = "--passphrase-file"
) -> Unlock:
    """Return what finds the passphrase of encrypted key files: as `given_passphrase`, else asked for at the terminal.

    It is looked for once, and only when a file is encrypted. Raises `PassphraseInvalid`, and `node.keystore.KeyLocked` where
    there is neither a passphrase nor a terminal.
    """
    found: list[Passphrase] = []

    def unlock(path: Path) -> Passphrase:
        if not found:
            passphrase = given_passphrase(file, environment, source)
            if passphrase is None and has_terminal():
                passphrase = ask_passphrase(f"Passphrase of {path}: ")
            if passphrase is None:
                raise KeyLocked(
                    path, f"its passphrase, it is encrypted: set {source} or {PASSPHRASE_FILE_VARIABLE}"
                )
            found.append(passphrase)
        return found[0]

    return unlock


def node_unlock(home: Path, passphrase_file: str) -> Unlock:
    """Return what opens the keys of the node in ``home``: the environment, else ``[keys] passphrase_file``, else a terminal.

    The environment's variables are taken out of it: the node's child processes have no use for them.
    """
    variables = take_variables(os.environ)
    file = home / passphrase_file if passphrase_file and not variables else None
    return unlock_with(file, variables, "keys.passphrase_file")


def _ask(question: str) -> bytes:
    from getpass import getpass

    try:
        return os.fsencode(getpass(question))
    except EOFError:
        raise PassphraseInvalid("the terminal", "a passphrase, the input ended") from None


def _checked(data: bytes, source: str) -> Passphrase:
    """Return the passphrase in ``data``; the messages never quote it."""
    if not data:
        raise PassphraseInvalid(source, "a passphrase, it is empty")
    if len(data) > PASSPHRASE_BYTES_MAX:
        raise PassphraseInvalid(source, f"at most {PASSPHRASE_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise PassphraseInvalid(source, "text in UTF-8") from None
    if any(character < " " or character == "\x7f" for character in text):
        raise PassphraseInvalid(source, "one line without control characters")
    return Passphrase(text)
