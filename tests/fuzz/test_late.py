"""What a stranger's row, a plan and a signed state may not do to a late node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus import codec
from consensus.digest import digest
from consensus.errors import CodecError
from consensus.validators import STAKE_TOTAL_MAX
from node.epochs import row_from_bytes
from node.ledger.entries import ValidatorEntry, ValidatorSet
from node.snapshot.fetching import vouched_rows
from node.snapshot.format import SnapshotInvalid, read_chunks
from node.snapshot.plan import PLAN_BYTES_MAX, plan_from_bytes
from tests.fuzz.target import judge
from tests.fuzz.targets import targets
from tests.unit.node.test_node_epochs import FIRST, NEW, boundary_to, second_row

ROW = second_row()
ONE, *OTHERS = NEW.validators


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param((ONE, ONE), id="one key twice"),
        pytest.param((OTHERS[0], ONE), id="out of order"),
        pytest.param((replace(ONE, stake=STAKE_TOTAL_MAX), *OTHERS), id="more stake than there can be"),
    ],
)
def test_a_row_with_a_set_that_consensus_cannot_have_is_no_row(entries: tuple[ValidatorEntry, ...]) -> None:
    """Its hand-over may be true: what was raised building the set ended the whole node."""
    row = replace(ROW, validators=replace(NEW, validators=entries))
    with pytest.raises(CodecError, match="epoch: "):
        row_from_bytes(row.to_bytes())


def test_only_the_state_says_whose_accounts_and_addresses_the_validators_have() -> None:
    mine = replace(ONE, account=digest("test-key", b"account"), peer_id="12D3KooWmine")
    forged = replace(ROW, validators=replace(NEW, validators=(mine, *OTHERS)))
    assert forged.consensus_set.hash == ROW.consensus_set.hash
    within = replace(FIRST.start, header=replace(FIRST.start.header, epoch=1, height=9))
    assert vouched_rows((FIRST, forged), within, NEW) == (FIRST, replace(forged, validators=NEW))
    with pytest.raises(SnapshotInvalid, match="other validators"):
        vouched_rows((FIRST, forged), within, ValidatorSet(NEW.validators[1:], NEW.seed))
    # After a boundary the state holds the set of the epoch that follows, which is made out of it.
    assert vouched_rows((FIRST, ROW), boundary_to(NEW), ValidatorSet(NEW.validators[1:])) == (FIRST, ROW)
    assert vouched_rows((FIRST,), within, NEW) == (FIRST,)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("other", [None, True, 7, b"", [], [7], [[7]], [b"\x91\x90"], "text"])
def test_a_plan_of_other_shapes_is_refused_as_damaged(place: int, other: object) -> None:
    (data,) = targets()["install-plan"].seeds
    items = codec.decode(data, PLAN_BYTES_MAX)
    items[place] = other
    if place in (2, 5) and other == []:
        assert judge(targets()["install-plan"], codec.encode(items))
        return
    with pytest.raises(CodecError):
        plan_from_bytes(codec.encode(items))


def test_a_value_that_should_have_been_cut_is_refused() -> None:
    whole = targets()["snapshot-chunks"].seeds[0]
    rows = dict(read_chunks(codec.decode(whole, len(whole))))
    with pytest.raises(SnapshotInvalid, match="cut"):
        list(read_chunks([codec.encode([b"long", rows[b"long"]])]))
