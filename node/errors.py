"""Errors of the node outside the ledger: nouns with typed fields, each saying what was expected.

The RPC server maps each of these to an application error code (`node.rpc.errors`); the command line maps them to
exit codes (`node.cli.output`).
"""

from __future__ import annotations

from pathlib import Path

_SHOWN_CHARACTERS_MAX = 120


class NodeError(Exception):
    """Base of every error the node raises on purpose outside the pure packages."""


class ConfigInvalid(NodeError):
    """A configuration value, key or file is not acceptable.

    ``key`` is ``section.key`` (or the file's or section's name), ``expected`` says what would have been accepted.
    """

    def __init__(self, key: str, expected: str, got: object = None) -> None:
        self.key = key
        self.expected = expected
        self.got = got
        suffix = "" if got is None else f", got {_shown(got)}"
        super().__init__(f"{key}: expected {expected}{suffix}")


def _shown(value: object) -> str:
    """A value from outside, short: a message is one line, and Python refuses to write a very long number."""
    try:
        text = repr(value)
    except ValueError:
        return "a number that is too long to show"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."


class HomeMissing(NodeError):
    """The directory is not the home of a node."""

    def __init__(self, root: Path, missing: Path) -> None:
        self.root = root
        self.missing = missing
        if missing.name == "genesis.json":
            remedy = "put the chain's genesis.json there"
        else:
            remedy = "create one with `openledger init`"
        super().__init__(f"{root} is not a node's home: {missing.name} is missing; {remedy}")


class HomeExists(NodeError):
    """Creating a home, or a file in it, would overwrite what is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} exists already and is never overwritten")


class HomeLocked(NodeError):
    """Another daemon runs on this home. ``pid`` is its process id where the lock file tells it."""

    def __init__(self, root: Path, pid: int | None) -> None:
        self.root = root
        self.pid = pid
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{root} is in use by {who}; one home serves one daemon at a time")


class KeyFileInvalid(NodeError):
    """A key file is absent, malformed, or readable by others."""

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        self.expected = expected
        super().__init__(f"key file {path}: expected {expected}")


class MempoolFull(NodeError):
    """The pool of pending transactions is at its limit; ``limit`` counts in ``unit``."""

    def __init__(self, limit: int, unit: str = "transactions") -> None:
        self.limit = limit
        self.unit = unit
        super().__init__(f"the mempool is full ({limit} {unit}); try again after the next block")


class TransactionDropped(MempoolFull):
    """A transaction that waited here left the mempool unexecuted; it may be submitted again."""

    def __init__(self, limit: int, reason: str) -> None:
        super().__init__(limit)
        self.reason = reason
        self.args = (f"{reason}; submit it again, with a higher fee where it was outbid",)


class MempoolSenderFull(NodeError):
    """One sender has too many pending transactions, or its nonce is too far ahead."""

    def __init__(self, sender: bytes, limit: int, reason: str) -> None:
        self.sender = sender
        self.limit = limit
        self.reason = reason
        super().__init__(f"{reason} (limit {limit})")


class TransactionUnderpriced(NodeError):
    """A pending transaction with the same sender and nonce pays as much or more."""

    def __init__(self, fee_min: int) -> None:
        self.fee_min = fee_min
        super().__init__(
            f"a pending transaction holds this nonce; replacing it takes a fee of at least {fee_min}"
        )


class NotReady(NodeError):
    """The node cannot serve this yet: it is starting, syncing or shutting down."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class AddressUnavailable(NodeError):
    """The RPC server cannot listen where the configuration says."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.reason = reason
        super().__init__(
            f"cannot listen on {host}:{port} ({reason}); set [rpc] host and port, 0 lets the system choose"
        )


class BlobMissing(NodeError):
    """A transaction names a blob that this node does not have. ``digest`` is the blob's name (32 bytes)."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        super().__init__(f"blob {digest.hex()} is not here; bring it with blob_put first")
