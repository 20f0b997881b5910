"""The mempool against a dictionary that knows the rules and nothing of how the pool keeps them.

Senders promise, replace, leave gaps and let things expire; leaders take, blocks commit in order or are abandoned, carry
what the pool never saw, and overtake what it holds. After every step both hold exactly the same, and whatever a leader takes can be
executed in the order it was taken in.
"""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.crypto import public_key
from node.config import MempoolSection
from node.errors import MempoolFull, MempoolSenderFull, TransactionUnderpriced
from node.ledger.bodies import Held, Transfer
from node.ledger.transaction import Transaction, transaction_hash
from node.mempool import DUTY_BYTES_PER_SENDER_MAX, EVICTIONS_MAX, Drop, Mempool, Pooled
from tests.profiles import examples

SENDERS = [public_key(bytes([letter]) * 32) for letter in b"abcde"]
VALIDATORS = SENDERS[:2]
BYTES_MAX = 64 * 1024
LIMITS = replace(MempoolSection(), transactions_max=9, transactions_per_sender_max=4, bytes_max=BYTES_MAX)
DUTY_BYTES = 400 * 1024
UNREADY = -1
FOREVER = 1 << 40


@dataclass(frozen=True)
class Row:
    """A transaction as the dictionary knows it."""

    tx_hash: bytes
    sender: bytes
    nonce: int
    fee: int
    size: int
    until: int
    order: int
    duty: bool = False

    @property
    def rate(self) -> int:
        return self.fee * 1_000_000 // self.size


Lines = dict[bytes, dict[int, Row]]


class MempoolMachine(RuleBasedStateMachine):
    """`nonces` and `height` are the ledger's; `lines` and `duties` the model; `blocks` what is proposed and not yet committed."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Mempool(LIMITS)
        self.nonces = dict.fromkeys(SENDERS, 0)
        self.height = 0
        self.order = 0
        self.lines: Lines = {}
        self.duties: dict[bytes, dict[bytes, Row]] = {}
        self.blocks: list[list[Row]] = []
        self.withheld: set[bytes] = set()
        self.dropped: dict[bytes, Drop] = {}
        self.made = 0

    # --- the dictionary ---

    def rows(self) -> dict[bytes, Row]:
        paying = [row for line in self.lines.values() for row in line.values()]
        return {row.tx_hash: row for row in (*paying, *(r for d in self.duties.values() for r in d.values()))}

    def worth(self, sender: bytes, line: dict[int, Row]) -> int:
        """What taking the whole line earns for each byte: nothing but a promise if it has a gap."""
        if max(line) != self.nonces[sender] + len(line) - 1:
            return UNREADY
        return min(row.rate for row in line.values())

    def forget(self, lines: Lines, row: Row) -> None:
        del lines[row.sender][row.nonce]
        if not lines[row.sender]:
            del lines[row.sender]

    def place(self, row: Row) -> tuple[Lines, list[Row]] | type[Exception]:
        """The lines with a transaction added, and what it pushed out; or what refuses it.

        Of lines worth equally little the one of the lowest address loses its end.
        """
        lines = {sender: dict(line) for sender, line in self.lines.items()}
        rival = lines.get(row.sender, {}).get(row.nonce)
        if rival is not None:
            if 10 * row.fee <= 11 * rival.fee:
                return TransactionUnderpriced
            self.forget(lines, rival)
        elif len(lines.get(row.sender, ())) >= LIMITS.transactions_per_sender_max:
            return MempoolSenderFull
        pushed: list[Row] = []
        while (
            sum(map(len, lines.values())) >= LIMITS.transactions_max
            or sum(r.size for line in lines.values() for r in line.values()) + row.size > BYTES_MAX
        ):
            ahead = {nonce: r for nonce, r in lines.get(row.sender, {}).items() if nonce < row.nonce}
            worth = self.worth(row.sender, {**ahead, row.nonce: row})
            prices = {sender: self.worth(sender, line) for sender, line in lines.items()}
            least = min(prices.values(), default=None)
            if least is None or worth == UNREADY or len(pushed) >= EVICTIONS_MAX:
                return MempoolFull
            if least != UNREADY and 10 * worth <= 11 * least:
                return MempoolFull
            owner = min(sender for sender, price in prices.items() if price == least)
            victim = lines[owner][max(lines[owner])]
            self.forget(lines, victim)
            pushed.append(victim)
        lines.setdefault(row.sender, {})[row.nonce] = row
        return lines, pushed

    def proposed(self) -> set[bytes]:
        return {row.tx_hash for block in self.blocks for row in block}

    def choose(self, bytes_max: int, count_max: int) -> list[bytes]:
        """Over and over the best of what could come next, of all senders; one that does not fit ends its sender's line."""
        taken = self.proposed()
        ready = [[row for row in line.values() if row.tx_hash not in taken] for line in self.duties.values()]
        for sender, line in self.lines.items():
            follows, nonce = [], self.nonces[sender]
            while nonce in line:
                if line[nonce].tx_hash not in taken:
                    if line[nonce].tx_hash in self.withheld:
                        break
                    follows.append(line[nonce])
                nonce += 1
            ready.append(follows)
        chosen: list[bytes] = []
        size = 0
        while len(chosen) < count_max and any(ready):
            best = min(
                (follows for follows in ready if follows),
                key=lambda follows: (not follows[0].duty, -follows[0].rate, follows[0].order),
            )
            if size + best[0].size > bytes_max:
                best.clear()
                continue
            row = best.pop(0)
            chosen.append(row.tx_hash)
            size += row.size
        return chosen

    # --- what happens ---

    def transaction(self, sender: bytes, nonce: int, fee: int, until: int) -> Transaction:
        """Unsigned: the pool looks at no signature."""
        self.made += 1
        body = Transfer(b"t" * 32, self.made)
        return Transaction(1, b"c" * 32, sender, nonce, fee, until, Transfer.KIND, body, bytes(64))

    @rule(
        sender=st.sampled_from(SENDERS),
        ahead=st.integers(0, 5),
        fee=st.one_of(st.sampled_from([0, 100, 110, 111, 121, 1000]), st.integers(0, 3000)),
        size=st.sampled_from([250, 250, 250, 9_000, 30_000]),
        lifetime=st.integers(1, 8),
    )
    def submit(self, sender: bytes, ahead: int, fee: int, size: int, lifetime: int) -> None:
        nonce = self.nonces[sender] + ahead
        transaction = self.transaction(sender, nonce, fee, self.height + lifetime)
        tx_hash = transaction_hash(transaction)
        raw = tx_hash.ljust(size, b"\0")
        row = Row(tx_hash, sender, nonce, fee, size, self.height + lifetime, self.order + 1)
        refused: type[Exception] | None = None
        try:
            pooled = self.pool.add(raw, tx_hash, transaction, duty=False, nonce_next=self.nonces[sender])
        except (MempoolFull, MempoolSenderFull, TransactionUnderpriced) as error:
            refused = type(error)
        else:
            assert pooled.tx_hash == tx_hash
        expected = self.place(row)
        if isinstance(expected, type):
            assert refused is expected
            return
        assert refused is None, (refused, row)
        self.order += 1
        rival = self.lines.get(sender, {}).get(nonce)
        self.lines, pushed = expected
        self.dropped |= {victim.tx_hash: Drop.EVICTED for victim in pushed}
        if rival is not None:
            self.dropped[rival.tx_hash] = Drop.REPLACED

    @initialize(fees=st.one_of(st.just([]), st.lists(st.integers(900, 1300), min_size=9, max_size=9)))
    def fill(self, fees: list[int]) -> None:
        """Half of the histories begin with a pool that is full of what can be ordered."""
        for place, fee in enumerate(fees):
            ahead, sender = divmod(place, len(SENDERS))
            self.submit(SENDERS[sender], ahead, fee, 250, 8)

    @rule(data=st.data())
    @precondition(lambda self: self.lines)
    def submit_again(self, data: st.DataObject) -> None:
        """What waits already is taken as it is."""
        row = data.draw(st.sampled_from(sorted(self.rows().values(), key=lambda row: row.order)))
        known = self.pool.get(row.tx_hash)
        assert known is not None
        assert (
            self.pool.add(known.raw, known.tx_hash, known.transaction, duty=row.duty, nonce_next=0) is known
        )

    @rule(sender=st.sampled_from(VALIDATORS), lifetime=st.integers(1, 8), large=st.booleans())
    def oblige(self, sender: bytes, lifetime: int, large: bool) -> None:
        """A validator's duty: no fee, no nonce, bounds of its own."""
        self.made += 1
        body = Held(self.made.to_bytes(32, "big"), b"")
        until = self.height + lifetime
        transaction = Transaction(1, b"c" * 32, sender, 0, 0, until, Held.KIND, body, bytes(64))
        tx_hash = transaction_hash(transaction)
        raw = tx_hash.ljust(DUTY_BYTES if large else 250, b"\0")
        own = self.duties.get(sender, {})
        fits = (
            len(own) < LIMITS.transactions_per_sender_max
            and sum(row.size for row in own.values()) + len(raw) <= DUTY_BYTES_PER_SENDER_MAX
        )
        try:
            self.pool.add(raw, tx_hash, transaction, duty=True)
        except MempoolSenderFull:
            assert not fits
            return
        assert fits
        self.order += 1
        row = Row(tx_hash, sender, 0, 0, len(raw), until, self.order, duty=True)
        self.duties.setdefault(sender, {})[tx_hash] = row

    @rule(data=st.data())
    @precondition(lambda self: self.lines)
    def withhold(self, data: st.DataObject) -> None:
        """Something is not (or again) fit to be included: its blob is not stored by enough."""
        names = sorted(name for name, row in self.rows().items() if not row.duty)
        self.withheld ^= {data.draw(st.sampled_from(names))}

    @rule(data=st.data())
    @precondition(lambda self: self.rows())
    def discard(self, data: st.DataObject) -> None:
        row = self.rows()[data.draw(st.sampled_from(sorted(self.rows())))]
        self.pool.discard(row.tx_hash)
        self.lose(row)

    def lose(self, row: Row) -> None:
        if not row.duty:
            self.forget(self.lines, row)
            return
        del self.duties[row.sender][row.tx_hash]
        if not self.duties[row.sender]:
            del self.duties[row.sender]

    @rule(count_max=st.integers(0, 6), bytes_max=st.sampled_from([700, 31_000, 1 << 20]))
    def propose(self, count_max: int, bytes_max: int) -> None:
        """A leader takes what follows all that is proposed already."""
        if len(self.blocks) >= 3:
            return
        taken = self.proposed()
        chosen = self.pool.select(
            self.nonces.__getitem__, lambda row: row.tx_hash not in self.withheld, taken, bytes_max, count_max
        )
        assert [pooled.tx_hash for pooled in chosen] == self.choose(bytes_max, count_max)
        assert len(chosen) <= count_max
        assert sum(len(pooled.raw) for pooled in chosen) <= bytes_max
        self.executable([row for block in self.blocks for row in block], chosen)
        known = self.rows()
        self.blocks.append([known[pooled.tx_hash] for pooled in chosen])

    def executable(self, before: list[Row], chosen: list[Pooled]) -> None:
        """In this order, after what is proposed already, every nonce is the one its sender is expected to use."""
        expected = dict(self.nonces)
        for row in before:
            if not row.duty and row.nonce == expected[row.sender]:
                expected[row.sender] += 1
        for pooled in chosen:
            if not pooled.duty:
                assert pooled.transaction.nonce == expected[pooled.transaction.sender]
                expected[pooled.transaction.sender] += 1

    @rule(abandon=st.booleans(), stranger=st.sampled_from([None, *SENDERS]), whole=st.booleans())
    def commit(self, abandon: bool, stranger: bytes | None, whole: bool) -> None:
        """The oldest block commits, or all that were proposed are abandoned and another's block commits."""
        block = [] if abandon or not self.blocks else self.blocks.pop(0)
        if abandon:
            self.blocks = []
        self.height += 1
        changed = set()
        for row in block:
            if row.duty or row.nonce != self.nonces[row.sender]:
                continue
            self.nonces[row.sender] += 1
            changed.add(row.sender)
        if stranger is not None:
            self.nonces[stranger] += 1
            changed.add(stranger)
        executed = {row.tx_hash for row in block}
        gone = self.pool.settle(
            executed, self.nonces.__getitem__, self.height, None if whole else sorted(changed)
        )
        left = []
        for row in self.rows().values():
            overtaken = not row.duty and row.nonce < self.nonces[row.sender]
            if row.tx_hash not in executed and row.until > self.height and not overtaken:
                continue
            left.append(row)
            if row.tx_hash not in executed and row.until > self.height:
                self.dropped[row.tx_hash] = Drop.REPLACED
        assert sorted(gone) == sorted(row.tx_hash for row in left)
        for row in left:
            self.lose(row)

    # --- what always holds ---

    @invariant()
    def both_hold_the_same(self) -> None:
        rows = self.rows()
        assert {pooled.tx_hash for pooled in self.pool} == rows.keys()
        assert len(self.pool) == len(rows)
        assert self.pool.size_bytes == sum(row.size for row in rows.values())
        for row in rows.values():
            pooled = self.pool.get(row.tx_hash)
            assert pooled is not None
            assert (pooled.order, pooled.duty, len(pooled.raw)) == (row.order, row.duty, row.size)
            assert self.pool.dropped(row.tx_hash) is None
        for tx_hash, reason in self.dropped.items():
            assert self.pool.dropped(tx_hash) == reason

    @invariant()
    def bounds_hold_for_all_and_for_each(self) -> None:
        paying = [pooled for pooled in self.pool if not pooled.duty]
        assert len(paying) <= LIMITS.transactions_max
        assert sum(len(pooled.raw) for pooled in paying) <= BYTES_MAX
        for sender in SENDERS:
            line = self.lines.get(sender, {})
            assert len(line) <= LIMITS.transactions_per_sender_max
            assert self.pool.fees_of(sender) == sum(row.fee for row in line.values())
            expected = self.nonces[sender]
            while expected in line:
                expected += 1
            assert self.pool.next_nonce(sender, self.nonces[sender]) == expected
            for nonce in range(self.nonces[sender], self.nonces[sender] + 7):
                rival, known = self.pool.rival(sender, nonce), line.get(nonce)
                assert (rival and rival.tx_hash) == (known and known.tx_hash)
        for validator in VALIDATORS:
            own = self.duties.get(validator, {})
            assert sum(row.size for row in own.values()) <= DUTY_BYTES_PER_SENDER_MAX
        assert {pooled.tx_hash for pooled in self.pool.duties()} == {
            name for own in self.duties.values() for name in own
        }

    @invariant()
    def it_is_ready_exactly_when_a_leader_would_take_something(self) -> None:
        ready = self.pool.has_ready(
            self.nonces.__getitem__, lambda row: row.tx_hash not in self.withheld, self.proposed()
        )
        assert ready == bool(self.choose(FOREVER, 1))


MempoolMachine.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40)
TestMempoolMachine = MempoolMachine.TestCase
