"""Vectors of the ledger: the genesis, transactions of each kind, batches, receipts, vouchers, audits, the state."""

from __future__ import annotations

from consensus.crypto import public_key
from consensus.digest import digest
from node.ledger.accumulator import Accumulator, accumulator_root, append, encode_accumulator
from node.ledger.batch import (
    StorageClaim,
    batch_digest,
    encode_batch,
    sign_batch,
    sign_storage_receipt,
    storage_receipt_digest,
)
from node.ledger.block import BlockContext, Receipt, encode_receipt, receipts_root
from node.ledger.bodies import (
    DUTY_KINDS,
    AdapterPublish,
    AttestCommit,
    AttestOpen,
    BaseRegister,
    Body,
    ContributionSubmit,
    DatanetCreate,
    EvidenceSubmit,
    Held,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
    RecordsErase,
    Transfer,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorRegister,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.entries import (
    DRAWS_KEY,
    INFERENCE,
    PROVIDER,
    DrawGroup,
    Draws,
    Inference,
    InferenceStatus,
    Payout,
    Provider,
    Role,
    ValidatorEntry,
    ValidatorSet,
)
from node.ledger.environment import Environment
from node.ledger.epochs import end_epoch
from node.ledger.erasure import remaining_name
from node.ledger.fields import to_bytes
from node.ledger.genesis import chain_id, make_genesis
from node.ledger.lthash import lthash_of, state_digest
from node.ledger.openings import (
    Opening,
    Voucher,
    encode_opening,
    encode_voucher,
    inference_id,
    output_commitment,
    prompt_commitment,
    sign_voucher,
)
from node.ledger.overlay import Overlay
from node.ledger.params import DEFAULTS, Params, encode_params
from node.ledger.records import encode_records, records_root
from node.ledger.results import TREASURY, attestation_commitment, audit_result_hash
from node.ledger.serving import draw_audits
from node.ledger.stakes import get_history, possession_digest, sign_possession
from node.ledger.state import get_draws, get_inference
from node.ledger.transaction import (
    Transaction,
    encode_transaction,
    sign_transaction,
    signing_digest,
    transaction_hash,
)
from node.network.address import peer_id_of_seed
from node.storage.blobs import blob_digest
from tests.vectors.notation import Encoding, Json, Vector, VectorMismatch, named

SEED, PROVIDER_SEED, VALIDATOR_SEED = bytes([0x11]) * 32, bytes([0x12]) * 32, bytes([0x13]) * 32
USER, SERVES = public_key(SEED), public_key(PROVIDER_SEED)
A, B, SALT = bytes([0xA1]) * 32, bytes([0xA2]) * 32, bytes([0x5A]) * 32
SHARES = ((TREASURY, 250_000_000), (A, 750_000_000))
RECORDS = ((72, 105), (300, 70_000, 0, 127, 128), (4_294_967_295,))
# With the default parameters: a new default is a new chain for everybody who does not name it, and shows here.
GENESIS = make_genesis(
    "vectors",
    1_700_000_000_000,
    tuple(
        ValidatorEntry(
            public_key(bytes([0x30 + n]) * 32), public_key(bytes([0x40 + n]) * 32), f"peer-{n}", 10**12, A
        )
        for n in range(2)
    ),
    ((USER, 10**15), (SERVES, 2**40)),
    DEFAULTS,
    (B,),
)
CHAIN = chain_id(GENESIS)
PEER = peer_id_of_seed(SEED)
POSSESSION = sign_possession(VALIDATOR_SEED, CHAIN, USER)
VOUCHER = Voucher(CHAIN, USER, SERVES, 7, A, prompt_commitment(SALT, RECORDS[0]), 16, 10**9, 500)
BODIES: tuple[Body, ...] = (
    Transfer(A, 2**63 - 1),
    DatanetCreate("docs", ("CC-BY-4.0", "MIT"), "Prüfung, 試験"),
    ContributionSubmit(A, records_root(RECORDS), 3, 8, B, 40, "MIT"),
    BaseRegister(A, "tiny"),
    AdapterPublish("adapter", A, (A, B), b"\x90", A, B, 2**40, A),
    Held(A, B),
    ProviderBond(100 * 10**9, "serves"),
    InferenceRecord(VOUCHER, sign_voucher(SEED, VOUCHER), output_commitment(SALT, (1, 300)), 2, 2),
    InferenceReveal(A, B, 90),
    AttestCommit(A, 0, B),
    AttestOpen(A, 1, 0, B, SHARES, SALT),
    ValidatorRegister(public_key(VALIDATOR_SEED), POSSESSION, PEER, B, 10**12),
    ValidatorBond(10**9),
    ValidatorUnbond(1),
    ValidatorLeave(),
    ValidatorUnjail(),
    ValidatorAnchor(A),
    EvidenceSubmit(b"two signed statements"),
    RecordsErase(A, (0, 23, 9_999)),
)
CLAIM = StorageClaim(B, 40, A, 3, 8)
RECEIPTS = (
    Receipt(A, 0, 1, "", 120_000),
    Receipt(B, 3, 0, "settled", 0, (Payout(Role.OWNER, A, 190), Payout(Role.PROVIDER, B, 5)), 50),
)


def transactions() -> list[Transaction]:
    """One signed transaction of each kind."""
    made = []
    for number, body in enumerate(BODIES):
        duty = body.KIND in DUTY_KINDS
        terms = (0, 0) if duty else (number + 1, 10**6)
        made.append(
            sign_transaction(SEED, chain_id=CHAIN, nonce=terms[0], fee=terms[1], valid_until=99, body=body)
        )
    return made


def transaction_vectors() -> list[Vector]:
    """What a sender signs and what names a transaction, for each kind."""
    made = []
    for transaction in transactions():
        name = type(transaction.body).NAME
        fields = named(transaction)
        unsigned = {key: value for key, value in fields.items() if key != "signature"}
        made += [
            Vector(
                f"signing {name}",
                "transaction-sign",
                CHAIN,
                unsigned,
                signing_digest(transaction),
                signer=SEED,
                signature=transaction.signature,
            ),
            Vector(f"hash of {name}", "transaction", CHAIN, fields, transaction_hash(transaction)),
        ]
    return made


def vectors() -> list[Vector]:
    """Everything else that the ledger hashes or signs."""
    raw = encode_transaction(transactions()[0])
    batch = sign_batch(VALIDATOR_SEED, CHAIN, 3, ((raw, ((A, bytes([9]) * 64),)), (b"not a transaction", ())))
    items = [{"transaction": tx, "receipts": receipts} for tx, receipts in batch.items]
    result = (A, B, 1, [1], [2, 300], [-1, 0, 127, 128, -128, -129, 2**70], SHARES, 0)
    attested = {
        "inference": A,
        "status": 0,
        "result_hash": B,
        "shares": SHARES,
        "account": USER,
        "salt": SALT,
    }
    return [
        Vector("chain id", "genesis", b"", named(GENESIS), CHAIN),
        Vector(
            "batch",
            "batch",
            CHAIN,
            {"author": batch.author, "sequence": 3, "items": items},
            batch_digest(batch, CHAIN),
            signer=VALIDATOR_SEED,
            signature=batch.signature,
        ),
        Vector(
            "storage receipt",
            "storage-receipt",
            CHAIN,
            named(CLAIM),
            storage_receipt_digest(CLAIM, CHAIN),
            signer=VALIDATOR_SEED,
            signature=sign_storage_receipt(VALIDATOR_SEED, CLAIM, CHAIN),
        ),
        Vector(
            "voucher, and the inference it names",
            "voucher",
            CHAIN,
            named(VOUCHER),
            inference_id(VOUCHER),
            signer=SEED,
            signature=sign_voucher(SEED, VOUCHER),
        ),
        Vector(
            "prompt",
            "prompt-commitment",
            b"",
            {"salt": SALT, "ids": [1, 300]},
            prompt_commitment(SALT, [1, 300]),
        ),
        Vector("output", "output-commitment", b"", {"salt": SALT, "ids": []}, output_commitment(SALT, [])),
        Vector("audit result", "audit-result", b"", _result_fields(), audit_result_hash(*result)),
        Vector(
            "attestation",
            "attestation",
            b"",
            attested,
            attestation_commitment(A, 0, B, SHARES, USER, SALT),
        ),
        Vector(
            "blob",
            "blob",
            b"",
            {"bytes": encode_records(RECORDS)},
            blob_digest(encode_records(RECORDS)),
            raw=True,
        ),
        Vector(
            "name of what is left", "remaining-blob", b"", {"blob_digest": B}, remaining_name(B), raw=True
        ),
        Vector(
            "proof of possession",
            "possession",
            CHAIN,
            {"account": USER},
            possession_digest(CHAIN, USER),
            raw=True,
            signer=VALIDATOR_SEED,
            signature=POSSESSION,
        ),
        *_draw_vectors(),
        _epoch_vector(),
        *_state_vectors(),
    ]


def _result_fields() -> dict[str, object]:
    """Fields of the audit result: tokens as u32 big-endian, scores as shortest two's complement."""
    return {
        "adapter_hash": A,
        "index_root": B,
        "index_version": 1,
        "prompt_ids": bytes.fromhex("00000001"),
        "output_ids": bytes.fromhex("000000020000012c"),
        "scores": [bytes.fromhex(h) for h in ("ff", "00", "7f", "0080", "80", "ff7f", "400000000000000000")],
        "shares": SHARES,
        "status": 0,
    }


def _draw_vectors() -> list[Vector]:
    """The beacon's two steps to the draw of one inference, taken by the ledger itself."""
    name, zero, reveals = inference_id(VOUCHER), bytes(32), (bytes([0xC1]) * 32, bytes([0xC2]) * 32)
    overlay = Overlay({})
    waiting = Inference(InferenceStatus.RECORDED, VOUCHER, A, 2, 2, 1, 1)
    overlay.put_record(INFERENCE + name, waiting)
    overlay.put_record(PROVIDER + SERVES, Provider("serves", 10**12, 1, 1, 0, VOUCHER.fee))
    overlay.put_record(DRAWS_KEY, Draws((DrawGroup(1, zero, (), (name,)),)))
    four = tuple(ValidatorEntry(bytes([n]) * 32, bytes([n, 0]) * 16, f"peer-{n}", 1, A) for n in range(1, 5))
    mixes = [zero]
    for number, reveal in enumerate(reveals):
        context = BlockContext(CHAIN, 5 + number, 0, 5 + number, 9, four[number].consensus_key, reveal, 4)
        env = Environment(context, _never_audited(), ValidatorSet(four), four[number].account, _refuse)
        draw_audits(overlay, env)
        mixes.append(digest("beacon-mix", mixes[-1] + reveal, CHAIN))
        groups = get_draws(overlay)
        if groups and groups[0].mix != mixes[-1]:
            raise VectorMismatch("the ledger mixes the beacon otherwise")
    drawn = get_inference(overlay, name)
    if drawn is None or not drawn.draw:
        raise VectorMismatch("the ledger did not draw")
    steps = [
        Vector(
            f"beacon mix {k + 1}",
            "beacon-mix",
            CHAIN,
            {"mix": mixes[k], "reveal": reveals[k]},
            mixes[k + 1],
            raw=True,
        )
        for k in range(2)
    ]
    fields = {"mix": mixes[2], "inference": name}
    return [*steps, Vector("audit draw", "audit-draw", CHAIN, fields, drawn.draw, raw=True)]


def _epoch_vector() -> Vector:
    """The first reveal of an epoch, mixed by the ledger itself at the end of a block."""
    reveal, entry = bytes([0xC1]) * 32, GENESIS.validators[0]
    env = Environment(
        BlockContext(CHAIN, 1, 0, 1, GENESIS.timestamp_ms, entry.consensus_key, reveal, 0),
        Params(epoch_heights=9, stake_min=1),
        ValidatorSet(GENESIS.validators),
        entry.account,
        _refuse,
    )
    overlay = Overlay({})
    end_epoch(overlay, env)
    fields = {"mix": bytes(32), "reveal": reveal}
    return Vector("epoch mix", "epoch-mix", CHAIN, fields, get_history(overlay, 2).mix, raw=True)


def _never_audited() -> Params:
    return Params(audit_probability_ppb=0)


def _refuse(public: bytes, message: bytes, signature: bytes) -> bool:
    return False


def _state_vectors() -> list[Vector]:
    entries = {b"a/" + A: b"\x92\x05\x00", b"g/head": b"\x92\x01\x02"}
    total = lthash_of(entries)
    one = [
        Vector(
            f"state entry {number}",
            "state-entry",
            b"",
            {"key": key, "value": value},
            lthash_of({key: value}),
        )
        for number, (key, value) in enumerate(entries.items(), 1)
    ]
    leaves = [A, B, SALT]
    hashed = [digest("accumulator-leaf", leaf) for leaf in leaves]
    node = digest("accumulator-node", hashed[0] + hashed[1])
    three = append(append(append(Accumulator(), A), B), SALT)
    if three.peaks != (node, hashed[2]):
        raise VectorMismatch("the accumulator has other peaks")
    return [
        *one,
        Vector("state", "state", CHAIN, {"lthash": total}, state_digest(total, CHAIN), raw=True),
        Vector("leaf", "accumulator-leaf", b"", {"receipts_root": A}, hashed[0], raw=True),
        Vector("node", "accumulator-node", b"", {"left": hashed[0], "right": hashed[1]}, node, raw=True),
        Vector(
            "accumulator of none",
            "accumulator-root",
            b"",
            named(Accumulator()),
            accumulator_root(Accumulator()),
        ),
        Vector("accumulator of three", "accumulator-root", b"", named(three), accumulator_root(three)),
    ]


def encodings() -> list[Encoding]:
    """What the ledger sends and stores as a canonical array."""
    batch = sign_batch(VALIDATOR_SEED, CHAIN, 4, ((b"one", ()),))
    opening = Opening((1, 300), SALT, (70_000,), SALT)
    made = [
        Encoding(f"transaction {tx.body.NAME}", named(tx), encode_transaction(tx)) for tx in transactions()
    ]
    return [
        *made,
        Encoding("batch", named(batch), encode_batch(batch)),
        Encoding("voucher", named(VOUCHER), encode_voucher(VOUCHER)),
        Encoding("opening", named(opening), encode_opening(opening)),
        Encoding("records", RECORDS, encode_records(RECORDS)),
        Encoding("receipt", named(RECEIPTS[0]), encode_receipt(RECEIPTS[0])),
        Encoding("receipt of a settlement", named(RECEIPTS[1]), encode_receipt(RECEIPTS[1])),
        Encoding("accumulator", named(Accumulator(1, (A,))), encode_accumulator(Accumulator(1, (A,)))),
        Encoding("params", named(DEFAULTS), encode_params(DEFAULTS)),
        Encoding(
            "validators", named(ValidatorSet(GENESIS.validators)), to_bytes(ValidatorSet(GENESIS.validators))
        ),
    ]


def derived() -> Json:
    """Roots over several leaves."""
    peaks = Accumulator()
    roots = [accumulator_root(peaks).hex()]
    for number in range(7):
        peaks = append(peaks, bytes([number]) * 32)
        roots.append(accumulator_root(peaks).hex())
    entries = {b"a/" + A: b"\x92\x05\x00", b"g/head": b"\x92\x01\x02", b"k/" + B: B}
    return {
        "records": {"records": [list(record) for record in RECORDS], "root": records_root(RECORDS).hex()},
        "receipts": {
            "leaves": [encode_receipt(receipt).hex() for receipt in RECEIPTS],
            "root": receipts_root(RECEIPTS).hex(),
        },
        "accumulator": {"leaf_bytes": list(range(7)), "roots_of_0_to_7_leaves": roots},
        "state": {
            "chain_id": CHAIN.hex(),
            "entries": [[key.hex(), value.hex()] for key, value in entries.items()],
            "digest": state_digest(lthash_of(entries), CHAIN).hex(),
        },
    }
