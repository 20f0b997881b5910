"""The signed envelope around a body: canonical bytes, hash, signature, limits.

``[version, chain_id, sender, nonce, fee, valid_until, kind, [body...], signature]``. The signature is over the first eight fields
in the domain "transaction-sign" of this chain; the hash is over all nine in the domain "transaction". An address is
its 32-byte Ed25519 public key.

Duty kinds (`bodies.DUTY_KINDS`) carry nonce 0 and fee 0 and consume no nonce: the duty itself, owed once, is the
protection against replay, and a validator's attestations never wait behind one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import public_key, sign, verify
from consensus.digest import digest
from node.ledger.bodies import BODIES, SIGNATURE_BYTES, Body
from node.ledger.errors import InvalidCode, InvalidTransactionError, MalformedError
from node.ledger.fields import decode_list, fixed, pack, uint, unpack, validate
from node.ledger.params import Params
from node.ledger.results import ADDRESS_BYTES, HASH_BYTES, TREASURY

SignatureCheck = Callable[[bytes, bytes, bytes], bool]
"""(public key, message, signature) -> whether it is good. `consensus.crypto.Verifier` is one that remembers."""

TRANSACTION_VERSION = 1
TRANSACTION_BYTES_MAX = 64 << 10
ENVELOPE_BYTES_MAX = 192
"""Most bytes that everything but the body can take."""


_FEES = {
    1: "fee_transfer",
    10: "fee_datanet_create",
    20: "fee_contribution",
    21: "fee_contribution",
    30: "fee_base_register",
    31: "fee_adapter_publish",
    40: "fee_provider_bond",
    41: "fee_inference_record",
    42: "fee_inference_reveal",
    60: "fee_validator_register",
    61: "fee_validator_bond",
    62: "fee_validator_unbond",
    63: "fee_validator_leave",
    64: "fee_validator_unjail",
    65: "fee_validator_anchor",
    70: "fee_evidence",
}
"""Parameter that holds a kind's fee; duties have none."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction. `fee` is in units; `valid_until` is the last height at which it may execute."""

    version: int = field(metadata=uint(TRANSACTION_VERSION, TRANSACTION_VERSION))
    chain_id: bytes = field(metadata=fixed(HASH_BYTES))
    sender: bytes = field(metadata=fixed(ADDRESS_BYTES))
    nonce: int = field(metadata=uint())
    fee: int = field(metadata=uint())
    valid_until: int = field(metadata=uint())
    kind: int = field(metadata=uint(255))
    body: Body = field(metadata={"check": lambda value, where: value})
    signature: bytes = field(metadata=fixed(SIGNATURE_BYTES))

    def __post_init__(self) -> None:
        if type(self.body) is not BODIES.get(self.kind):
            raise MalformedError(f"a body that is not of kind {self.kind}", "kind")
        if self.sender == TREASURY:
            raise MalformedError("nobody can sign for the treasury", "sender")


def sign_transaction(
    seed: bytes, *, chain_id: bytes, nonce: int, fee: int, valid_until: int, body: Body
) -> Transaction:
    """Build and sign a transaction of the account whose 32-byte secret seed this is.

    Raises :class:`MalformedError` if a field is out of its range or the whole is over `TRANSACTION_BYTES_MAX`.
    """
    head = (TRANSACTION_VERSION, chain_id, public_key(seed), nonce, fee, valid_until, body.KIND)
    unsigned = Transaction(*head, body=validate(body), signature=bytes(SIGNATURE_BYTES))
    validate(unsigned)
    transaction = Transaction(*head, body=body, signature=sign(seed, signing_digest(unsigned)))
    encode_transaction(transaction)
    return transaction


def signing_digest(transaction: Transaction) -> bytes:
    """The 32 bytes that the sender signs: everything but the signature, bound to the chain."""
    fields = pack(transaction)
    if not isinstance(fields, list):
        raise MalformedError("not a transaction", "transaction")
    return digest("transaction-sign", encode(fields[:-1]), transaction.chain_id)


def encode_transaction(transaction: Transaction) -> bytes:
    """Canonical bytes; raises :class:`MalformedError` over `TRANSACTION_BYTES_MAX`."""
    data = encode(pack(transaction))
    if len(data) > TRANSACTION_BYTES_MAX:
        raise MalformedError(
            f"a transaction of {len(data)} bytes, over {TRANSACTION_BYTES_MAX}", "transaction"
        )
    return data


def decode_transaction(data: bytes) -> Transaction:
    """Read a transaction; checks form and limits, not the signature. Raises :class:`MalformedError`."""
    value = decode_list(data, TRANSACTION_BYTES_MAX, "transaction")
    if not isinstance(value, list) or len(value) != 9:
        raise MalformedError("a transaction is nine fields", "transaction")
    kind = value[6]
    if type(kind) is not int or kind not in BODIES:
        raise MalformedError(f"unknown kind {kind!r:.40}", "kind")
    value[7] = unpack(BODIES[kind], value[7])
    return unpack(Transaction, value, "transaction")


def hash_transaction_bytes(data: bytes, chain_id: bytes) -> bytes:
    """Hash (32 bytes) of a transaction's bytes, whether they decode or not."""
    return digest("transaction", data, chain_id)


def transaction_hash(transaction: Transaction) -> bytes:
    """Hash (32 bytes) that names the transaction, its receipt and what it creates."""
    return hash_transaction_bytes(encode(pack(transaction)), transaction.chain_id)


def fee_required(params: Params, kind: int, size_bytes: int) -> int:
    """Least fee, in units, of a transaction of this kind and size; 0 for duties."""
    name = _FEES.get(kind)
    fee: int = 0 if name is None else getattr(params, name) + params.fee_per_byte * size_bytes
    return fee


def fee_estimate(params: Params, body: Body) -> int:
    """A fee that is always enough for this body, whatever the envelope's integers: at most 100 bytes too high."""
    return fee_required(params, body.KIND, len(encode(pack(body))) + ENVELOPE_BYTES_MAX)


def verify_signature(transaction: Transaction, check: SignatureCheck = verify) -> None:
    """Raise :class:`InvalidTransactionError` unless the sender signed this transaction."""
    if not check(transaction.sender, signing_digest(transaction), transaction.signature):
        raise InvalidTransactionError(InvalidCode.BAD_SIGNATURE, sender=transaction.sender)
