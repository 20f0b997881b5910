"""Vectors of consensus: votes, headers, the validator set, the beacon, leaders."""

from __future__ import annotations

from consensus.beacon import BeaconChain, reveal_hash
from consensus.codec import encode
from consensus.crypto import public_key, sign
from consensus.digest import ZERO32, digest
from consensus.epochs import epoch_start
from consensus.evidence import Evidence, make_evidence, signed_header
from consensus.leaders import Leaders, missed_leaders
from consensus.types import (
    QC,
    TC,
    Block,
    CommitCertificate,
    CommitVote,
    Handover,
    Header,
    Timeout,
    TwoChain,
    Vote,
    genesis_block,
    genesis_qc,
    header_id,
)
from consensus.validators import Validator, ValidatorSet, make_validator_set
from consensus.verify import commit_vote_message, proposal_message, timeout_message, vote_message
from tests.vectors.notation import Json, Vector

CHAIN = bytes(range(32))
U64_MAX = (1 << 64) - 1
SEEDS = sorted((bytes([number]) * 32 for number in (1, 2, 3, 4)), key=public_key)
KEYS = [public_key(seed) for seed in SEEDS]
BEACONS = [BeaconChain(bytes([0x60 + number]) * 32, 5) for number in range(4)]
VALIDATORS = make_validator_set(
    0, [Validator(key, 10 + number, BEACONS[number].anchor) for number, key in enumerate(KEYS)]
)
WEIGHTED = make_validator_set(
    1,
    [
        Validator(KEYS[number], 10 + number, BEACONS[number].anchor, weight)
        for number, weight in ((0, 1000), (1, 0), (3, 130))
    ],
    bytes([0x5E]) * 32,
)
GENESIS = genesis_block(CHAIN, bytes([0x5D]) * 32, timestamp_ms=1_700_000_000_000)
GENESIS_QC = genesis_qc(GENESIS)
QUORUM = (0, 2, 3)


def _header(
    parent: Block, round_: int, payload: tuple[bytes, ...], next_hash: bytes = b"", snapshot: bytes = b""
) -> Header:
    leader = Leaders(VALIDATORS).index(round_)
    return Header(
        chain_id=CHAIN,
        epoch=0,
        round=round_,
        height=parent.height + 1,
        parent=parent.id,
        proposer=KEYS[leader],
        timestamp_ms=parent.header.timestamp_ms + 300,
        payload=payload,
        beacon_reveal=BEACONS[leader].preimage(1) or b"",
        executed_height=0,
        state_digest=GENESIS.header.state_digest,
        receipts_accumulator=ZERO32,
        next_validators_hash=next_hash,
        snapshot_root=snapshot,
    )


def _proposed(header: Header, qc: QC, tc: TC | None) -> Block:
    seed = SEEDS[KEYS.index(header.proposer)]
    message = proposal_message(CHAIN, header.epoch, header.round, header_id(header))
    return Block(header, qc, tc, sign(seed, message))


def _vote(index: int, block: Block) -> Vote:
    fields = (0, block.round, block.id, block.qc.block_id, block.qc.round)
    return Vote(*fields, KEYS[index], sign(SEEDS[index], vote_message(CHAIN, *fields)))


def _commit_vote(index: int, block: Block) -> CommitVote:
    fields = (0, block.round, block.id, block.height)
    return CommitVote(*fields, KEYS[index], sign(SEEDS[index], commit_vote_message(CHAIN, *fields)))


def _timeout(index: int, round_: int, high_qc_round: int) -> Timeout:
    message = timeout_message(CHAIN, 0, round_, high_qc_round)
    return Timeout(0, round_, high_qc_round, KEYS[index], sign(SEEDS[index], message))


def _qc(block: Block) -> QC:
    rows = tuple((index, _vote(index, block).signature) for index in QUORUM)
    return QC(0, block.round, block.id, block.qc.block_id, block.qc.round, rows)


ONE = _proposed(_header(GENESIS, 1, (bytes([0xB1]) * 32, bytes([0xB2]) * 32)), GENESIS_QC, None)
QC_ONE = _qc(ONE)
CC_ONE = CommitCertificate(
    0, 1, ONE.id, 1, tuple((index, _commit_vote(index, ONE).signature) for index in QUORUM)
)
TC_TWO = TC(
    0,
    2,
    tuple((index, high, _timeout(index, 2, high).signature) for index, high in ((0, 1), (1, 0), (3, 1))),
    QC_ONE,
)
THREE = _proposed(_header(ONE, 3, ()), QC_ONE, TC_TWO)
QC_THREE = _qc(THREE)
# The end of an epoch: a boundary after block one, and two descendants in consecutive rounds.
BOUNDARY = _proposed(_header(ONE, 2, (), WEIGHTED.hash, bytes([0x51]) * 32), QC_ONE, None)
AFTER = _proposed(_header(BOUNDARY, 3, ()), _qc(BOUNDARY), None)
LAST = _proposed(_header(AFTER, 4, ()), _qc(AFTER), None)
HANDOVER = Handover((BOUNDARY.header, AFTER.header), TwoChain(LAST.qc, _qc(LAST)))
START = epoch_start(BOUNDARY, WEIGHTED)
TWICE: tuple[Evidence, ...] = (
    make_evidence(signed_header(THREE), signed_header(AFTER)),
    make_evidence(_vote(1, THREE), _vote(1, AFTER)),
    make_evidence(_commit_vote(1, THREE), _commit_vote(1, AFTER)),
    make_evidence(_timeout(2, 7, 4), _timeout(2, 7, 3)),
    make_evidence(_commit_vote(2, THREE), _timeout(2, 5, 2)),
    make_evidence(_vote(2, AFTER), _timeout(2, 3, 1)),
)
VOTE, COMMIT_VOTE, TIMEOUT = _vote(2, THREE), _commit_vote(1, ONE), _timeout(3, 2, 1)


def vectors() -> list[Vector]:
    """Everything that consensus hashes or signs."""
    signed: list[Vector] = []
    for block in (ONE, THREE):
        head = block.header
        signed.append(
            Vector(
                f"proposal of round {block.round}",
                "proposal",
                CHAIN,
                {"epoch": 0, "round": block.round, "block_id": block.id},
                proposal_message(CHAIN, 0, block.round, block.id),
                signer=SEEDS[KEYS.index(head.proposer)],
                signature=block.signature,
            )
        )
    vote = {
        "epoch": 0,
        "round": VOTE.round,
        "block_id": VOTE.block_id,
        "parent_id": VOTE.parent_id,
        "parent_round": VOTE.parent_round,
    }
    commit_vote = {"epoch": 0, "round": 1, "block_id": ONE.id, "height": 1}
    timeout = {"epoch": 0, "round": 2, "high_qc_round": 1}
    largest = {"epoch": U64_MAX, "round": U64_MAX, "high_qc_round": U64_MAX}
    signed += [
        Vector(
            "vote",
            "vote",
            CHAIN,
            vote,
            vote_message(CHAIN, 0, VOTE.round, VOTE.block_id, VOTE.parent_id, VOTE.parent_round),
            signer=SEEDS[2],
            signature=VOTE.signature,
        ),
        Vector(
            "commit vote",
            "commit-vote",
            CHAIN,
            commit_vote,
            commit_vote_message(CHAIN, 0, 1, ONE.id, 1),
            signer=SEEDS[1],
            signature=COMMIT_VOTE.signature,
        ),
        Vector(
            "timeout",
            "timeout",
            CHAIN,
            timeout,
            timeout_message(CHAIN, 0, 2, 1),
            signer=SEEDS[3],
            signature=TIMEOUT.signature,
        ),
        Vector(
            "timeout with the largest integers",
            "timeout",
            CHAIN,
            largest,
            timeout_message(CHAIN, U64_MAX, U64_MAX, U64_MAX),
        ),
    ]
    return signed + _hashed()


def _hashed() -> list[Vector]:
    headers = [
        Vector(f"block id at height {block.height}", "header", CHAIN, _header_fields(block.header), block.id)
        for block in (GENESIS, ONE, THREE, BOUNDARY)
    ]
    start = bytes([0x60]) * 32
    steps = [digest("beacon-start", start)]
    for _ in range(5):
        steps.append(reveal_hash(steps[-1]))
    return [
        *headers,
        *(
            Vector(f"validator set of epoch {made.epoch}", "validator-set", b"", _set_fields(made), made.hash)
            for made in (VALIDATORS, WEIGHTED)
        ),
        *(_drawn(round_) for round_ in (1, 64, U64_MAX)),
        Vector(
            "chunk of a snapshot",
            "snapshot-chunk",
            CHAIN,
            {"chunk": bytes([0x90])},
            digest("snapshot-chunk", bytes([0x90]), CHAIN),
            raw=True,
        ),
        Vector("start of a beacon chain", "beacon-start", b"", {"seed": start}, steps[0], raw=True),
        *(
            Vector(f"beacon step {k + 1}", "beacon-reveal", b"", {"reveal": steps[k]}, steps[k + 1], raw=True)
            for k in range(5)
        ),
    ]


def _set_fields(made: ValidatorSet) -> dict[str, object]:
    rows = [
        {name: getattr(row, name) for name in ("id", "stake", "beacon_anchor", "leader_weight")}
        for row in made.validators
    ]
    return {"epoch": made.epoch, "validators": rows, "seed": made.seed}


def _drawn(round_: int) -> Vector:
    fields: dict[str, object] = {"seed": WEIGHTED.seed, "round": round_}
    found = digest("leader", encode((WEIGHTED.seed, round_)))
    return Vector(f"draw of the leader of round {round_}", "leader", b"", fields, found)


def _header_fields(header: Header) -> dict[str, object]:
    return {"version": 2} | {name: getattr(header, name) for name in header.__slots__}


def derived() -> Json:
    """What is computed by rule from a few values: leaders of a cycle, reveals in their order."""
    cases = ([1, 1, 1, 1], [10, 11, 12, 13], [5, 1, 1], [2**62, 1], [7])
    leaders = []
    for stakes in cases:
        keys = sorted(public_key(bytes([0x20 + number]) * 32) for number in range(len(stakes)))
        chosen = Leaders(
            make_validator_set(
                0, [Validator(key, stake, ZERO32) for key, stake in zip(keys, stakes, strict=True)]
            )
        )
        leaders.append(
            {"stakes": stakes, "rounds_1_to_64": [chosen.index(round_) for round_ in range(1, 65)]}
        )
    drawn = Leaders(WEIGHTED)
    chosen_by_draw = {
        "seed": WEIGHTED.seed.hex(),
        "weights": [row.leader_weight or row.stake for row in WEIGHTED.validators],
        "rounds_1_to_64": [drawn.index(round_) for round_ in range(1, 65)],
        "missed_between_3_and_9": list(missed_leaders(drawn, 3, 9)),
    }
    chain = BEACONS[0]
    reveals = [(chain.preimage(k) or b"").hex() for k in range(1, 6)]
    return {
        "leaders": leaders,
        "drawn_leaders": chosen_by_draw,
        "beacon": {
            "seed": (bytes([0x60]) * 32).hex(),
            "length": 5,
            "anchor": chain.anchor.hex(),
            "reveals_1_to_5": reveals,
        },
    }
