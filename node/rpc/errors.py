"""The one table of RPC errors, and how the node's exceptions become them.

``docs/rpc.md`` prints the same table; a test compares them. ``data`` is always an object a program can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from node.errors import (
    BlobMissing,
    MempoolFull,
    MempoolSenderFull,
    NodeError,
    NotReady,
    TransactionUnderpriced,
)
from node.ledger.errors import LedgerError
from node.storage.errors import BlobErased, BlobQuotaExceeded, BlobTooLarge


class Code(IntEnum):
    """Error codes: JSON-RPC 2.0's own, then this application's."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    NOT_READY = -32000
    NOT_FOUND = -32001
    TRANSACTION_REFUSED = -32002
    MEMPOOL_FULL = -32003
    MEMPOOL_SENDER_FULL = -32004
    TRANSACTION_UNDERPRICED = -32005
    BLOB_TOO_LARGE = -32006
    STORAGE_FULL = -32007
    BODY_TOO_LARGE = -32008
    BATCH_TOO_LONG = -32009
    SERVER_BUSY = -32010
    REQUEST_TIMEOUT = -32011
    ORIGIN_REFUSED = -32012
    RESPONSE_TOO_LARGE = -32013
    BLOB_MISSING = -32014
    RATE_LIMITED = -32015
    BLOB_ERASED = -32016


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """One row of the table: when the error is returned, and which keys its ``data`` has."""

    meaning: str
    data: tuple[str, ...]


CODES: dict[Code, CodeInfo] = {
    Code.PARSE_ERROR: CodeInfo("the body is not JSON in UTF-8", ("expected",)),
    Code.INVALID_REQUEST: CodeInfo("the JSON is not a JSON-RPC 2.0 request", ("expected",)),
    Code.METHOD_NOT_FOUND: CodeInfo("there is no such method", ("method", "methods")),
    Code.INVALID_PARAMS: CodeInfo("a parameter is missing, unknown or malformed", ("param", "expected")),
    Code.INTERNAL_ERROR: CodeInfo("a fault of the node; its log has the details", ()),
    Code.NOT_READY: CodeInfo("the node is starting, syncing or stopping", ("reason",)),
    Code.NOT_FOUND: CodeInfo("the node knows no such thing", ("what", "id")),
    Code.TRANSACTION_REFUSED: CodeInfo("the ledger's rules refuse the transaction", ("code", "fields")),
    Code.MEMPOOL_FULL: CodeInfo("the pool of pending transactions is full", ("limit", "unit")),
    Code.MEMPOOL_SENDER_FULL: CodeInfo(
        "the sender has too much pending, or a nonce too far ahead", ("sender", "limit")
    ),
    Code.TRANSACTION_UNDERPRICED: CodeInfo(
        "a pending transaction with this nonce pays as much", ("fee_min",)
    ),
    Code.BLOB_TOO_LARGE: CodeInfo("the blob is over the limit for one blob", ("bytes", "bytes_max")),
    Code.STORAGE_FULL: CodeInfo("the node's blob store is at its quota", ("bytes_max",)),
    Code.BODY_TOO_LARGE: CodeInfo("the HTTP body is over the limit; it was not read", ("bytes_max",)),
    Code.BATCH_TOO_LONG: CodeInfo("the batch has too many requests; none was executed", ("batch_max",)),
    Code.SERVER_BUSY: CodeInfo("too many requests are in progress; try again", ("limit", "unit")),
    Code.REQUEST_TIMEOUT: CodeInfo("the request took longer than allowed", ("timeout_ms",)),
    Code.ORIGIN_REFUSED: CodeInfo("a web page of another origin made the request", ("expected",)),
    Code.RESPONSE_TOO_LARGE: CodeInfo("earlier answers of the batch used up its limit", ("bytes_max",)),
    Code.BLOB_MISSING: CodeInfo("the transaction names a blob that the node does not have", ("digest",)),
    Code.BLOB_ERASED: CodeInfo("records of this blob were erased; it is not taken again", ("digest",)),
    Code.RATE_LIMITED: CodeInfo("the client's address calls too often; try again later", ("retry_after_ms",)),
}


class Fault(Exception):
    """An error on its way to the client: a code of the table, a sentence, and ``data`` with the table's keys."""

    def __init__(self, code: Code, message: str, data: dict[str, object] | None = None) -> None:
        self.code = code
        self.message = message
        self.data = data or {}
        super().__init__(message)

    def to_json(self) -> dict[str, object]:
        """The ``error`` member of a JSON-RPC response."""
        return {"code": int(self.code), "message": self.message, "data": self.data}


def not_found(what: str, identity: bytes | int) -> Fault:
    """The fault for an identity that the node does not know; ``what`` is the kind of thing."""
    shown: object = identity.hex() if isinstance(identity, bytes) else identity
    return Fault(Code.NOT_FOUND, f"no {what} {shown}", {"what": what, "id": shown})


def invalid_param(name: str, expected: str) -> Fault:
    """The fault for a parameter that is missing, unknown or malformed."""
    return Fault(
        Code.INVALID_PARAMS, f"parameter {name}: expected {expected}", {"param": name, "expected": expected}
    )


def fault_of(error: Exception) -> Fault | None:
    """Translate what a backend raises on purpose; None for anything else, which is a fault of the node."""
    match error:
        case Fault():
            return error
        case NotReady():
            return Fault(Code.NOT_READY, str(error), {"reason": error.reason})
        case LedgerError():
            fields = {key: _plain(value) for key, value in error.fields.items()}
            return Fault(Code.TRANSACTION_REFUSED, str(error), {"code": error.code, "fields": fields})
        case MempoolFull():
            return Fault(Code.MEMPOOL_FULL, str(error), {"limit": error.limit, "unit": error.unit})
        case MempoolSenderFull():
            data = {"sender": error.sender.hex(), "limit": error.limit}
            return Fault(Code.MEMPOOL_SENDER_FULL, str(error), data)
        case TransactionUnderpriced():
            return Fault(Code.TRANSACTION_UNDERPRICED, str(error), {"fee_min": str(error.fee_min)})
        case BlobMissing():
            return Fault(Code.BLOB_MISSING, str(error), {"digest": error.digest.hex()})
        case BlobTooLarge():
            data = {"bytes": error.size_bytes, "bytes_max": error.bytes_max}
            return Fault(Code.BLOB_TOO_LARGE, str(error), data)
        case BlobErased():
            return Fault(Code.BLOB_ERASED, str(error), {"digest": error.name.hex()})
        case BlobQuotaExceeded():
            return Fault(Code.STORAGE_FULL, str(error), {"bytes_max": error.bytes_max})
        case NodeError():
            return Fault(Code.NOT_READY, str(error), {"reason": str(error)})
        case _:
            return None


def _plain(value: int | str | bytes) -> str:
    """Fields of ledger errors as text: bytes as hex, integers (which may be amounts) as decimal strings."""
    return value.hex() if isinstance(value, bytes) else str(value)
