"""A synchronous JSON-RPC client of a node, on the standard library's HTTP alone.

Every method of the node is safe to repeat (a transaction is named by its hash and a blob by its digest), so a call
whose connection breaks is retried a bounded number of times. A `Client` holds no connection and may be shared by threads.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode, urlsplit

if TYPE_CHECKING:
    from node.ledger.bodies import Body
    from node.rpc import shapes

RESPONSE_BYTES_MAX = 128 * 2**20
VALID_HEIGHTS = 1000
"""How many heights a transaction built here stays valid, unless the caller says otherwise."""

_SERVER_BUSY = -32010
_RATE_LIMITED = -32015
_NOT_FOUND = -32001
_BACKOFF_S = 0.1
_RETRY_AFTER_S_MAX = 5.0
_EVENT_LINE_BYTES_MAX = 2**20


class ClientError(Exception):
    """Base of what a `Client` raises."""


class NodeUnreachable(ClientError):
    """No node answers at ``url``, or what answers is not a node."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"cannot reach a node at {url}: {reason}")


class RpcError(ClientError):
    """The node refused: ``code`` is one of ``docs/rpc.md``'s table, ``data`` has that row's keys."""

    def __init__(self, code: int, message: str, data: dict[str, Any]) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(f"{message} (code {code})")


class TransactionRejected(ClientError):
    """A transaction was ordered but failed (fee paid, nothing else changed) or was invalid (nothing charged)."""

    def __init__(self, transaction: shapes.Transaction) -> None:
        self.transaction = transaction
        self.status = transaction["status"]
        self.code = transaction["code"]
        super().__init__(f"transaction {transaction['tx_hash']} {self.status}: {self.code}")


class TransactionExpired(ClientError):
    """The chain passed the height until which a transaction was valid without executing it."""

    def __init__(self, tx_hash: str, valid_until: int) -> None:
        self.tx_hash = tx_hash
        self.valid_until = valid_until
        super().__init__(f"transaction {tx_hash} expired: valid until height {valid_until}, never executed")


class WaitTimeout(ClientError):
    """What was waited for did not happen in time; it still may."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self.what = what
        self.timeout_s = timeout_s
        super().__init__(f"{what}: not within {timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction that a node accepted: its hash (32 bytes), nonce, fee in units and last valid height."""

    tx_hash: bytes
    nonce: int
    fee: int
    valid_until: int


@dataclass(frozen=True, slots=True)
class Event:
    """One event of ``/events``: its ``kind``, its ``id`` (``HEIGHT-INDEX``, "" where it has none), and its members.

    Kinds are "block", "transaction" and "receipt"; "gap" says which blocks were left out because they lie too far back.
    """

    kind: str
    id: str
    data: dict[str, Any]


class Client:
    """Calls to one node.

    ``url`` is ``http://HOST:PORT``; ``timeout_s`` bounds each socket operation of a call, ``retries`` how often a call
    is repeated when the connection breaks or the node says that it is busy or called too often.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, retries: int = 2) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise NodeUnreachable(url, "expected a URL of the form http://HOST:PORT")
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port or 80
        self._timeout_s = timeout_s
        self._retries = retries
        self._ids = itertools.count(1)

    def call(self, method: str, **params: object) -> Any:
        """Call an RPC method with named parameters and return its result.

        Raises `RpcError` where the node refuses and `NodeUnreachable` where none answers, after the retries.
        """
        identity = next(self._ids)
        request = {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}
        body = json.dumps(request).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            pause_s = _BACKOFF_S * 2**attempt
            try:
                return self._result(self._post(body), identity)
            except NodeUnreachable:
                if last:
                    raise
            except RpcError as error:
                if last or error.code not in (_SERVER_BUSY, _RATE_LIMITED):
                    raise
                after_s = _retry_after_s(error)
                if after_s > _RETRY_AFTER_S_MAX:
                    raise
                pause_s = max(pause_s, after_s)
            time.sleep(pause_s)  # another process's good time has no event to wait for
        raise NodeUnreachable(self.url, "retries must not be negative")

    def _post(self, body: bytes) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        headers = {"content-type": "application/json", "connection": "close"}
        try:
            # A node that refuses a body answers before having read it; that answer may already be here.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", "/", body, headers)
            response = connection.getresponse()
            data = response.read(RESPONSE_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise NodeUnreachable(self.url, str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if len(data) > RESPONSE_BYTES_MAX:
            raise NodeUnreachable(self.url, f"the answer is over {RESPONSE_BYTES_MAX} bytes")
        return data

    def _result(self, data: bytes, identity: int) -> Any:
        try:
            response = json.loads(data)
        except ValueError as error:
            raise NodeUnreachable(self.url, "the answer is not JSON; is this a node?") from error
        if not isinstance(response, dict) or response.get("id") not in (identity, None):
            raise NodeUnreachable(self.url, "the answer is not a JSON-RPC response; is this a node?")
        error_member = response.get("error")
        if isinstance(error_member, dict):
            data_member = error_member.get("data")
            raise RpcError(
                int(error_member.get("code", 0)),
                str(error_member.get("message", "")),
                data_member if isinstance(data_member, dict) else {},
            )
        if "result" not in response:
            raise NodeUnreachable(self.url, "the answer has neither a result nor an error; is this a node?")
        return response["result"]

    def events(self, after: str | None = None, **wanted: str) -> Iterator[Event]:
        """What executed blocks hold, as it happens, without an end; closing the iterator closes the connection.

        ``wanted`` are the filters of ``docs/rpc.md``: ``types``, ``hash``, ``sender``, ``status``, ``subject``. ``after``
        is the id of the last event that is not wanted any more, or a height; without it come new blocks only. A broken
        connection is resumed where it broke. Raises `RpcError` where the node refuses, `NodeUnreachable` after as many
        failures in a row as `call` allows.
        """
        failures = 0
        while True:
            try:
                for event in self._stream(after, wanted):
                    failures = 0
                    after = event.id or after
                    if event.kind not in ("", "end"):
                        yield event
                reason = "the node ended the stream"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            failures += 1
            if failures > self._retries:
                raise NodeUnreachable(self.url, reason)
            # A connection that a node refused or dropped says nothing about when it will be taken: back off.
            time.sleep(_BACKOFF_S * 2**failures)

    def _stream(self, after: str | None, wanted: dict[str, str]) -> Iterator[Event]:
        """The events of one connection; those of kind "" only carry an id."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            headers = {} if after is None else {"last-event-id": after}
            connection.request("GET", f"/events?{urlencode(wanted)}", headers=headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                self._result(response.read(_EVENT_LINE_BYTES_MAX), 0)
                raise NodeUnreachable(self.url, f"/events answered {response.status}; is this a node?")
            kind, identity, text = "", "", ""
            while line := response.readline(_EVENT_LINE_BYTES_MAX):
                name, _, value = line.decode("utf-8", "replace").rstrip("\n").partition(": ")
                if not name:
                    yield Event(kind, identity, self._event_data(text))
                    kind, identity, text = "", "", ""
                elif name == "event":
                    kind = value
                elif name == "id":
                    identity = value
                elif name == "data":
                    text = value
        finally:
            connection.close()

    def _event_data(self, text: str) -> dict[str, Any]:
        try:
            data = json.loads(text or "{}")
        except ValueError as error:
            raise NodeUnreachable(self.url, "an event is not JSON; is this a node?") from error
        return data if isinstance(data, dict) else {}

    def status(self) -> shapes.Status:
        """Where the node stands."""
        return cast("shapes.Status", self.call("status"))

    def block(self, height: int) -> shapes.Block:
        """An executed block; `RpcError` NOT_FOUND where the node has none."""
        return cast("shapes.Block", self.call("block", height=height))

    def account(self, address: bytes) -> shapes.Account:
        """An account; one that never was has balance and nonce 0."""
        return cast("shapes.Account", self.call("account", address=address.hex()))

    def account_nonce(self, address: bytes) -> int:
        """The nonce of the account's next transaction, counting what is pending at this node."""
        return int(self.account(address)["nonce_next"])

    def transaction(self, tx_hash: bytes) -> shapes.Transaction | None:
        """A transaction that the node knows of, or None."""
        try:
            return cast("shapes.Transaction", self.call("tx", hash=tx_hash.hex()))
        except RpcError as error:
            if error.code == _NOT_FOUND:
                return None
            raise

    def put_blob(self, data: bytes) -> bytes:
        """Store a blob and return its 32-byte digest."""
        return bytes.fromhex(self.call("blob_put", data=data.hex())["digest"])

    def get_blob(self, digest: bytes) -> bytes:
        """A blob's bytes; the caller checks what they hash to. `RpcError` NOT_FOUND where the node lacks it."""
        return bytes.fromhex(self.call("blob_get", digest=digest.hex())["data"])

    def submit(self, tx_bytes: bytes) -> bytes:
        """Submit a signed transaction's canonical bytes and return its 32-byte hash."""
        return bytes.fromhex(self.call("tx_submit", tx=tx_bytes.hex())["tx_hash"])

    def send(
        self,
        seed: bytes,
        body: Body,
        *,
        nonce: int | None = None,
        fee: int | None = None,
        valid_heights: int = VALID_HEIGHTS,
    ) -> Sent:
        """Build, sign and submit a transaction of any kind from the account of the 32-byte ``seed``.

        ``nonce`` and ``fee`` (units) are asked of the node and estimated from its parameters where not given.
        """
        raw, sent = self.build(seed, body, nonce=nonce, fee=fee, valid_heights=valid_heights)
        self.submit(raw)
        return sent

    def build(
        self,
        seed: bytes,
        body: Body,
        *,
        nonce: int | None = None,
        fee: int | None = None,
        valid_heights: int = VALID_HEIGHTS,
    ) -> tuple[bytes, Sent]:
        """Build and sign what `send` would submit, without submitting: (canonical bytes, what they say)."""
        from node.keys import public_key
        from node.ledger.bodies import DUTY_KINDS
        from node.ledger.params import params_from_dict
        from node.ledger.transaction import (
            encode_transaction,
            fee_estimate,
            sign_transaction,
            transaction_hash,
        )

        status = self.status()
        if body.KIND in DUTY_KINDS:
            # Duties of validators carry neither; the duty itself, owed once, is what protects them.
            nonce, fee = 0, 0
        if nonce is None:
            nonce = self.account_nonce(public_key(seed))
        if fee is None:
            values = {name: int(value) for name, value in self.call("params").items()}
            fee = fee_estimate(params_from_dict(values), body)
        valid_until = status["height"] + valid_heights
        transaction = sign_transaction(
            seed,
            chain_id=bytes.fromhex(status["chain_id"]),
            nonce=nonce,
            fee=fee,
            valid_until=valid_until,
            body=body,
        )
        return encode_transaction(transaction), Sent(transaction_hash(transaction), nonce, fee, valid_until)

    def wait_transaction(
        self, tx_hash: bytes, timeout_s: float = 60.0, valid_until: int | None = None, poll_s: float = 0.1
    ) -> shapes.Transaction:
        """Poll until a transaction executed and return it.

        Raises `TransactionRejected` where it failed or was invalid, `TransactionExpired` where the node passed
        ``valid_until`` without it, `WaitTimeout` after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            # The height is read first: what is unknown after the node had passed valid_until will never come.
            height = self.status()["height"] if valid_until is not None else 0
            transaction = self.transaction(tx_hash)
            if transaction is not None and transaction["state"] == "committed":
                if transaction["status"] != "ok":
                    raise TransactionRejected(transaction)
                return transaction
            if valid_until is not None and height > valid_until:
                raise TransactionExpired(tx_hash.hex(), valid_until)
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"transaction {tx_hash.hex()}", timeout_s)
            time.sleep(poll_s)

    def send_and_wait(
        self, seed: bytes, body: Body, timeout_s: float = 60.0, **options: int | None
    ) -> shapes.Transaction:
        """`send` with its options, then `wait_transaction`."""
        sent = self.send(seed, body, **cast("Any", options))
        return self.wait_transaction(sent.tx_hash, timeout_s, sent.valid_until)

    def wait_until(self, what: str, done: Callable[[], bool], timeout_s: float, poll_s: float = 0.1) -> None:
        """Poll ``done`` until it is true; raises `WaitTimeout` naming ``what``."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() >= deadline:
                raise WaitTimeout(what, timeout_s)
            time.sleep(poll_s)

    def wait_height(self, height: int, timeout_s: float = 60.0) -> None:
        """Wait until the node executed ``height``."""
        self.wait_until(f"height {height}", lambda: self.status()["height"] >= height, timeout_s)


def _retry_after_s(error: RpcError) -> float:
    """How long the node asks to wait; 0 where it does not say."""
    after_ms = error.data.get("retry_after_ms", 0)
    return after_ms / 1000 if isinstance(after_ms, int) else 0.0
