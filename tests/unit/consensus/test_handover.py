"""The hand-over: what proves the end of an epoch, where the next one starts, and that no bit of it can be changed."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import crypto
from consensus.epochs import carry_reveals, epoch_start
from consensus.errors import CodecError, InvalidCertificate, LocalError
from consensus.messages import MESSAGE_BYTES_MAX, HandoverMessage, encode_message
from consensus.types import (
    HANDOVER_HEADERS_MAX,
    PAYLOAD_DIGESTS_MAX,
    PROOF_BYTES_MAX,
    QC,
    CommitCertificate,
    Handover,
    Header,
    TwoChain,
    decode_handover,
    decode_proof,
    encode_handover,
    encode_proof,
    genesis_qc,
)
from consensus.validators import VALIDATORS_MAX, Validator, make_validator_set
from consensus.verify import Context, commit_vote_message, make_context, verify_commit_proof, verify_handover
from tests.profiles import examples
from tests.unit.consensus.lab import (
    CHAIN,
    CONTEXT,
    GENESIS,
    KEYS,
    QUORUM,
    SEEDS,
    VALIDATORS,
    VERIFIER,
    Chain,
    cc_of,
    qc_of,
    quorum_tc,
)

NEXT = make_validator_set(1, VALIDATORS.validators[1:], bytes([3]) * 32)
CHAINS = Chain()
ONE = CHAINS.block(GENESIS, 1)
END = CHAINS.block(ONE, 2, payload=(bytes([5]) * 32,), next_validators_hash=NEXT.hash)
AFTER = CHAINS.block(END, 4, tc=quorum_tc(3, qc_of(END)))
LAST = CHAINS.block(AFTER, 5)
DIRECT = Handover((END.header,), cc_of(END))
DEEP = Handover((END.header, AFTER.header), TwoChain(qc_of(AFTER), qc_of(LAST)))


def refused(handover: Handover, context: Context = CONTEXT) -> bool:
    try:
        verify_handover(context, handover)
    except InvalidCertificate:
        return True
    return False


@pytest.mark.parametrize("handover", [DIRECT, DEEP], ids=["direct", "by descendants"])
def test_a_hand_over_gives_the_next_sets_hash_from_its_bytes_alone(handover: Handover) -> None:
    read = decode_handover(encode_handover(handover))
    assert verify_handover(CONTEXT, read) == NEXT.hash
    assert decode_proof(encode_proof(handover)) == handover
    assert verify_commit_proof(CONTEXT, handover) == (END.id, END.round)


@given(data=st.data(), handover=st.sampled_from([DIRECT, DEEP]))
@settings(max_examples=examples(150))
def test_no_bit_of_a_hand_over_can_be_changed(data: st.DataObject, handover: Handover) -> None:
    encoded = bytearray(encode_handover(handover))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    try:
        changed = decode_handover(bytes(encoded))
    except CodecError:
        return
    assert refused(changed)


def other_headers() -> list[tuple[Header, ...]]:
    """Headers that begin with no boundary, are too few, too many, out of order, of another epoch, or not empty."""
    end, after = END.header, AFTER.header
    full = CHAINS.block(END, 4, tc=quorum_tc(3, qc_of(END)), payload=(bytes([6]) * 32,)).header
    second = CHAINS.block(END, 4, tc=quorum_tc(3, qc_of(END)), next_validators_hash=bytes([6]) * 32).header
    return [
        (),
        (after,),
        (ONE.header, end, after),
        (after, end),
        (end, end, after),
        (end, after, after),
        (end, LAST.header),
        (end, full),
        (end, second),
        (end, replace(after, epoch=1)),
        (replace(end, next_validators_hash=b""), after),
        (replace(end, next_validators_hash=bytes([6]) * 32), after),
        (replace(end, round=0), after),
    ]


@pytest.mark.parametrize("headers", other_headers(), ids=lambda headers: f"{len(headers)} headers")
def test_other_headers_prove_nothing_even_with_a_good_certificate_of_the_last(
    headers: tuple[Header, ...],
) -> None:
    assert refused(replace(DEEP, headers=headers))
    assert refused(replace(DIRECT, headers=headers))


def test_a_certificate_of_another_block_or_of_a_block_that_ends_nothing_proves_nothing() -> None:
    assert refused(replace(DIRECT, headers=DEEP.headers))
    assert refused(replace(DEEP, headers=DIRECT.headers))
    assert refused(Handover((ONE.header,), cc_of(ONE)))


def test_each_rule_of_a_descendant_is_checked_with_a_certificate_to_match() -> None:
    """The quorum signs anything here, so that only the rule itself can refuse."""
    tc = quorum_tc(3, qc_of(END))
    for changes in (
        {"payload": (bytes([6]) * 32,)},
        {"next_validators_hash": bytes([6]) * 32},
        {"height": END.height + 2},
        {"parent": ONE.id},
        {"chain_id": bytes(32)},
    ):
        block = CHAINS.block(END, 4, tc=tc, **changes)
        assert refused(Handover((END.header, block.header), cc_of(block))), changes
    good = CHAINS.block(END, 4, tc=tc)
    assert not refused(Handover((END.header, good.header), cc_of(good)))


def test_a_certificate_of_another_height_proves_nothing() -> None:
    """Signed by a quorum that lies about the height alone."""
    args = (0, END.round, END.id, END.height + 1)
    rows = tuple((index, crypto.sign(SEEDS[index], commit_vote_message(CHAIN, *args))) for index in QUORUM)
    assert refused(Handover((END.header,), CommitCertificate(*args, rows)))


def test_a_set_that_did_not_sign_it_is_not_convinced() -> None:
    strangers = make_validator_set(0, [Validator(bytes([n]) * 32, 1, bytes(32)) for n in range(4)])
    assert refused(DIRECT, make_context(strangers, GENESIS))
    assert refused(DIRECT, Context(bytes(32), VALIDATORS, CONTEXT.genesis_qc, VERIFIER))
    small = make_validator_set(
        0, [replace(row, stake=1 if row.id == KEYS[0] else 9) for row in VALIDATORS.validators]
    )
    lonely = replace(DIRECT, proof=replace(cc_of(END), signatures=cc_of(END).signatures[:1]))
    assert refused(lonely, make_context(small, GENESIS))


def test_the_largest_hand_over_fits_its_limits_and_a_longer_one_is_refused() -> None:
    signatures = tuple((index, bytes(64)) for index in range(VALIDATORS_MAX))
    largest = (1 << 64) - 1
    header = replace(
        END.header,
        payload=tuple(bytes([n]) * 32 for n in range(PAYLOAD_DIGESTS_MAX)),
        snapshot_root=bytes(32),
        epoch=largest,
        round=largest,
        height=largest,
        timestamp_ms=largest,
        executed_height=largest,
    )
    after = replace(header, payload=(), next_validators_hash=b"")
    qc = QC(largest, largest, bytes(32), bytes(32), largest, signatures)
    headers = (header, *[after] * (HANDOVER_HEADERS_MAX - 1))
    data = encode_handover(Handover(headers, TwoChain(qc, qc)))
    assert len(data) <= PROOF_BYTES_MAX
    assert decode_handover(data).headers == headers
    assert len(encode_message(HandoverMessage(Handover(headers, TwoChain(qc, qc))))) < MESSAGE_BYTES_MAX
    for wrong in ((*headers, after), ()):
        with pytest.raises(CodecError):
            decode_handover(encode_handover(Handover(wrong, TwoChain(qc, qc))))


# Where the next epoch starts.


def test_the_next_epoch_starts_at_the_same_block_on_every_machine() -> None:
    start = epoch_start(END, NEXT)
    header = start.header
    assert (header.epoch, header.round, header.height, header.parent) == (1, 0, END.height, END.id)
    assert (header.payload, header.next_validators_hash) == ((), NEXT.hash)
    assert header.timestamp_ms == END.header.timestamp_ms
    assert epoch_start(replace(END, signature=bytes(64), tc=None), NEXT) == start
    assert genesis_qc(start).block_id == start.id != END.id


def test_an_epoch_starts_only_where_one_ended_and_with_the_set_it_named() -> None:
    for block, validators in (
        (ONE, NEXT),
        (epoch_start(END, NEXT), NEXT),
        (END, make_validator_set(2, NEXT.validators, NEXT.seed)),
        (END, make_validator_set(1, NEXT.validators)),
        (END, make_validator_set(1, VALIDATORS.validators, NEXT.seed)),
        (END, make_validator_set(1, [replace(row, leader_weight=5) for row in NEXT.validators], NEXT.seed)),
    ):
        with pytest.raises(LocalError):
            epoch_start(block, validators)


def test_reveals_go_on_for_who_stays_and_begin_anew_for_who_is_new_or_has_anchored_again() -> None:
    old = VALIDATORS
    reveals = tuple((number + 1, bytes([number]) * 32) for number in range(4))
    again = replace(old.validators[1], beacon_anchor=bytes([9]) * 32)
    new = Validator(bytes([0xFF]) * 32, 1, bytes([8]) * 32)
    following = make_validator_set(1, [old.validators[3], again, new])
    carried = dict(
        zip((row.id for row in following.validators), carry_reveals(old, reveals, following), strict=True)
    )
    assert carried == {KEYS[3]: reveals[3], KEYS[1]: (0, bytes([9]) * 32), new.id: (0, bytes([8]) * 32)}
    with pytest.raises(LocalError):
        carry_reveals(old, reveals[:3], following)


def test_the_chain_is_part_of_what_is_handed_over() -> None:
    assert END.header.chain_id == CHAIN
    assert isinstance(DIRECT.proof, CommitCertificate)
    assert refused(replace(DIRECT, headers=(replace(END.header, chain_id=bytes(32)),)))
