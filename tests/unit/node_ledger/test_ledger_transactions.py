from dataclasses import replace

import pytest

from consensus.codec import decode, encode
from node.ledger.bodies import (
    BODIES,
    AdapterPublish,
    AttestCommit,
    AttestOpen,
    BaseRegister,
    Body,
    ContributionSubmit,
    DatanetCreate,
    EvidenceSubmit,
    Held,
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
from node.ledger.errors import InvalidTransactionError, MalformedError
from node.ledger.openings import decode_voucher, encode_voucher
from node.ledger.params import DEFAULTS
from node.ledger.results import TREASURY
from node.ledger.transaction import (
    TRANSACTION_BYTES_MAX,
    Transaction,
    decode_transaction,
    encode_transaction,
    fee_estimate,
    fee_required,
    sign_transaction,
    transaction_hash,
    verify_signature,
)
from node.ledger.transitions import TRANSITIONS
from tests.unit.node_ledger.world import SALT, World, address, seed

CHAIN = bytes(range(32))
HASH = bytes([7]) * 32
WORLD = World()
PEER = "12D3KooW9xCm2jWjNVrwh51SWCQBMYdMyeU3NpT85QhLVkF6PcNM"

SAMPLES: list[Body] = [
    Transfer(HASH, 5),
    DatanetCreate("docs", ("CC-BY-4.0", "MIT"), ""),
    ContributionSubmit(HASH, HASH, 2, 9, HASH, 40, "MIT"),
    RecordsErase(HASH, (0, 7)),
    BaseRegister(HASH, "tiny"),
    AdapterPublish("a", HASH, (HASH, bytes(32)), b"\x90", HASH, HASH, 9, HASH),
    Held(HASH, b""),
    ProviderBond(5, "serves"),
    WORLD.record_body(WORLD.voucher(HASH)),
    InferenceReveal(HASH, HASH, 9),
    AttestCommit(HASH, 0, HASH),
    AttestOpen(HASH, 1, 0, HASH, ((TREASURY, 400_000_000), (HASH, 600_000_000)), SALT),
    ValidatorRegister(HASH, bytes(64), PEER, HASH, 5),
    ValidatorBond(5),
    ValidatorUnbond(5),
    ValidatorLeave(),
    ValidatorUnjail(),
    ValidatorAnchor(HASH),
    EvidenceSubmit(b"proof"),
]


def signed(body: Body, chain: bytes = CHAIN, nonce: int = 3) -> Transaction:
    return sign_transaction(seed("ann"), chain_id=chain, nonce=nonce, fee=10, valid_until=90, body=body)


def test_every_kind_has_a_sample_a_body_and_a_transition() -> None:
    assert {body.KIND for body in SAMPLES} == set(BODIES) == set(TRANSITIONS)
    assert {kind: cls.KIND for kind, cls in BODIES.items()} == {kind: kind for kind in BODIES}
    assert len({cls.NAME for cls in BODIES.values()}) == len(BODIES)


@pytest.mark.parametrize("body", SAMPLES, ids=lambda body: body.NAME)
def test_a_transaction_survives_its_bytes_and_its_signature_verifies(body: Body) -> None:
    transaction = signed(body)
    again = decode_transaction(encode_transaction(transaction))
    assert again == transaction
    assert transaction_hash(again) == transaction_hash(transaction)
    verify_signature(again)


@pytest.mark.parametrize("body", SAMPLES, ids=lambda body: body.NAME)
def test_any_changed_envelope_field_breaks_the_signature(body: Body) -> None:
    transaction = signed(body)
    for changed in (
        replace(transaction, chain_id=HASH),
        replace(transaction, nonce=4),
        replace(transaction, fee=11),
        replace(transaction, valid_until=91),
        replace(transaction, sender=address("ben")),
        replace(transaction, signature=bytes(64)),
    ):
        with pytest.raises(InvalidTransactionError) as refused:
            verify_signature(changed)
        assert refused.value.code == "bad-signature"


def test_a_changed_body_breaks_the_signature() -> None:
    transaction = signed(Transfer(HASH, 5))
    with pytest.raises(InvalidTransactionError):
        verify_signature(replace(transaction, body=Transfer(HASH, 6)))


def test_the_hash_binds_chain_and_signature() -> None:
    transaction = signed(Transfer(HASH, 5))
    assert transaction_hash(transaction) != transaction_hash(replace(transaction, signature=bytes(64)))
    assert transaction_hash(transaction) != transaction_hash(replace(transaction, chain_id=HASH))


def test_wrong_field_types_sizes_and_ranges_are_refused_at_every_position() -> None:
    fields = decode(encode_transaction(signed(Transfer(HASH, 5))), 1_000)
    spoiled: dict[int, list[object]] = {
        0: [2, "1", None],
        1: [b"short", "text", 5],
        2: [bytes(31), bytes(32), 1],
        3: [-1, 2**63, True, None],
        4: [-1, "0"],
        5: [-1, b""],
        6: [0, 2, 255, None, "1", 10],
        7: [[], [HASH], [HASH, 0], [HASH, -1], [HASH, 5, 5], [bytes(31), 5], 7],
        8: [bytes(63), None],
    }
    for position, values in spoiled.items():
        for value in values:
            with pytest.raises(MalformedError):
                decode_transaction(encode([*fields[:position], value, *fields[position + 1 :]]))


def test_extra_missing_trailing_and_oversized_bytes_are_refused() -> None:
    data = encode_transaction(signed(Transfer(HASH, 5)))
    fields = decode(data, 1_000)
    for spoiled in (
        data + b"\x00",
        data[:-1],
        b"",
        encode(fields[:-1]),
        encode([*fields, 0]),
        encode(5),
        b"\xc1",
    ):
        with pytest.raises(MalformedError):
            decode_transaction(spoiled)
    with pytest.raises(MalformedError):
        decode_transaction(bytes(TRANSACTION_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "body",
    [
        Transfer(HASH, 0),
        Transfer(b"", 1),
        ProviderBond(1, ""),
        ProviderBond(1, "a\nb"),
        ProviderBond(1, "x" * 65),
        ContributionSubmit(HASH, HASH, 10_001, 9, HASH, 40, "MIT"),
        ContributionSubmit(HASH, HASH, 1, 9, HASH, 8 * 2**20 + 1, "MIT"),
        ContributionSubmit(HASH, HASH, 1, 9, HASH, 40, "MIT OR GPL"),
        Held(HASH, b"short"),
        AdapterPublish("a", HASH, (), b"", HASH, HASH, 9, HASH),
    ],
    ids=repr,
)
def test_a_body_out_of_its_limits_is_not_signed(body: Body) -> None:
    with pytest.raises(MalformedError):
        signed(body)


def test_a_voucher_out_of_its_limits_is_not_signed_inside_a_record() -> None:
    good = WORLD.record_body(WORLD.voucher(HASH))
    with pytest.raises(MalformedError):
        signed(replace(good, voucher=replace(good.voucher, sequence=0)))


def test_bodies_that_contradict_themselves_cannot_be_built() -> None:
    with pytest.raises(MalformedError):
        DatanetCreate("docs", ("MIT", "CC0-1.0"), "")
    with pytest.raises(MalformedError):
        AdapterPublish("a", HASH, (HASH, HASH), b"", HASH, HASH, 9, HASH)
    with pytest.raises(MalformedError):
        AttestOpen(HASH, 0, 0, HASH, ((HASH, 10**9 - 1),), SALT)


def test_the_fee_estimate_is_enough_for_any_envelope_and_duties_cost_nothing() -> None:
    for body in SAMPLES:
        largest = sign_transaction(
            seed("ann"), chain_id=CHAIN, nonce=2**63 - 1, fee=2**63 - 1, valid_until=2**63 - 1, body=body
        )
        needed = fee_required(DEFAULTS, body.KIND, len(encode_transaction(largest)))
        estimate = fee_estimate(DEFAULTS, body)
        assert needed <= estimate <= needed + 100 * DEFAULTS.fee_per_byte
        assert (estimate == 0) == (body.NAME in {"held", "attest_commit", "attest_open"})


def test_a_voucher_survives_its_bytes() -> None:
    voucher = WORLD.voucher(HASH)
    assert decode_voucher(encode_voucher(voucher)) == voucher
    with pytest.raises(MalformedError):
        encode_voucher(replace(voucher, fee=-1))
