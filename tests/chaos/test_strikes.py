"""What a run makes of a return: from a snapshot or not, in time or not, with votes in certificates or without."""

import random
from dataclasses import replace

import pytest

from consensus.crypto import public_key
from consensus.types import QC, genesis_block
from consensus.validators import Validator, make_validator_set
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from tests.chaos.__main__ import archive_of, too_slow
from tests.chaos.ballots import Ballots, voters
from tests.chaos.fleet import Fleet
from tests.chaos.links import Links
from tests.chaos.returns import Returns
from tests.chaos.schedule import Fault, Kind
from tests.chaos.signers import lay_signer
from tests.chaos.trial import Recovery

SEEDS = [bytes([number]) * 32 for number in range(1, 5)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    with claim_home(tmp_path_factory.mktemp("strikes") / "devnet") as layout:
        return Fleet(create_network(layout, 4, ["alice"], candidates=1))


def recovery(**changes: object) -> Recovery:
    row = Recovery(Fault(Kind.KILL, ("validator-1",), 0), None, 1.0, 2.0, 0.0, 0.5, 10, False, 20)
    return replace(row, **changes)  # type: ignore[arg-type]


def test_a_recovery_has_its_bound_and_a_return_from_a_snapshot_another() -> None:
    assert too_slow([recovery(), recovery(recovered_s=6.0, starved_s=2.0)], 5.0, 45.0) == []
    assert len(too_slow([recovery(recovered_s=6.0)], 5.0, 45.0)) == 1
    assert too_slow([recovery(recovered_s=6.0, returned=True)], 5.0, 45.0) == []
    assert len(too_slow([recovery(recovered_s=46.0, returned=True)], 5.0, 45.0)) == 1


def test_a_struck_validator_that_votes_late_is_a_finding_and_one_that_waits_for_an_epoch_has_longer() -> None:
    late = recovery(voted_s=50.0)
    assert "until the struck ones voted again" in too_slow([late], 5.0, 45.0)[0]
    joins = replace(late, fault=Fault(Kind.JOIN, ("candidate-1", "validator-1"), 0))
    assert too_slow([joins], 5.0, 45.0) == []


def test_who_lost_its_disk_and_comes_back_without_a_snapshot_is_a_finding(fleet: Fleet) -> None:
    returns = Returns(fleet, Links({}, {}), random.Random(1))
    log = fleet.seats["full-node"].log
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("snapshot_installed long ago\n")
    returns._since["full-node"] = log.stat().st_size
    assert len(returns.complaints("full-node")) == 1
    with log.open("a") as file:
        file.write("snapshot_installed height=32\n")
    assert returns.complaints("full-node") == []
    assert returns.returned == 1


def test_a_certificates_voters_are_named_by_their_keys_and_counted_between_two_heights() -> None:
    keys = [public_key(seed) for seed in SEEDS]
    validators = make_validator_set(0, [Validator(key, 1, bytes(32)) for key in keys])
    block = genesis_block(bytes(32), bytes(32))
    signatures = tuple((index, bytes(64)) for index in (0, 1, 3))
    voted = replace(block, qc=QC(0, 1, block.id, bytes(32), 0, signatures))
    names = [validator.id for validator in validators.validators]
    assert voters(voted, validators) == [names[0], names[1], names[3]]
    assert voters(block, validators) == []

    ballots = Ballots({names[0]: [3, 5, 8]})
    assert ballots.count(names[0]) == 3
    assert ballots.count(names[0], 3, 7) == 1
    assert ballots.count(names[2]) == 0


def test_a_laid_signer_has_the_key_and_the_daemon_only_the_way_to_it(fleet: Fleet) -> None:
    seat = fleet.seats["validator-4"]
    key = seat.consensus_key()
    seat.signer = lay_signer(seat.plan)
    try:
        assert seat.consensus_key() == key
        assert not seat.plan.home.consensus_key_path.exists()
        assert seat.last_commit_vote() == (0, 0)
        assert seat.signer.settings["signer.public_key"] == key.hex()
    finally:
        seat.signer.close()
    assert not seat.signer.socket.parent.exists()


def test_a_candidate_has_voted_for_nothing_before_it_starts(fleet: Fleet) -> None:
    assert fleet.seats["candidate-1"].candidate
    assert fleet.seats["candidate-1"].last_commit_vote() == (0, 0)
    assert fleet.validators == ["validator-1", "validator-2", "validator-3", "validator-4"]


def test_the_archive_neither_lies_nor_loses_its_disk() -> None:
    lies = Fault(Kind.BYZANTINE, ("validator-1",), 0)
    assert archive_of([], 4) == "validator-1"
    assert archive_of([lies], 4) == "validator-2"
