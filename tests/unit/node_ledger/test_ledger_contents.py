import pytest

from consensus.codec import encode
from node.ledger.errors import MalformedError
from node.ledger.openings import (
    OPENING_BYTES_MAX,
    Opening,
    decode_opening,
    encode_opening,
    inference_id,
    output_commitment,
    prompt_commitment,
)
from node.ledger.records import (
    RECORD_TOKENS_MAX,
    RECORDS_BYTES_MAX,
    RECORDS_MAX,
    decode_records,
    encode_records,
    records_root,
    token_count,
)
from node.ledger.results import (
    TREASURY,
    AuditResult,
    AuditStatus,
    attestation_commitment,
    audit_result_hash,
)
from tests.unit.node_ledger.world import SALT, World

A, B = bytes([1]) * 32, bytes([2]) * 32
SHARES = ((TREASURY, 10**9 - 7), (A, 3), (B, 4))


def test_records_survive_their_blob() -> None:
    records = ((1, 2, 3), (0,), (2**32 - 1, 70_000))
    assert decode_records(encode_records(records)) == records
    assert token_count(records) == 6


def test_the_root_depends_on_every_token_and_on_the_order() -> None:
    root = records_root([[1, 2], [3]])
    assert records_root([[1, 2], [4]]) != root
    assert records_root([[3], [1, 2]]) != root
    assert records_root([[1], [2, 3]]) != root
    assert records_root(((1, 2), (3,))) == root


@pytest.mark.parametrize(
    "value", [[], [[]], [[-1]], [[2**32]], [[True]], [["a"]], [5], [None], 7, [[1], [1.5]], [[[1]]]], ids=repr
)
def test_blobs_that_are_not_records_are_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        decode_records(encode(value) if value != [[1], [1.5]] else b"\x92\x91\x01\x91\xcb" + bytes(8))


def test_records_over_a_limit_are_refused() -> None:
    for records in ([[1]] * (RECORDS_MAX + 1), [[1] * (RECORD_TOKENS_MAX + 1)]):
        with pytest.raises(MalformedError):
            encode_records(records)
        with pytest.raises(MalformedError):
            decode_records(encode(records))
    with pytest.raises(MalformedError):
        decode_records(bytes(RECORDS_BYTES_MAX + 1))
    assert len(decode_records(encode_records([[1]] * RECORDS_MAX))) == RECORDS_MAX


def test_an_opening_survives_its_blob_and_anything_else_is_refused() -> None:
    opening = Opening((1, 2), SALT, (3,), bytes(32))
    assert decode_opening(encode_opening(opening)) == opening
    for value in ([], [[1], SALT, [2]], [[1], b"", [2], SALT], [[-1], SALT, [2], SALT], [1, SALT, [2], SALT]):
        with pytest.raises(MalformedError):
            decode_opening(encode(value))
    with pytest.raises(MalformedError):
        decode_opening(bytes(OPENING_BYTES_MAX + 1))


def test_commitments_depend_on_side_salt_and_ids() -> None:
    commitment = prompt_commitment(SALT, [1, 2])
    assert commitment == prompt_commitment(SALT, (1, 2))
    others = (
        output_commitment(SALT, [1, 2]),
        prompt_commitment(bytes(32), [1, 2]),
        prompt_commitment(SALT, [1, 3]),
    )
    assert commitment not in others
    with pytest.raises(MalformedError):
        prompt_commitment(b"short", [1])


def test_an_inference_is_named_by_its_voucher_alone() -> None:
    world = World()
    voucher = world.voucher(A)
    assert inference_id(voucher) == inference_id(world.voucher(A))
    assert inference_id(voucher) != inference_id(world.voucher(A, sequence=2))


def test_the_result_hash_depends_on_every_argument() -> None:
    def hashed(**changed: object) -> bytes:
        arguments: dict[str, object] = {
            "adapter_hash": A,
            "index_root": B,
            "index_version": 1,
            "prompt_ids": [1, 2],
            "output_ids": [3],
            "scores": [0, -5, 2**90],
            "shares": SHARES,
            "status": 0,
        }
        return audit_result_hash(**(arguments | changed))  # type: ignore[arg-type]

    variants = [
        hashed(),
        hashed(adapter_hash=B),
        hashed(index_root=A),
        hashed(index_version=2),
        hashed(prompt_ids=[1]),
        hashed(prompt_ids=[1, 2, 3], output_ids=[]),
        hashed(scores=[0, -5, 2**90 + 1]),
        hashed(scores=[0, 5, 2**90]),
        hashed(scores=[0, -5]),
        hashed(shares=()),
        hashed(status=3),
    ]
    assert len(set(variants)) == len(variants)
    assert hashed(scores=(0, -5, 2**90), status=AuditStatus.OK) == variants[0]


def test_neighbouring_scores_of_any_width_never_share_a_hash() -> None:
    scores = [0, 1, -1, 127, 128, -128, -129, 255, 256, -256, 2**63, -(2**63), 2**64, -(2**64), 2**200]
    hashes = {audit_result_hash(A, B, 1, [], [], [score], (), 0) for score in scores}
    assert len(hashes) == len(scores)


def test_a_commitment_binds_the_validator_and_every_part_of_the_result() -> None:
    arguments = (A, 0, B, SHARES, A, SALT)
    for position, other in enumerate((B, 3, A, (), B, bytes(32))):
        changed = (*arguments[:position], other, *arguments[position + 1 :])
        assert attestation_commitment(*changed) != attestation_commitment(*arguments)  # type: ignore[arg-type]


def test_shares_must_sum_and_ascend_and_only_good_results_have_any() -> None:
    AuditResult(0, A, SHARES)
    AuditResult(1, A, ())
    for status, shares in (
        (0, ()),
        (0, SHARES[:2]),
        (0, (SHARES[1], SHARES[0], SHARES[2])),
        (0, ((A, 5 * 10**8), (A, 5 * 10**8))),
        (1, SHARES),
        (4, SHARES),
    ):
        with pytest.raises(MalformedError):
            AuditResult(status, A, shares)
