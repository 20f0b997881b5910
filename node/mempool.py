"""Transactions that wait for a block: bounded, ordered by fee, one line per sender in nonce order.

Pure of trio and disk: the daemon admits (`add`), a leader selects (`select`), execution settles (`settle`).
What is over a limit is refused with a typed error; what expires or is overtaken by the ledger is dropped.
"""

import heapq
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field

from node.config import MempoolSection
from node.errors import MempoolFull, MempoolSenderFull, TransactionUnderpriced
from node.ledger.transaction import Transaction

# A replacement has to pay this much more, or a sender could make every node gossip for nothing.
REPLACEMENT_PERCENT_MIN = 10


@dataclass(frozen=True, slots=True)
class Pooled:
    """A checked transaction with its bytes and hash; `order` is its place in arrival."""

    raw: bytes
    tx_hash: bytes
    transaction: Transaction
    duty: bool
    order: int


@dataclass(slots=True)
class Mempool:
    """Waiting transactions. Duties of validators carry neither fee nor nonce and come before everything that pays."""

    limits: MempoolSection = field(default_factory=MempoolSection)
    _by_hash: dict[bytes, Pooled] = field(default_factory=dict)
    _by_sender: dict[bytes, dict[int, Pooled]] = field(default_factory=dict)
    _duties: dict[bytes, dict[bytes, Pooled]] = field(default_factory=dict)
    _bytes: int = 0
    _arrivals: int = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self._by_hash

    def get(self, tx_hash: bytes) -> Pooled | None:
        """Return a waiting transaction, or None."""
        return self._by_hash.get(tx_hash)

    def add(self, raw: bytes, tx_hash: bytes, transaction: Transaction, *, duty: bool) -> Pooled:
        """Take a transaction that the ledger has already found admissible.

        Raises MempoolFull, MempoolSenderFull, or TransactionUnderpriced when the sender's nonce is taken by one
        that pays as well. Adding what already waits returns it unchanged.
        """
        if (known := self._by_hash.get(tx_hash)) is not None:
            return known
        sender = transaction.sender
        rival = None if duty else self._by_sender.get(sender, {}).get(transaction.nonce)
        if rival is not None:
            fee_min = rival.transaction.fee + rival.transaction.fee * REPLACEMENT_PERCENT_MIN // 100 + 1
            if transaction.fee < fee_min:
                raise TransactionUnderpriced(fee_min)
        self._refuse_excess(sender, len(raw), rival, duty=duty)
        if rival is not None:
            self._remove(rival)
        self._arrivals += 1
        pooled = Pooled(raw, tx_hash, transaction, duty, self._arrivals)
        self._by_hash[tx_hash] = pooled
        if duty:
            self._duties.setdefault(sender, {})[tx_hash] = pooled
        else:
            self._by_sender.setdefault(sender, {})[transaction.nonce] = pooled
        self._bytes += len(raw)
        return pooled

    def _refuse_excess(self, sender: bytes, size_bytes: int, rival: Pooled | None, *, duty: bool) -> None:
        """Raise where another transaction has no room.

        Duties count for their own validator only: the pool that anybody can fill must not keep audits from ending.
        """
        line_max = self.limits.transactions_per_sender_max
        waiting = len(self._duties.get(sender, ())) if duty else len(self._by_sender.get(sender, ()))
        if rival is None and waiting >= line_max:
            raise MempoolSenderFull(sender, line_max, "the sender has too many transactions waiting")
        if duty:
            return
        if rival is None and len(self._by_hash) >= self.limits.transactions_max:
            raise MempoolFull(self.limits.transactions_max)
        if self._bytes + size_bytes - (0 if rival is None else len(rival.raw)) > self.limits.bytes_max:
            raise MempoolFull(self.limits.bytes_max, "bytes")

    def select(
        self,
        next_nonce: Callable[[bytes], int],
        includable: Callable[[Pooled], bool],
        already_proposed: Container[bytes],
        bytes_max: int,
        count_max: int,
    ) -> list[Pooled]:
        """Choose what a block may carry, best paid first, each sender's in nonce order without gaps.

        Args:
            next_nonce: the nonce the ledger expects of a sender, at the executed height.
            includable: whether a transaction has what inclusion asks for (storage receipts).
            already_proposed: hashes in uncommitted ancestors; they count as consumed, and are not chosen again.
            bytes_max: most bytes chosen in all.
            count_max: most transactions chosen.
        """
        lines = self._lines(next_nonce, includable, already_proposed)
        heap = [
            (_rank(first), place, first) for place, line in enumerate(lines) if (first := next(line, None))
        ]
        heapq.heapify(heap)
        chosen: list[Pooled] = []
        size = 0
        while heap and len(chosen) < count_max:
            _, place, pooled = heapq.heappop(heap)
            if size + len(pooled.raw) > bytes_max:
                continue  # the rest of this line has to wait; another sender's may still fit
            chosen.append(pooled)
            size += len(pooled.raw)
            if (following := next(lines[place], None)) is not None:
                heapq.heappush(heap, (_rank(following), place, following))
        return chosen

    def has_ready(
        self,
        next_nonce: Callable[[bytes], int],
        includable: Callable[[Pooled], bool],
        already_proposed: Container[bytes],
    ) -> bool:
        """Whether `select` would choose anything."""
        lines = self._lines(next_nonce, includable, already_proposed)
        return any(next(line, None) is not None for line in lines)

    def settle(
        self, executed: Container[bytes], next_nonce: Callable[[bytes], int], height: int
    ) -> list[bytes]:
        """Drop what a block executed, what the ledger has overtaken, and what expired; return the hashes."""
        gone = [
            pooled
            for pooled in self._by_hash.values()
            if pooled.tx_hash in executed
            or pooled.transaction.valid_until <= height
            or (not pooled.duty and pooled.transaction.nonce < next_nonce(pooled.transaction.sender))
        ]
        for pooled in gone:
            self._remove(pooled)
        return [pooled.tx_hash for pooled in gone]

    def next_nonce(self, sender: bytes, executed: int) -> int:
        """The first nonce from `executed` on that none of the sender's waiting transactions has."""
        line = self._by_sender.get(sender, {})
        while executed in line:
            executed += 1
        return executed

    def discard(self, tx_hash: bytes) -> None:
        """Drop one transaction, if it waits."""
        if (pooled := self._by_hash.get(tx_hash)) is not None:
            self._remove(pooled)

    def __iter__(self) -> Iterator[Pooled]:
        return iter(tuple(self._by_hash.values()))

    def _lines(
        self,
        next_nonce: Callable[[bytes], int],
        includable: Callable[[Pooled], bool],
        already_proposed: Container[bytes],
    ) -> list[Iterator[Pooled]]:
        """One iterator per sender of what may go in next: duties freely, the rest in nonce order without gaps."""
        duties = [
            iter([pooled for pooled in line.values() if pooled.tx_hash not in already_proposed])
            for line in self._duties.values()
        ]
        paid = [
            _in_nonce_order(line, next_nonce(sender), includable, already_proposed)
            for sender, line in self._by_sender.items()
        ]
        return duties + paid

    def _remove(self, pooled: Pooled) -> None:
        del self._by_hash[pooled.tx_hash]
        self._bytes -= len(pooled.raw)
        sender = pooled.transaction.sender
        if pooled.duty:
            del self._duties[sender][pooled.tx_hash]
            if not self._duties[sender]:
                del self._duties[sender]
        else:
            del self._by_sender[sender][pooled.transaction.nonce]
            if not self._by_sender[sender]:
                del self._by_sender[sender]


def _in_nonce_order(
    line: dict[int, Pooled],
    nonce: int,
    includable: Callable[[Pooled], bool],
    already_proposed: Container[bytes],
) -> Iterator[Pooled]:
    """Yield a sender's transactions from `nonce` on, until the first gap or the first that must wait."""
    while (pooled := line.get(nonce)) is not None:
        if pooled.tx_hash not in already_proposed:
            if not includable(pooled):
                return
            yield pooled
        nonce += 1


def _rank(pooled: Pooled) -> tuple[bool, int, int]:
    """Duties first, then by fee per byte (in millionths, so that it stays an integer), then by arrival."""
    return (not pooled.duty, -(pooled.transaction.fee * 1_000_000 // len(pooled.raw)), pooled.order)
