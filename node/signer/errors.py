"""What can go wrong between a daemon and its signer, and in the signer's home."""

from pathlib import Path

from node.errors import NodeError


class SignerUnavailable(NodeError):
    """The signer does not answer, in time or at all; nothing is signed until it does."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"the signer at {path} does not answer: {reason}")


class SignerForeign(SignerUnavailable):
    """Something answers that is not this validator's signer: another key, chain or user."""


class SocketUnusable(NodeError):
    """The signer cannot listen where it was told to."""

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        super().__init__(f"socket {path}: expected {expected}")


class SignerProtocolError(NodeError):
    """Bytes on the socket that are no request, or no answer: the connection is closed."""
