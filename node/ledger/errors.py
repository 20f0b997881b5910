"""Everything the ledger can refuse, as typed errors with a stable ``code`` and fields that a program can read.

Three families matter to a caller: bytes that mean nothing (:class:`MalformedError`), a transaction that is skipped and
costs its sender nothing (:class:`InvalidTransactionError`), and one that consumed its nonce, paid its fee and changed
nothing else (:class:`FailedTransactionError`).
"""

from __future__ import annotations

from enum import StrEnum


class InvalidCode(StrEnum):
    """Why a transaction is skipped: nothing is charged to its sender."""

    MALFORMED = "malformed"
    WRONG_CHAIN = "wrong-chain"
    WRONG_NONCE = "wrong-nonce"
    EXPIRED = "expired"
    EXPIRY_TOO_FAR = "expiry-too-far"
    BAD_SIGNATURE = "bad-signature"
    FEE_TOO_LOW = "fee-too-low"
    FEE_UNPAYABLE = "fee-unpayable"
    MISSING_STORAGE_RECEIPTS = "missing-storage-receipts"
    DUTY_NOT_OWED = "duty-not-owed"
    OPENING_MISMATCH = "opening-mismatch"


class FailureCode(StrEnum):
    """Why a transaction paid its fee and did nothing else."""

    INSUFFICIENT_BALANCE = "insufficient-balance"
    UNKNOWN_DATANET = "unknown-datanet"
    LICENCE_NOT_ALLOWED = "licence-not-allowed"
    DUPLICATE = "duplicate"
    UNKNOWN_CONTRIBUTION = "unknown-contribution"
    CONTRIBUTIONS_OUT_OF_ORDER = "contributions-out-of-order"
    NOTHING_LEFT = "nothing-left"
    NOT_THE_CONTRIBUTOR = "not-the-contributor"
    UNKNOWN_RECORD = "unknown-record"
    ALREADY_ERASED = "already-erased"
    UNKNOWN_BASE = "unknown-base"
    BASE_NOT_ACTIVE = "base-not-active"
    UNKNOWN_ADAPTER = "unknown-adapter"
    ADAPTER_NOT_ACTIVE = "adapter-not-active"
    LIMIT_EXCEEDED = "limit-exceeded"
    BACKLOG_FULL = "backlog-full"
    BOND_TOO_LOW = "bond-too-low"
    IN_FLIGHT_FULL = "in-flight-full"
    VOUCHER_WRONG_CHAIN = "voucher-wrong-chain"
    VOUCHER_WRONG_PROVIDER = "voucher-wrong-provider"
    VOUCHER_BAD_SIGNATURE = "voucher-bad-signature"
    VOUCHER_SEQUENCE_USED = "voucher-sequence-used"
    VOUCHER_EXPIRED = "voucher-expired"
    VOUCHER_FEE_TOO_LOW = "voucher-fee-too-low"
    UNKNOWN_INFERENCE = "unknown-inference"
    NOT_THE_PROVIDER = "not-the-provider"
    REVEAL_NOT_AWAITED = "reveal-not-awaited"
    EPOCHS_OFF = "epochs-off"
    NOT_REGISTERED = "not-registered"
    ALREADY_REGISTERED = "already-registered"
    CONSENSUS_KEY_TAKEN = "consensus-key-taken"
    PEER_ID_TAKEN = "peer-id-taken"
    BAD_POSSESSION = "bad-possession"
    STAKE_TOO_LOW = "stake-too-low"
    LEAVING = "leaving"
    LAST_VALIDATOR = "last-validator"
    UNBONDING_FULL = "unbonding-full"
    NOT_JAILED = "not-jailed"
    JAIL_NOT_OVER = "jail-not-over"
    ANCHOR_UNCHANGED = "anchor-unchanged"
    BAD_EVIDENCE = "bad-evidence"
    EVIDENCE_EXPIRED = "evidence-expired"
    EVIDENCE_EPOCH_UNKNOWN = "evidence-epoch-unknown"
    NOT_A_VALIDATOR_THEN = "not-a-validator-then"
    ALREADY_SLASHED = "already-slashed"


class LedgerError(Exception):
    """Root of what the ledger refuses. ``code`` is stable; ``fields`` hold integers, strings and bytes."""

    def __init__(self, code: str, message: str = "", **fields: int | str | bytes) -> None:
        super().__init__(message or code)
        self.code = str(code)
        self.message = message or str(code)
        self.fields: dict[str, int | str | bytes] = dict(fields)

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name}={value.hex() if isinstance(value, bytes) else value}"
            for name, value in self.fields.items()
        )
        return f"{self.message} ({shown})" if shown else self.message


class MalformedError(LedgerError):
    """Bytes or values outside their canonical form, type or limit. ``fields["where"]`` names the field."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(InvalidCode.MALFORMED, message, where=where)


class InvalidTransactionError(LedgerError):
    """The transaction must be skipped: no nonce, no fee, no effect; its bytes cost the author of its batch."""

    def __init__(self, code: InvalidCode, message: str = "", **fields: int | str | bytes) -> None:
        super().__init__(code, message, **fields)


class FailedTransactionError(LedgerError):
    """The transaction keeps its nonce and fee, and everything else it did is undone."""

    def __init__(self, code: FailureCode, message: str = "", **fields: int | str | bytes) -> None:
        super().__init__(code, message, **fields)


class ParameterError(LedgerError):
    """A parameter that is unknown, of the wrong type, out of its bounds or in conflict with another."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__("bad-parameter", message, name=name)


class GenesisError(LedgerError):
    """A genesis description with an unknown key, a wrong type, or values that contradict each other."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__("bad-genesis", message, where=where)


class ExecutionError(LedgerError):
    """The caller broke the contract of `execute_block`: wrong height, unknown proposer, state without a genesis."""

    def __init__(self, message: str, **fields: int | str | bytes) -> None:
        super().__init__("bad-execution", message, **fields)
