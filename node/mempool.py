"""Transactions that wait for a block: bounded, ordered by fee, one line per sender in nonce order.

Pure of trio and disk: the daemon admits (`add`), a leader selects (`select`), execution settles (`settle`).
A full pool makes room for who pays more by dropping the ends of the lines that are worth least; what is over a limit
otherwise is refused with a typed error; what expires or is overtaken by the ledger is dropped.
"""

import heapq
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from node.config import MempoolSection
from node.errors import MempoolFull, MempoolSenderFull, TransactionUnderpriced
from node.ledger.transaction import Transaction

# A replacement has to pay this much more, or a sender could make every node gossip for nothing.
REPLACEMENT_PERCENT_MIN = 10
DUTY_BYTES_PER_SENDER_MAX = 1 << 20
"""Of each validator; its longest duty, an opened attestation, has a few KiB."""

DROPS_REMEMBERED_MAX = 4096
EVICTIONS_MAX = 64
"""For one transaction: a long one must not cost hundreds of others, nor the time to look for them."""

UNREADY = -1
"""Worth of a line with a gap: no block can take its end, so its fee is only a promise."""


class Drop(StrEnum):
    """Why a transaction left the pool although no block executed it and it had not expired."""

    EVICTED = "dropped from the full pool for one that pays more"
    REPLACED = "another transaction of the sender has its nonce"


@dataclass(frozen=True, slots=True)
class Pooled:
    """A checked transaction with its bytes and hash; `order` is its place in arrival.

    `rate` is its fee per byte, in millionths of a unit so that it stays an integer.
    """

    raw: bytes
    tx_hash: bytes
    transaction: Transaction
    duty: bool
    order: int
    rate: int


@dataclass(slots=True)
class Line:
    """One sender's waiting transactions by nonce, and the nonce that the ledger expects of it."""

    expected: int
    waiting: dict[int, Pooled] = field(default_factory=dict)
    fees: int = 0

    @property
    def tail(self) -> Pooled:
        """The last of the line, whose loss leaves no gap before another."""
        return self.waiting[max(self.waiting)]

    @property
    def worth(self) -> int:
        """What taking the line up to its end is worth per byte: its least rate, since none comes before those ahead of it."""
        if max(self.waiting) >= self.expected + len(self.waiting):
            return UNREADY
        return min(pooled.rate for pooled in self.waiting.values())


@dataclass(slots=True)
class Mempool:
    """Waiting transactions. Duties of validators carry neither fee nor nonce and come before everything that pays.

    The limits of the pool are for what pays; duties have their own, of each validator.
    """

    limits: MempoolSection = field(default_factory=MempoolSection)
    _by_hash: dict[bytes, Pooled] = field(default_factory=dict)
    _lines_by_sender: dict[bytes, Line] = field(default_factory=dict)
    _duties: dict[bytes, dict[bytes, Pooled]] = field(default_factory=dict)
    _duty_bytes: dict[bytes, int] = field(default_factory=dict)
    # (worth, sender), lowest first; an entry that its line has left behind is skipped where it is met.
    _cheapest: list[tuple[int, bytes]] = field(default_factory=list)
    # Senders whose lines changed since the pool was last full; those that are gone are kept out of the order.
    _unpriced: set[bytes] = field(default_factory=set)
    # (valid_until, hash), soonest first; an entry whose transaction left earlier is skipped where it is met.
    _expiries: list[tuple[int, bytes]] = field(default_factory=list)
    _dropped: dict[bytes, Drop] = field(default_factory=dict)
    _count: int = 0
    _bytes: int = 0
    _arrivals: int = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self._by_hash

    def get(self, tx_hash: bytes) -> Pooled | None:
        """Return a waiting transaction, or None."""
        return self._by_hash.get(tx_hash)

    @property
    def size_bytes(self) -> int:
        """Bytes of everything that waits, duties included."""
        return self._bytes + sum(self._duty_bytes.values())

    def dropped(self, tx_hash: bytes) -> Drop | None:
        """Why a transaction that waited was dropped, if that was lately and it did not come back."""
        return self._dropped.get(tx_hash)

    def fees_of(self, sender: bytes) -> int:
        """Sum of the fees of a sender's waiting transactions, in units."""
        line = self._lines_by_sender.get(sender)
        return 0 if line is None else line.fees

    def rival(self, sender: bytes, nonce: int) -> Pooled | None:
        """The sender's waiting transaction with this nonce."""
        line = self._lines_by_sender.get(sender)
        return None if line is None else line.waiting.get(nonce)

    def add(
        self, raw: bytes, tx_hash: bytes, transaction: Transaction, *, duty: bool, nonce_next: int = 0
    ) -> Pooled:
        """Take a transaction that the ledger has already found admissible.

        `nonce_next` is the nonce that the ledger expects of the sender. Raises MempoolFull, MempoolSenderFull, or
        TransactionUnderpriced when the sender's nonce is taken by one that pays as well; then nothing has changed. Adding what
        already waits returns it unchanged.
        """
        if (known := self._by_hash.get(tx_hash)) is not None:
            return known
        rate = transaction.fee * 1_000_000 // len(raw)
        pooled = Pooled(raw, tx_hash, transaction, duty, self._arrivals + 1, rate)
        if duty:
            self._refuse_duty(pooled)
        else:
            self._make_room(pooled, nonce_next)
        self._arrivals += 1
        self._insert(pooled, nonce_next)
        if self._dropped:
            self._dropped.pop(tx_hash, None)
        return pooled

    def _refuse_duty(self, pooled: Pooled) -> None:
        """Duties count for their own validator only: the pool that anybody can fill must not keep audits from ending."""
        sender, line_max = pooled.transaction.sender, self.limits.transactions_per_sender_max
        if len(self._duties.get(sender, ())) >= line_max:
            raise MempoolSenderFull(sender, line_max, "the validator has too many duties waiting")
        if self._duty_bytes.get(sender, 0) + len(pooled.raw) > DUTY_BYTES_PER_SENDER_MAX:
            raise MempoolSenderFull(
                sender, DUTY_BYTES_PER_SENDER_MAX, "the validator has too many bytes waiting"
            )

    def _make_room(self, pooled: Pooled, nonce_next: int) -> None:
        """Drop the rival for a nonce, or the ends of cheaper lines, or raise and change nothing."""
        transaction, line_max = pooled.transaction, self.limits.transactions_per_sender_max
        sender, line = transaction.sender, self._lines_by_sender.get(transaction.sender)
        rival = None if line is None else line.waiting.get(transaction.nonce)
        if rival is not None:
            fee_min = rival.transaction.fee + rival.transaction.fee * REPLACEMENT_PERCENT_MIN // 100 + 1
            if transaction.fee < fee_min:
                raise TransactionUnderpriced(fee_min)
            self._remove(rival)
        elif line is not None and len(line.waiting) >= line_max:
            raise MempoolSenderFull(sender, line_max, "the sender has too many transactions waiting")
        elif self._excess(len(pooled.raw)) is None:
            return
        evicted: list[tuple[Pooled, int]] = []
        while (unit := self._excess(len(pooled.raw))) is not None:
            cheapest = self._cheapest_tail(pooled, nonce_next) if len(evicted) < EVICTIONS_MAX else None
            if cheapest is None:
                for back, expected in reversed(evicted):
                    self._insert(back, expected)
                if rival is not None:
                    self._insert(rival, nonce_next)
                raise MempoolFull(*unit)
            evicted.append((cheapest, self._lines_by_sender[cheapest.transaction.sender].expected))
            self._remove(cheapest)
        for gone, _ in evicted:
            self._remember(gone, Drop.EVICTED)
        if rival is not None:
            self._remember(rival, Drop.REPLACED)

    def _excess(self, size_bytes: int) -> tuple[int, str] | None:
        """The limit that one more transaction of this size would break, and its unit."""
        if self._count >= self.limits.transactions_max:
            return self.limits.transactions_max, "transactions"
        if self._bytes + size_bytes > self.limits.bytes_max:
            return self.limits.bytes_max, "bytes"
        return None

    def _cheapest_tail(self, pooled: Pooled, nonce_next: int) -> Pooled | None:
        """The end of the line that is worth least, where `pooled` is worth a tenth more.

        Never one that `pooled` follows: behind it, `pooled` is worth no more than that line.
        """
        worth = self._worth_with(pooled, nonce_next)
        self._put_in_order()
        while self._cheapest:
            least, owner = self._cheapest[0]
            line = self._lines_by_sender.get(owner)
            if line is None or line.worth != least:
                heapq.heappop(self._cheapest)
                continue
            if least != UNREADY and 100 * worth <= (100 + REPLACEMENT_PERCENT_MIN) * least:
                return None
            return None if worth == UNREADY else line.tail
        return None

    def _worth_with(self, pooled: Pooled, nonce_next: int) -> int:
        """What the sender's line up to `pooled` is worth once that has joined it."""
        sender, nonce = pooled.transaction.sender, pooled.transaction.nonce
        line = self._lines_by_sender.get(sender)
        ahead = {} if line is None else {at: row for at, row in line.waiting.items() if at < nonce}
        return Line(nonce_next, {**ahead, nonce: pooled}).worth

    def _remember(self, pooled: Pooled, reason: Drop) -> None:
        if len(self._dropped) >= DROPS_REMEMBERED_MAX:
            del self._dropped[next(iter(self._dropped))]
        self._dropped[pooled.tx_hash] = reason

    def _price(self, sender: bytes) -> None:
        """Note that a line changed: what it is worth is asked only where the pool is full (`_put_in_order`)."""
        self._unpriced.add(sender)

    def _put_in_order(self) -> None:
        """Put the lines that changed where they belong in the order of worth."""
        for sender in self._unpriced:
            line = self._lines_by_sender.get(sender)
            if line is not None:
                heapq.heappush(self._cheapest, (line.worth, sender))
        self._unpriced.clear()
        if len(self._cheapest) > 2 * len(self._lines_by_sender) + 64:
            self._cheapest = [(line.worth, owner) for owner, line in self._lines_by_sender.items()]
            heapq.heapify(self._cheapest)

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
        lines = list(self._lines(next_nonce, includable, already_proposed))
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
        if all(tx_hash in already_proposed for tx_hash in self._by_hash):
            return False  # without a look at each line, which is what waiting for a commit would cost again and again
        lines = self._lines(next_nonce, includable, already_proposed)
        return any(next(line, None) is not None for line in lines)

    def settle(
        self,
        executed: Collection[bytes],
        next_nonce: Callable[[bytes], int],
        height: int,
        changed: Iterable[bytes] | None = None,
    ) -> list[bytes]:
        """Drop what a block executed, what the ledger has overtaken, and what expired; return the hashes.

        `changed` are the accounts that the block changed, so that only their lines are looked at; None: any may have.
        """
        gone = {tx_hash: self._by_hash[tx_hash] for tx_hash in executed if tx_hash in self._by_hash}
        gone |= self._expired(height)
        for sender in tuple(self._lines_by_sender) if changed is None else changed:
            line = self._lines_by_sender.get(sender)
            if line is None or (expected := next_nonce(sender)) == line.expected:
                continue
            line.expected = expected
            self._price(sender)
            for nonce, pooled in line.waiting.items():
                if nonce < expected and pooled.tx_hash not in gone:
                    gone[pooled.tx_hash] = pooled
                    self._remember(pooled, Drop.REPLACED)
        for pooled in gone.values():
            self._remove(pooled)
        return list(gone)

    def _expired(self, height: int) -> dict[bytes, Pooled]:
        """What may not execute after this height."""
        found: dict[bytes, Pooled] = {}
        while self._expiries and self._expiries[0][0] <= height:
            _, tx_hash = heapq.heappop(self._expiries)
            if (pooled := self._by_hash.get(tx_hash)) is not None:
                found[tx_hash] = pooled
        return found

    def next_nonce(self, sender: bytes, executed: int) -> int:
        """The first nonce from `executed` on that none of the sender's waiting transactions has."""
        line = self._lines_by_sender.get(sender)
        while line is not None and executed in line.waiting:
            executed += 1
        return executed

    def discard(self, tx_hash: bytes) -> None:
        """Drop one transaction, if it waits."""
        if (pooled := self._by_hash.get(tx_hash)) is not None:
            self._remove(pooled)

    def __iter__(self) -> Iterator[Pooled]:
        return iter(tuple(self._by_hash.values()))

    def duties(self) -> tuple[Pooled, ...]:
        """The waiting duties of validators."""
        return tuple(pooled for line in self._duties.values() for pooled in line.values())

    def _lines(
        self,
        next_nonce: Callable[[bytes], int],
        includable: Callable[[Pooled], bool],
        already_proposed: Container[bytes],
    ) -> Iterator[Iterator[Pooled]]:
        """One iterator per sender of what may go in next: duties freely, the rest in nonce order without gaps."""
        for duties in self._duties.values():
            yield iter([pooled for pooled in duties.values() if pooled.tx_hash not in already_proposed])
        for sender, line in self._lines_by_sender.items():
            yield _in_nonce_order(line.waiting, next_nonce(sender), includable, already_proposed)

    def _insert(self, pooled: Pooled, nonce_next: int) -> None:
        transaction, size_bytes = pooled.transaction, len(pooled.raw)
        sender = transaction.sender
        self._by_hash[pooled.tx_hash] = pooled
        heapq.heappush(self._expiries, (transaction.valid_until, pooled.tx_hash))
        if len(self._expiries) > 2 * len(self._by_hash) + 64:
            self._expiries = [(row.transaction.valid_until, name) for name, row in self._by_hash.items()]
            heapq.heapify(self._expiries)
        if pooled.duty:
            self._duties.setdefault(sender, {})[pooled.tx_hash] = pooled
            self._duty_bytes[sender] = self._duty_bytes.get(sender, 0) + size_bytes
            return
        line = self._lines_by_sender.get(sender)
        if line is None:
            line = self._lines_by_sender[sender] = Line(nonce_next)
        line.waiting[transaction.nonce] = pooled
        line.fees += transaction.fee
        self._count += 1
        self._bytes += size_bytes
        self._price(sender)

    def _remove(self, pooled: Pooled) -> None:
        del self._by_hash[pooled.tx_hash]
        sender, size_bytes = pooled.transaction.sender, len(pooled.raw)
        if pooled.duty:
            del self._duties[sender][pooled.tx_hash]
            self._duty_bytes[sender] -= size_bytes
            if not self._duties[sender]:
                del self._duties[sender], self._duty_bytes[sender]
            return
        line = self._lines_by_sender[sender]
        del line.waiting[pooled.transaction.nonce]
        line.fees -= pooled.transaction.fee
        self._count -= 1
        self._bytes -= size_bytes
        if line.waiting:
            self._price(sender)
        else:
            del self._lines_by_sender[sender]
            self._unpriced.discard(sender)


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
    """Duties first, then by fee per byte, then by arrival."""
    return (not pooled.duty, -pooled.rate, pooled.order)
