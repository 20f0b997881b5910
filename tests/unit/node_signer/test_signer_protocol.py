"""Requests and answers: each comes back equal, and bytes that are neither are refused by a typed error."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import decode, encode
from consensus.errors import CodecError
from consensus.safety import ForeignSignature, SafetyRules
from consensus.types import QC, TC, Handover, SyncInfo
from consensus.validators import VALIDATORS_MAX, Validator, make_validator_set
from node.signer.errors import SignerProtocolError
from node.signer.frames import length_of, pack
from node.signer.protocol import (
    ANSWER_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Answer,
    AskCommitVote,
    AskEpoch,
    AskForeign,
    AskProposal,
    AskStatus,
    AskTimeout,
    AskVote,
    Judged,
    Refused,
    Request,
    Signed,
    Status,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from tests.profiles import examples
from tests.unit.consensus.lab import (
    CHAIN,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    SEEDS,
    VALIDATORS,
    Chain,
    cc_of,
    commit_vote_by,
    qc_of,
    quorum_tc,
    timeout_by,
    vote_by,
)

MADE = Chain()
ONE = MADE.block(GENESIS, 1)
SKIPS = MADE.block(ONE, 4, tc=quorum_tc(3, qc_of(ONE)))
RULES = SafetyRules(SEEDS[3], CONTEXT)
RULES.sign_vote(ONE)
RULES.sign_timeout(2, qc_of(ONE), None)
RECORD = RULES.record

REQUESTS: list[Request] = [
    AskStatus(),
    AskVote(ONE),
    AskVote(SKIPS),
    AskCommitVote(qc_of(ONE), ONE.header),
    AskTimeout(1, GENESIS_QC, None),
    AskTimeout(4, qc_of(ONE), quorum_tc(3, qc_of(ONE))),
    AskProposal(ONE.header),
    AskForeign(ForeignSignature("commit vote", 7, 3)),
    AskEpoch(Handover((ONE.header,), cc_of(ONE)), VALIDATORS),
]
ANSWERS: list[Answer] = [
    Status(KEYS[3], CHAIN, RECORD, None),
    Status(KEYS[3], CHAIN, RECORD, SyncInfo(qc_of(ONE), quorum_tc(3, qc_of(ONE)), None)),
    Signed(vote_by(3, ONE), RECORD),
    Signed(commit_vote_by(3, ONE), RECORD),
    Signed((timeout_by(3, 2, qc_of(ONE)), qc_of(ONE)), RECORD),
    Signed(bytes(64), RECORD),
    Refused("because", RECORD),
    Judged(True, RECORD),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_comes_back_equal(request_: Request) -> None:
    assert decode_request(encode_request(request_)) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_comes_back_equal(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_a_long_reason_is_cut_and_not_a_fault() -> None:
    assert decode_answer(encode_answer(Refused("x" * 10_000, RECORD))) == Refused("x" * 200, RECORD)


def test_the_largest_set_of_validators_fits_into_a_request() -> None:
    keys = [number.to_bytes(32, "big") for number in range(VALIDATORS_MAX)]
    large = make_validator_set(2**63, [Validator(key, 2**54, key, 2**54) for key in keys])
    rows = tuple((index, bytes(64)) for index in range(VALIDATORS_MAX))
    proof = replace(cc_of(ONE), signatures=rows)
    data = encode_request(AskEpoch(Handover((ONE.header,) * 64, proof), large))
    assert len(data) <= REQUEST_BYTES_MAX
    assert decode_request(data)


def test_the_largest_certificates_and_record_fit_into_a_frame() -> None:
    rows = tuple((index, bytes(64)) for index in range(VALIDATORS_MAX))
    big = 2**64 - 1
    qc = QC(big, big, bytes(32), bytes(32), big, rows)
    tc = TC(big, big, tuple((index, big, bytes(64)) for index in range(VALIDATORS_MAX)), qc)
    assert len(encode_request(AskTimeout(big, qc, tc))) <= REQUEST_BYTES_MAX
    assert len(encode_request(AskVote(replace(SKIPS, qc=qc, tc=tc)))) <= REQUEST_BYTES_MAX
    record = replace(RECORD, last_timeout_qc=qc)
    status = Status(KEYS[3], CHAIN, record, SyncInfo(qc, tc, None))
    assert len(encode_answer(status)) <= ANSWER_BYTES_MAX


@pytest.mark.parametrize(
    "obj",
    [
        (2, "status", ()),
        (True, "status", ()),
        (1, "status", (1,)),
        (1, "sign anything", ()),
        (1, b"vote", ()),
        (1, "vote", ()),
        (1, "foreign", ("speech", 1, 1)),
        (1, "foreign", ("vote", -1, 1)),
        (1, "epoch", (None, None)),
        (1, ["vote"], ()),
        1,
        (),
    ],
)
def test_what_is_no_request_is_refused(obj: object) -> None:
    with pytest.raises(CodecError):
        decode_request(encode(obj))


def test_a_set_that_is_none_is_refused() -> None:
    *head, (handover, (epoch, rows, seed)) = decode(encode_request(REQUESTS[-1]), REQUEST_BYTES_MAX)
    for bad in ([], rows[::-1], rows + rows[:1], [[*rows[0][:1], 0, *rows[0][2:]], *rows[1:]]):
        with pytest.raises(CodecError):
            decode_request(encode((*head, (handover, (epoch, bad, seed)))))


SAMPLES = [encode_request(request) for request in REQUESTS] + [encode_answer(answer) for answer in ANSWERS]


@settings(max_examples=examples(300))
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda sample, at, value, cut: (
                sample[: at % len(sample)] + value + sample[at % len(sample) + cut :]
            ),
            st.sampled_from(SAMPLES),
            st.integers(0, 10**6),
            st.binary(max_size=4),
            st.integers(0, 4),
        ),
    )
)
def test_damaged_bytes_are_read_or_refused_by_the_one_typed_error(data: bytes) -> None:
    with suppress(CodecError):
        assert encode_request(decode_request(data)) == data
    with suppress(CodecError):
        assert encode_answer(decode_answer(data)) == data


@pytest.mark.parametrize("length", [0, 101, 2**32 - 1])
def test_a_frame_that_claims_too_much_is_refused_before_there_is_room_for_it(length: int) -> None:
    with pytest.raises(SignerProtocolError):
        length_of(length.to_bytes(4, "big"), 100)
    assert length_of(pack(bytes(100))[:4], 100) == 100
