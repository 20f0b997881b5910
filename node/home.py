"""The layout of a node's home directory, its creation, its lock, and atomic writes.

::

    HOME/config.toml            node.config
    HOME/genesis.json           the chain (node.ledger.genesis)
    HOME/keys/node.key          libp2p identity            } 0600, a 32-byte seed,
    HOME/keys/account.key       the operator's account     } encrypted (`node.keystore`) or plain
    HOME/keys/consensus.key     validators only: votes     }
    HOME/keys/beacon.key        validators only: beacon    }
    HOME/keys/consensus.used    validators only: the chain on which the key may have signed
    HOME/safety.guard           validators only: what the key signed last; never to be restored from a backup
    HOME/accounts/NAME.key      accounts of the command line, same format
    HOME/data/                  LevelDB
    HOME/blobs/  HOME/artefacts/  HOME/logs/  HOME/snapshots/
    HOME/rpc.url                where the daemon's RPC answers, written when it listens
    HOME/node.lock              held (flock) by the running daemon
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.config import Config, render_toml
from node.errors import HomeExists, HomeLocked, HomeMissing

_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under one home directory. Nothing is read or created by naming them."""

    root: Path

    @property
    def config_path(self) -> Path:
        """``config.toml``."""
        return self.root / "config.toml"

    @property
    def genesis_path(self) -> Path:
        """``genesis.json``."""
        return self.root / "genesis.json"

    @property
    def node_key_path(self) -> Path:
        """Seed of the libp2p identity."""
        return self.root / "keys" / "node.key"

    @property
    def account_key_path(self) -> Path:
        """Seed of the operator's account: a validator's rewards, a full node's default signer."""
        return self.root / "keys" / "account.key"

    @property
    def consensus_key_path(self) -> Path:
        """Seed of the consensus key; validators only."""
        return self.root / "keys" / "consensus.key"

    @property
    def consensus_used_path(self) -> Path:
        """The chain id (hex) on which the consensus key may have signed; it outlives the database."""
        return self.root / "keys" / "consensus.used"

    @property
    def safety_guard_path(self) -> Path:
        """The second, synced note of what the consensus key signed last (`node.storage.guard`)."""
        return self.root / "safety.guard"

    @property
    def beacon_key_path(self) -> Path:
        """Seed of the beacon's hash chain; validators only."""
        return self.root / "keys" / "beacon.key"

    @property
    def accounts_path(self) -> Path:
        """Folder of the command line's accounts, ``NAME.key``."""
        return self.root / "accounts"

    @property
    def data_path(self) -> Path:
        """LevelDB's folder."""
        return self.root / "data"

    @property
    def snapshots_path(self) -> Path:
        """Snapshots of the ledger's state (`node.snapshot.files`)."""
        return self.root / "snapshots"

    @property
    def blobs_path(self) -> Path:
        """Folder of content-addressed blobs."""
        return self.root / "blobs"

    @property
    def artefacts_path(self) -> Path:
        """Folder of bases, adapters and indices that can be rebuilt."""
        return self.root / "artefacts"

    @property
    def logs_path(self) -> Path:
        """Folder for logs that whoever launched the daemon redirects here."""
        return self.root / "logs"

    @property
    def rpc_url_path(self) -> Path:
        """The URL of the running daemon's RPC, one line; stale once it stopped."""
        return self.root / "rpc.url"

    @property
    def lock_path(self) -> Path:
        """The file whose lock says that a daemon runs here."""
        return self.root / "node.lock"


def open_home(root: Path) -> Home:
    """Return the home at ``root``; raises `HomeMissing` where it lacks its configuration, genesis or node key."""
    home = Home(root.absolute())
    for path in (home.config_path, home.genesis_path, home.node_key_path):
        if not path.is_file():
            raise HomeMissing(home.root, path)
    return home


def create_home(root: Path, config: Config, genesis: bytes | None) -> Home:
    """Create a home: directories, configuration, keys (with a validator's where ``config`` says so), genesis.

    ``genesis`` is the bytes of ``genesis.json``, or None to bring the file later. An interrupted creation may be
    repeated: keys that exist are kept. Raises `HomeExists` where a configuration or genesis is there already;
    nothing is ever overwritten.
    """
    from node.keys import ensure_seed  # that module writes its files through this one

    home = Home(root.absolute())
    for path in (home.config_path, home.genesis_path):
        if path.exists():
            raise HomeExists(path)
    folders = (home.data_path, home.blobs_path, home.artefacts_path, home.logs_path, home.accounts_path)
    for folder in (home.root, home.node_key_path.parent, *folders):
        folder.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    keys = [home.node_key_path, home.account_key_path]
    if config.node.validator:
        keys += [home.consensus_key_path, home.beacon_key_path]
    for path in keys:
        ensure_seed(path)
    if genesis is not None:
        write_new(home.genesis_path, genesis, mode=0o644)
    # Last: its presence means that the creation was completed.
    write_new(home.config_path, render_toml(config).encode(), mode=0o644)
    return home


@contextmanager
def lock_home(home: Home) -> Iterator[None]:
    """Hold the home for this process; the lock goes with the process, however it ends.

    Raises `HomeLocked` at once where another process holds it.
    """
    descriptor = os.open(home.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).strip()
            raise HomeLocked(home.root, int(text) if text.isdigit() else None) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data``: a reader, or a power cut, sees the old bytes or the new, never a part."""
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Create ``path`` with ``data`` atomically; raises `HomeExists` where it exists, also in a race."""
    temporary = _write_temporary(path, data, mode)
    try:
        # link, unlike rename, fails where the name is taken.
        os.link(temporary, path)
    except FileExistsError:
        raise HomeExists(path) from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    # mkstemp creates with 0600, so that a secret is never readable by others for a moment.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
