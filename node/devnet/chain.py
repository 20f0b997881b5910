"""One node's RPC for the story: the typed client's calls, awaited, and waiting with a bound.

Everything the story does to the ledger goes through here, so the URLs it submitted to can be counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import trio

from node.client import VALID_HEIGHTS, Client, ClientError, NodeUnreachable, RpcError
from node.devnet.errors import StoryFailed
from node.devnet.supervisor import NodeView
from node.ledger.bodies import Body
from node.ledger.params import Params, params_from_dict
from node.ledger.transaction import fee_estimate
from node.rpc import shapes

T = TypeVar("T")

POLL_SECONDS = 0.2
TRANSACTION_SECONDS_MAX = 60.0
_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Signer:
    """An account of the story that signs: name, address (32 bytes) and secret seed."""

    name: str
    address: bytes
    seed: bytes


class Chain:
    """The node at one URL. Errors of the client become `StoryFailed` that names the step."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.submitted_at: set[str] = set()
        self._client = Client(url)
        self._params: Params | None = None

    async def call(self, method: str, **params: object) -> Any:
        """Call an RPC method; raises what `node.client.Client.call` raises."""
        return await trio.to_thread.run_sync(
            lambda: self._client.call(method, **params), abandon_on_cancel=True
        )

    async def params(self) -> Params:
        """The ledger's parameters; they do not change during the story."""
        if self._params is None:
            values = await self.call("params")
            self._params = params_from_dict({name: int(value) for name, value in values.items()})
        return self._params

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob and return its digest (32 bytes)."""
        return await trio.to_thread.run_sync(self._client.put_blob, data, abandon_on_cancel=True)

    async def get_blob(self, digest: bytes) -> bytes:
        """A blob's bytes."""
        return await trio.to_thread.run_sync(self._client.get_blob, digest, abandon_on_cancel=True)

    async def nonce(self, address: bytes) -> int:
        """The nonce of the account's next transaction."""
        return await trio.to_thread.run_sync(self._client.account_nonce, address, abandon_on_cancel=True)

    async def send(self, step: str, signer: Signer, body: Body, nonce: int | None = None) -> bytes:
        """Sign and submit a transaction and return its hash; raises `StoryFailed`."""
        fee = fee_estimate(await self.params(), body)

        def send() -> bytes:
            return self._client.send(
                signer.seed, body, nonce=nonce, fee=fee, valid_heights=VALID_HEIGHTS
            ).tx_hash

        try:
            tx_hash = await trio.to_thread.run_sync(send, abandon_on_cancel=True)
        except ClientError as error:
            raise StoryFailed(step, f"{signer.name}'s {body.NAME}: {error}{_data_of(error)}") from error
        self.submitted_at.add(self.url)
        return tx_hash

    async def executed(self, step: str, tx_hash: bytes, what: str) -> shapes.Transaction:
        """Wait until a transaction executed well; raises `StoryFailed`."""

        async def fetch() -> shapes.Transaction | None:
            transaction = await trio.to_thread.run_sync(
                self._client.transaction, tx_hash, abandon_on_cancel=True
            )
            return transaction if transaction is not None and transaction["state"] == "committed" else None

        transaction = await self.wait_for(step, what, fetch, TRANSACTION_SECONDS_MAX)
        if transaction["status"] != "ok":
            raise StoryFailed(step, f"{what} {transaction['status']}: {transaction['code']}")
        return transaction

    async def wait_for(
        self, step: str, what: str, fetch: Callable[[], Awaitable[T | None]], seconds_max: float
    ) -> T:
        """Ask until ``fetch`` has something and return it; raises `StoryFailed` naming ``what`` past ``seconds_max``."""
        with trio.move_on_after(seconds_max):
            while True:
                try:
                    found = await fetch()
                except ClientError as error:
                    raise StoryFailed(step, f"{what}: {error}{_data_of(error)}") from error
                if found is not None:
                    return found
                await trio.sleep(POLL_SECONDS)
        raise StoryFailed(step, f"{what}: not within {seconds_max:.0f} s")

    async def receipt(self, inference: bytes) -> shapes.Receipt | None:
        """The receipt of an inference, or None where the node does not know it yet."""
        try:
            return cast("shapes.Receipt", await self.call("receipt", inference=inference.hex()))
        except RpcError as error:
            if error.code == NOT_FOUND:
                return None
            raise


NOT_FOUND = -32001


async def probe(url: str) -> NodeView | None:
    """Readiness of the node at ``url``, or None where it does not answer."""
    client = Client(url, timeout_s=_PROBE_TIMEOUT_S, retries=0)
    try:
        status = await trio.to_thread.run_sync(client.status, abandon_on_cancel=True)
    except (NodeUnreachable, RpcError):
        return None
    return NodeView(status["height"], len(status["peers"]))


def _data_of(error: ClientError) -> str:
    return f" {error.data}" if isinstance(error, RpcError) and error.data else ""
