"""Errors of the consensus core, in three trees.

`LocalError` is a bug of our own driver. `RemoteError` is a peer's fault and is the only one that may cost
the peer something. `SafetyRefusal` is neither: the safety rules declined to sign, which is normal life.
"""


class ConsensusError(Exception):
    """Root of everything this package raises on purpose."""


class CodecError(ConsensusError):
    """Bytes that are not canonical, over a limit, or of an unknown shape; or a value with no canonical form."""


class LocalError(ConsensusError):
    """The caller broke the contract of the core (wrong order, impossible value)."""


class RemoteError(ConsensusError):
    """A peer sent something no honest peer sends.

    Attributes:
        reason: a short, stable, lower-case phrase, fit for a metric label.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidCertificate(RemoteError):
    """A quorum, commit or timeout certificate that does not prove what it says."""


class InvalidSignature(RemoteError):
    """A signature that does not verify, or a signer the validator set does not know."""


class InvalidBlock(RemoteError):
    """A block that breaks a rule every honest proposer keeps."""


class SafetyRefusal(ConsensusError):
    """The safety rules declined to sign; nothing was signed and the record is unchanged.

    Attributes:
        reason: which rule declined.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
