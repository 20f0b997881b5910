"""Erasing records on the ledger: who may, what it refuses, for whom it counts, and when bytes may go."""

from __future__ import annotations

import pytest

from node.ledger import erasure
from node.ledger.blobs import blob_referred
from node.ledger.block import ReceiptStatus
from node.ledger.bodies import DatanetCreate, InferenceReveal, RecordsErase
from node.ledger.entries import AUDITS_KEY, InferenceStatus
from node.ledger.erasure import (
    ERASURES,
    ERASURES_KEY,
    erased_records,
    get_erasures,
    remaining_name,
)
from node.ledger.errors import MalformedError
from node.ledger.order import contribution_number
from node.ledger.state import get_adapter, get_contribution, get_deadlines, get_draws
from tests.unit.node_ledger.world import INDEX_ROOT, VALIDATORS, World, codes


def contribution_of(world: World, adapter: bytes, place: int = 0) -> bytes:
    found = get_adapter(world.state, adapter)
    assert found is not None
    return found.contributions[place]


def with_one() -> tuple[World, bytes]:
    world = World()
    datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
    return world, world.accept("ann", world.contribution(datanet, "ann"))


def refused(world: World, name: str, contribution: bytes, *records: int) -> str:
    receipt = world.submit(name, RecordsErase(contribution, records))
    assert receipt.status == ReceiptStatus.FAILED
    return receipt.code


def test_only_the_contributor_erases_known_records_and_each_once() -> None:
    world, contribution = with_one()
    assert refused(world, "ben", contribution, 0) == "not-the-contributor"
    assert refused(world, "val0", contribution, 0) == "not-the-contributor"
    assert refused(world, "ann", bytes(32), 0) == "unknown-contribution"
    assert refused(world, "ann", contribution, 2) == "unknown-record"
    assert refused(world, "ann", contribution, 0, 9_999) == "unknown-record"
    assert get_erasures(world.state, contribution) is None
    world.accept("ann", RecordsErase(contribution, (1,)))
    assert refused(world, "ann", contribution, 1) == "already-erased"
    assert refused(world, "ann", contribution, 0, 1) == "already-erased"
    assert erased_records(world.state, contribution) == (1,)
    for records in ((), (1, 0), (0, 0), tuple(range(1_025)), (10_000,), (-1,)):
        with pytest.raises(MalformedError):
            world.submit("ann", RecordsErase(contribution, records))


def test_the_datanets_creator_cannot_erase_what_others_contributed() -> None:
    world = World()
    datanet = world.accept("owner", DatanetCreate("docs", ("MIT",), ""))
    contribution = world.accept("ann", world.contribution(datanet, "ann"))
    assert refused(world, "owner", contribution, 0) == "not-the-contributor"


def test_what_the_ledger_says_of_the_contribution_stays_and_its_hash_with_it() -> None:
    world, contribution = with_one()
    before = get_contribution(world.state, contribution)
    world.accept("ann", RecordsErase(contribution, (0, 1)))
    world.blocks(2)
    assert get_contribution(world.state, contribution) == before


def test_erasures_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "ERASURES_PENDING_MAX", 1)
    world = World()
    adapter = world.active_adapter()
    world.record(adapter)  # keeps erasures waiting
    world.accept("ann", RecordsErase(contribution_of(world, adapter), (0,)))
    assert refused(world, "ben", contribution_of(world, adapter, 1), 0) == "backlog-full"
    assert refused(world, "ann", contribution_of(world, adapter), 1) == "backlog-full"


def test_two_erasures_of_one_block_are_one() -> None:
    world, contribution = with_one()
    first = world.tx("ann", RecordsErase(contribution, (1,)))
    second = world.tx("ann", RecordsErase(contribution, (0,)), nonce=2 + 1)
    assert codes(world.block(first, second))[:2] == ["", ""]
    found = get_erasures(world.state, contribution)
    assert found is not None
    assert [(entry.height, entry.records) for entry in found.entries] == [(world.height, (0, 1))]
    assert len(get_deadlines(world.state, ERASURES_KEY)) == 1


def test_where_nothing_is_open_an_erasure_is_done_one_block_later() -> None:
    world, contribution = with_one()
    world.accept("ann", RecordsErase(contribution, (1,)))
    key, height = ERASURES + contribution, world.height
    assert blob_referred(key, world.state[key]) is None
    assert "erased" not in codes(world.outcomes[-1])
    assert "erased" in codes(world.block())
    found, known = get_erasures(world.state, contribution), get_contribution(world.state, contribution)
    assert found is not None
    assert known is not None
    assert [(entry.height, entry.done_height) for entry in found.entries] == [(height, height + 1)]
    assert found.done == {1}
    assert blob_referred(key, world.state[key]) == remaining_name(known.blob_digest)
    assert get_deadlines(world.state, ERASURES_KEY) == ()
    assert codes(world.block()) == []


def test_it_counts_from_the_next_height_on() -> None:
    world, contribution = with_one()
    world.accept("ann", RecordsErase(contribution, (1,)))
    height = world.height
    world.accept("ann", RecordsErase(contribution, (0,)))
    assert erased_records(world.state, contribution, before=height) == ()
    assert erased_records(world.state, contribution, before=height + 1) == (1,)
    assert erased_records(world.state, contribution, before=height + 2) == (0, 1)
    assert erased_records(world.state, contribution, since=height + 1) == (0,)
    assert erased_records(world.state, contribution, since=height + 2) == ()


def test_bytes_stay_until_every_inference_from_before_is_closed() -> None:
    """Recorded, drawn, revealed, committed: whatever an audit of before still needs is there until it is over."""
    world = World()
    adapter = world.active_adapter()
    name = world.record(adapter)
    contribution = contribution_of(world, adapter)
    world.accept("ann", RecordsErase(contribution, (0,)))

    def done() -> frozenset[int]:
        found = get_erasures(world.state, contribution)
        assert found is not None
        return found.done

    while world.inference(name).status == InferenceStatus.RECORDED:
        assert not done()
        world.block()
    later = world.record(adapter, 2)  # of after the erasure: nobody waits for it
    world.accept("provider", InferenceReveal(name, b"b" * 32, 100))
    assert not done()
    world.attest(name, {voter: world.answer(name) for voter in VALIDATORS})
    assert world.inference(name).status == InferenceStatus.SETTLED
    world.block()
    assert world.inference(later).status < InferenceStatus.SETTLED
    assert done() == {0}


def test_bytes_stay_while_an_adapter_from_before_may_still_be_rebuilt() -> None:
    world = World()
    adapter = world.active_adapter()
    contributions = (contribution_of(world, adapter), contribution_of(world, adapter, 1))
    newer = world.accept("owner", world.adapter_body(contributions, "newer"))
    world.accept("ann", RecordsErase(contributions[0], (0,)))
    world.block()
    found = get_erasures(world.state, contributions[0])
    assert found is not None
    assert not found.done
    world.hold(newer, INDEX_ROOT)  # everybody holds it: nothing is to be rebuilt any more
    world.block()
    found = get_erasures(world.state, contributions[0])
    assert found is not None
    assert found.done == {0}


def test_audits_and_draws_stand_in_the_order_of_their_records() -> None:
    """What `_oldest_open` relies on."""
    world = World()
    adapter = world.active_adapter()
    for sequence in range(1, 9):
        world.record(adapter, sequence)
        audits = [world.inference(entry.id).height for entry in get_deadlines(world.state, AUDITS_KEY)]
        draws = [group.height for group in get_draws(world.state)]
        assert audits + draws == sorted(audits + draws)


def test_an_adapter_of_after_leaves_the_records_out_and_needs_one() -> None:
    world = World()
    adapter = world.active_adapter()
    first, second = contribution_of(world, adapter), contribution_of(world, adapter, 1)
    world.accept("ann", RecordsErase(first, (0,)))
    world.accept("owner", world.adapter_body((first, second), "one left"))
    world.accept("ann", RecordsErase(first, (1,)))
    receipt = world.submit("owner", world.adapter_body((first, second), "none left"))
    assert receipt.code == "nothing-left"
    world.accept("owner", world.adapter_body((second,), "without it"))


def test_contributions_of_an_adapter_stand_in_the_order_of_commitment() -> None:
    world = World()
    adapter = world.active_adapter()
    first, second, third = (contribution_of(world, adapter, place) for place in range(3))
    numbers = [contribution_number(world.state, name) for name in (first, second, third)]
    assert numbers == [0, 1, 2]
    for wrong in ((second, first), (first, third, second), (third, first)):
        assert world.submit("owner", world.adapter_body(wrong, "x")).code == "contributions-out-of-order"
    other = world.accept("ben", DatanetCreate("more", ("MIT",), ""))
    fourth = world.accept("cid", world.contribution(other, "of another datanet"))
    assert (
        world.submit("owner", world.adapter_body((fourth, third), "x")).code == "contributions-out-of-order"
    )
    world.accept("owner", world.adapter_body((first, third, fourth), "x"))


def test_contributions_of_one_block_are_ordered_by_their_place_in_it() -> None:
    world = World()
    datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
    sent = [world.tx(name, world.contribution(datanet, name)) for name in ("cid", "ann", "ben")]
    world.block(*[(tx, world.stored(tx)) for tx in sent])
    assert [contribution_number(world.state, world.id(tx)) for tx in sent] == [0, 1, 2]
