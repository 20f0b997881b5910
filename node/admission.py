"""Whether a transaction may wait here: form, envelope, signature, and what its sender can still promise.

Each transaction is read once and each signature verified once.
"""

from collections.abc import Sequence

from node.duties import is_owed
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.ledger.admission import mempool_check_unsigned
from node.ledger.bodies import DUTY_KINDS, STORED_KINDS, AttestCommit, AttestOpen, Held
from node.ledger.entries import ACCOUNT, PARAMS_KEY, Account
from node.ledger.errors import InvalidCode, InvalidTransactionError, LedgerError
from node.ledger.state import get_account
from node.ledger.transaction import Transaction
from node.mempool import Mempool, Pooled
from node.storage.chain import ChainStore

ACCOUNTS_REMEMBERED_MAX = 32_768
VOUCHED_HEIGHTS_MAX = 2_000
"""A blob that was vouched for stays until its transaction has expired, so that may not be far away."""

# A duty that the state does not ask for (yet: its sender may be ahead) is kept so long.
UNOWED_HEIGHTS_MAX = 8


class Admission:
    """The checks at the mempool's door, against the state at the executed height."""

    def __init__(
        self,
        chain_id: bytes,
        store: ChainStore,
        executor: Executor,
        mempool: Mempool,
        check: SharedVerifier,
    ) -> None:
        self._chain_id = chain_id
        self._store = store
        self._executor = executor
        self._mempool = mempool
        self._check = check
        self._read = executor.read
        # Waiting duties that the state does not ask for, with the height each was met at.
        self._unowed: dict[bytes, int] = {}
        self._state = _RecentState(store)

    def hash(self, raw: bytes) -> bytes:
        """Hash (32 bytes) of a transaction's bytes."""
        return self._read.hash(raw)

    def admit(self, raw: bytes) -> Pooled | None:
        """Check a transaction and pool it; None when it waits already or was executed. Raises LedgerError, MempoolFull and kin.

        The signature is verified here and not in a thread: what leaves Python's lock for 50 microseconds waits up to a
        millisecond to get it back from a busy loop (docs/adr/023).
        """
        read = self._read(raw)
        if read.tx_hash in self._mempool:
            return None
        transaction = read.transaction
        if self._performed(read.tx_hash, transaction):
            return None
        self._check_envelope(transaction, len(raw))
        if not self._check(*read.signed):
            raise InvalidTransactionError(InvalidCode.BAD_SIGNATURE, sender=transaction.sender)
        duty = transaction.kind in DUTY_KINDS
        if not duty:
            self._check_payable(transaction)
        nonce_next = self.next_nonce(transaction.sender)
        pooled = self._mempool.add(raw, read.tx_hash, transaction, duty=duty, nonce_next=nonce_next)
        if duty and not self._owed(transaction):
            self._unowed[pooled.tx_hash] = self._executor.head.height
        return pooled

    def _check_payable(self, transaction: Transaction) -> None:
        """A sender's waiting transactions may not promise more in fees than it has: those past it would cost it nothing."""
        sender, balance = transaction.sender, self.account(transaction.sender).balance
        rival = self._mempool.rival(sender, transaction.nonce)
        promised = self._mempool.fees_of(sender) - (0 if rival is None else rival.transaction.fee)
        if promised + transaction.fee > balance:
            raise InvalidTransactionError(
                InvalidCode.FEE_UNPAYABLE,
                "the balance does not cover the fees of what waits already and this one",
                fee=transaction.fee,
                promised=promised,
                balance=balance,
            )

    def _performed(self, tx_hash: bytes, transaction: Transaction) -> bool:
        """Whether it has had its effect. One that was ordered but found invalid, without nonce consumed, has not."""
        duty = transaction.kind in DUTY_KINDS
        # Before the database is asked: what pays and was performed has consumed its nonce.
        if not duty and transaction.nonce >= self.next_nonce(transaction.sender):
            return False
        if self._store.transaction_place(tx_hash) is None:
            return False
        return not (duty and self._owed(transaction))

    def _check_envelope(self, transaction: Transaction, size_bytes: int) -> None:
        height = self._executor.head.height
        mempool_check_unsigned(self._state, transaction, size_bytes, height, chain_id=self._chain_id)
        if transaction.kind in STORED_KINDS and transaction.valid_until > height + VOUCHED_HEIGHTS_MAX:
            raise InvalidTransactionError(
                InvalidCode.EXPIRY_TOO_FAR,
                f"a transaction with a blob may stay valid for {VOUCHED_HEIGHTS_MAX} heights here",
                valid_until=transaction.valid_until,
                height=height,
            )

    def settle(self, done: ExecutedBlock) -> None:
        """Drop what a block has dealt with.

        What was only ordered at the wrong time (before its turn, or without storage receipts) goes on waiting: otherwise
        one proposer could take other people's transactions out of every pool.
        """
        self._state.forget(done.accounts)
        gone = set(done.performed)
        for tx_hash in done.invalid:
            pooled = self._mempool.get(tx_hash)
            if pooled is not None and not self._still_admissible(pooled):
                gone.add(tx_hash)
        self._mempool.settle(gone, self.next_nonce, done.head.height, done.accounts)
        self._weigh_duties(done.head.height)

    def _weigh_duties(self, height: int) -> None:
        """Note which waiting duties the state does not ask for, and drop those it has not asked for in a while."""
        unowed: dict[bytes, int] = {}
        for pooled in self._mempool.duties():
            if not self._owed(pooled.transaction):
                since = self._unowed.get(pooled.tx_hash, height)
                if height - since < UNOWED_HEIGHTS_MAX:
                    unowed[pooled.tx_hash] = since
                else:
                    self._mempool.discard(pooled.tx_hash)
        self._unowed = unowed

    @property
    def unowed(self) -> frozenset[bytes]:
        """Hashes of waiting duties that the state does not ask for."""
        return frozenset(self._unowed)

    def _owed(self, transaction: Transaction) -> bool:
        body = transaction.body
        if not isinstance(body, Held | AttestCommit | AttestOpen):
            return True
        return is_owed(self._store, transaction.sender, body)

    def _still_admissible(self, pooled: Pooled) -> bool:
        try:
            self._check_envelope(pooled.transaction, len(pooled.raw))
        except LedgerError:
            return False
        return not pooled.duty

    def next_nonce(self, sender: bytes) -> int:
        """The nonce that the ledger expects of a sender at the executed height."""
        return self.account(sender).nonce

    def account(self, sender: bytes) -> Account:
        """A sender's account at the executed height."""
        return get_account(self._state, sender)


class _RecentState:
    """The executed state; accounts, and the parameters (which never change), are read from the database once.

    A leader asks for every sender before every block, and each of its transactions asks twice when it is admitted.
    """

    __slots__ = ("_known", "_store")

    def __init__(self, store: ChainStore) -> None:
        self._store = store
        self._known: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        if not key.startswith(ACCOUNT) and key != PARAMS_KEY:
            return self._store.get(key)
        if key in self._known:
            return self._known[key]
        if len(self._known) >= ACCOUNTS_REMEMBERED_MAX:
            self._known.clear()
        value = self._known[key] = self._store.get(key)
        return value

    def forget(self, accounts: Sequence[bytes]) -> None:
        """Read these accounts anew."""
        for address in accounts:
            self._known.pop(ACCOUNT + address, None)
