"""Transfers from several senders through the public RPC of random nodes, for ever, whatever becomes of the nodes.

Every transfer moves one unit to one receiver, so the receiver's balance counts what was executed.
"""

import os
import random
from collections import deque
from collections.abc import Sequence

import trio

from consensus.crypto import public_key
from node.devnet.network import Account
from node.ledger.bodies import Body, Transfer
from node.ledger.transaction import encode_transaction, sign_transaction, transaction_hash
from tests.chaos.fleet import Fleet
from tests.chaos.rpc import NodeSilent, Refused, call, call_batch

FEE_UNITS = 1_000_000
"""More than the least fee of a transfer."""

VALID_HEIGHTS = 500
PATIENCE_S = 4.0
"""After so long without an answer from the chain a sender asks another node which nonce is next."""

LATENCIES_MAX = 100_000
INSIST_S = 1.0
INSIST_AT_ONCE_S = 0.1


class Load:
    """Senders that share one random source; `accepted` counts what nodes took, `latencies_s` what was executed meanwhile.

    `payments` are the hashes of all transfers to the receiver, sent or not.

    A latency runs from the call's begin to the first event of another node than the one that was called.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.receiver = public_key(os.urandom(32))
        self.accepted = 0
        self.refused = 0
        self.silent = 0
        self.payments: set[str] = set()
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_MAX)
        self._fleet = fleet
        self._random = random.Random(seed)
        self._sent: dict[str, tuple[str, str, float]] = {}  # hash to account, entry, time
        fleet.listeners.append(self._executed)

    def _executed(self, node: str, members: dict[str, object]) -> None:
        sent = self._sent.get(str(members["tx_hash"]))
        if sent is not None and sent[1] != node:
            del self._sent[str(members["tx_hash"])]
            self.latencies_s.append(trio.current_time() - sent[2])

    def raw(
        self, account: Account, nonce: int, body: Body | None = None, fee: int = FEE_UNITS
    ) -> tuple[str, str]:
        """A signed transaction, a transfer of one unit to the receiver unless told otherwise: (hash, canonical bytes), in hex."""
        transaction = sign_transaction(
            account.seed,
            chain_id=self._fleet.network.chain_id,
            nonce=nonce,
            fee=fee,
            valid_until=self._fleet.height() + VALID_HEIGHTS,
            body=body or Transfer(self.receiver, 1),
        )
        tx_hash = transaction_hash(transaction).hex()
        if body is None:
            self.payments.add(tx_hash)
        return tx_hash, encode_transaction(transaction).hex()

    async def send(self, account: Account, transfers_per_second: float, batch: int) -> None:
        """Send `batch` transfers in each call, at a rate, from one account for ever."""
        nonce, entry = -1, ""
        due = trio.current_time() + self._random.random()
        while True:
            due = max(due + batch / transfers_per_second, trio.current_time())
            await trio.sleep_until(due)
            try:
                if nonce < 0 or self._waits_too_long(account):
                    self._forget(account)
                    entry = self._random.choice(self._fleet.live or list(self._fleet.seats))
                    nonce = await next_nonce(self._fleet, entry, account)
                nonce = await self._send_batch(account, entry, nonce, batch)
            except (NodeSilent, Refused) as error:
                self.silent += isinstance(error, NodeSilent)
                self.refused += isinstance(error, Refused)
                nonce = -1

    async def _send_batch(self, account: Account, entry: str, nonce: int, batch: int) -> int:
        """Submit through `entry`; returns the nonce after the last one that was taken."""
        made = [self.raw(account, nonce + step) for step in range(batch)]
        now = trio.current_time()
        for tx_hash, _ in made:
            self._sent[tx_hash] = (account.name, entry, now)
        answers = await call_batch(
            self._fleet.url(entry), [("tx_submit", {"tx": raw}) for _, raw in made], PATIENCE_S
        )
        for (tx_hash, _), answer in zip(made, answers, strict=True):
            if isinstance(answer, Refused):
                self._sent.pop(tx_hash, None)
                raise answer
            self.accepted += 1
        return nonce + batch

    async def insist(
        self,
        account: Account,
        names: Sequence[str],
        hashes: set[str],
        body: Body | None = None,
        fee: int = FEE_UNITS,
    ) -> None:
        """The same transaction to one node after the other, once more each second, for ever: a node may have lost what it was told.

        Its hash is put into `hashes` before it is sent.
        """
        raw, position = "", 0
        while True:
            entry = names[position % len(names)]
            position += 1
            try:
                if not raw:
                    nonce = await next_nonce(self._fleet, entry, account)
                    tx_hash, raw = self.raw(account, nonce, body, fee)
                    hashes.add(tx_hash)
                await call_batch(self._fleet.url(entry), [("tx_submit", {"tx": raw})])
            except (NodeSilent, Refused):
                continue_s = INSIST_AT_ONCE_S
            else:
                continue_s = INSIST_S
            await trio.sleep(continue_s)

    def _waits_too_long(self, account: Account) -> bool:
        oldest = min(
            (at for name, _, at in self._sent.values() if name == account.name), default=float("inf")
        )
        return trio.current_time() - oldest > PATIENCE_S

    def _forget(self, account: Account) -> None:
        for tx_hash in [key for key, (name, _, _) in self._sent.items() if name == account.name]:
            del self._sent[tx_hash]


async def next_nonce(fleet: Fleet, entry: str, account: Account) -> int:
    """The nonce that follows what `entry` knows of the account; raises `NodeSilent`, `Refused`."""
    known = await call(fleet.url(entry), "account", address=account.address.hex())
    return int(known["nonce_next"])
