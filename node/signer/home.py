"""A signer's home: its making, and its opening.

::

    SIGNER/genesis.json          the chain
    SIGNER/keys/consensus.key    0600, encrypted or plain, as a node's
    SIGNER/signer.book           what the key signed last (`node.signer.book`)
    SIGNER/safety.guard          the second witness (`node.storage.guard`); neither may come from a backup
    SIGNER/epoch.root            the epoch it has come to, once that is not the first
    SIGNER/run/signer.sock       where it listens
    SIGNER/node.lock             held (flock) while it runs

A signer is made with a new key, or takes over that of a validator's home together with what it has signed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consensus.safety import SafetyRecord, record_from_bytes
from node.errors import ConfigInvalid, HomeExists
from node.home import Home, lock_home, write_atomic, write_new
from node.keys import (
    PlainKey,
    check_folder,
    generate_seed,
    load_seed,
    make_folder,
    public_key,
    public_key_of,
    read_key,
    read_private,
    store_bytes,
    store_sealed,
    store_seed,
)
from node.keystore import Passphrase
from node.ledger.genesis import chain_id
from node.passphrase import Unlock
from node.signer.book import Book, Page, create_book
from node.signer.custodian import Custodian
from node.signer.epoch import load_root
from node.startup import load_genesis
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import SafetyRecordUnusable
from node.storage.guard import SafetyGuard, first_mark


@dataclass(frozen=True, slots=True)
class SignerHome:
    """Paths under a signer's home; naming them creates nothing."""

    root: Path

    @property
    def home(self) -> Home:
        """The paths that it has in common with a node's home."""
        return Home(self.root)

    @property
    def book_path(self) -> Path:
        """What was signed."""
        return self.root / "signer.book"

    @property
    def epoch_path(self) -> Path:
        """The epoch it has come to."""
        return self.root / "epoch.root"

    @property
    def socket_path(self) -> Path:
        """Where it listens unless told otherwise."""
        return self.root / "run" / "signer.sock"


def create_signer(place: SignerHome, genesis: bytes, passphrase: Passphrase | None) -> bytes:
    """Make a home with a new key; returns its public key. Raises HomeExists."""
    seed = generate_seed()
    _prepare(place, genesis)
    path = place.home.consensus_key_path
    if passphrase is None:
        store_seed(path, seed)
    else:
        store_sealed(path, seed, passphrase)
    _found(place, public_key(seed), None)
    return public_key(seed)


def take_over(place: SignerHome, node: Home) -> bytes:
    """Move a stopped validator's consensus key, and what it signed, into a new signer's home; returns its public key.

    The key is in the validator's home no more when this returns: two processes with one key and two records may
    contradict each other. Interrupted before that, the signer's home has no key and cannot sign.

    Raises HomeLocked while the daemon runs, HomeExists, KeyFileInvalid, SafetyRecordUnusable.
    """
    with lock_home(node):
        check_folder(node.consensus_key_path.parent)
        data = read_private(node.consensus_key_path)
        public = public_key_of(read_key(node.consensus_key_path))
        record = _record_of(node)
        _prepare(place, node.genesis_path.read_bytes())
        _found(place, public, record)
        # Away from the one before it is in the other: a crash leaves it in neither home's place, but never in both.
        parked = node.consensus_key_path.with_suffix(".moved")
        os.rename(node.consensus_key_path, parked)
        store_bytes(place.home.consensus_key_path, data)
        parked.unlink()
        # The database's record lags from now on. Without its guard a key that is copied back is refused there.
        node.safety_guard_path.unlink(missing_ok=True)
    return public


def _prepare(place: SignerHome, genesis: bytes) -> None:
    if place.book_path.exists() or place.home.consensus_key_path.exists():
        raise HomeExists(place.book_path)
    make_folder(place.root)
    make_folder(place.home.consensus_key_path.parent)
    if not place.home.genesis_path.is_file():
        write_new(place.home.genesis_path, genesis, mode=0o644)


def _found(place: SignerHome, public: bytes, record: SafetyRecord | None) -> None:
    chain = chain_id(load_genesis(place.home))
    write_atomic(place.home.safety_guard_path, first_mark(chain, 0 if record is None else record.epoch))
    if record is not None:
        SafetyGuard(place.home.safety_guard_path).note(record.to_bytes())
    create_book(place.book_path, Page(chain, public, record))


def _record_of(node: Home) -> SafetyRecord | None:
    """What a validator's home says its key has signed; None where it cannot have signed."""
    chain = chain_id(load_genesis(node))
    database = Database(node.data_path / "chain")
    try:
        data = ChainStore(database).safety_record()
    finally:
        database.close()
    used, guard = node.consensus_used_path, node.safety_guard_path
    if guard.is_file():
        witness = SafetyGuard(guard)
        if witness.mark.chain_id == chain:
            witness.check(data, str(node.data_path))
    elif data is not None or used.is_file():
        raise SafetyRecordUnusable(
            f"{guard}, the second note of what this key signed, is missing",
            "bring the file back as it was when the daemon last stopped, or join with a new key",
        )
    return None if data is None else record_from_bytes(data)


@contextmanager
def open_signer(place: SignerHome, unlock: Unlock | None) -> Iterator[Custodian]:
    """Hold the home for this process, and the key in it.

    Raises HomeLocked, KeyFileInvalid, SafetyRecordUnusable, ConfigInvalid.
    """
    home = place.home
    if not home.genesis_path.is_file() or not place.book_path.is_file():
        raise ConfigInvalid(
            "--home", f"a signer's home; make one with `openledger signer init`, {place.root} is none"
        )
    check_folder(home.consensus_key_path.parent)
    with lock_home(home):
        seed = load_seed(home.consensus_key_path, unlock)
        genesis = load_genesis(home)
        book, guard = Book(place.book_path), _guard_of(home)
        remedy = "bring back the signer's home as it was when it last stopped (never a backup)"
        if book.page.chain_id != chain_id(genesis) or guard.mark.chain_id != chain_id(genesis):
            raise SafetyRecordUnusable(f"{place.book_path} is of another chain than genesis.json", remedy)
        if book.page.public != public_key(seed):
            raise SafetyRecordUnusable(f"{place.book_path} is about another key", remedy)
        record = book.page.record
        guard.check(None if record is None else record.to_bytes(), str(place.book_path))
        root = load_root(place.epoch_path, genesis)
        yield Custodian(seed, root, place.epoch_path, book, guard)


def _guard_of(home: Home) -> SafetyGuard:
    try:
        return SafetyGuard(home.safety_guard_path)
    except FileNotFoundError as error:
        raise SafetyRecordUnusable(
            f"{home.safety_guard_path}, the second note of what this key signed, is missing",
            "bring the file back as it was when the signer last stopped, or join with a new key",
        ) from error


def is_plain(place: SignerHome) -> bool:
    """Whether the key lies there in the clear."""
    return isinstance(read_key(place.home.consensus_key_path), PlainKey)
