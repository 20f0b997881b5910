"""Datanets, contributions, bases, adapters: failure codes, activation by quorum, expiry, duties."""

from dataclasses import replace

import pytest

from attribution.duplicates import TOKENS_MAX
from attribution.whitening import RECORDS_MAX
from consensus.digest import digest
from node.ledger import models
from node.ledger.block import ReceiptStatus
from node.ledger.bodies import BaseRegister, Body, DatanetCreate, Held, ProviderBond
from node.ledger.entries import ArtefactStatus
from node.ledger.params import OPEN
from node.ledger.queries import adapter_records, artefacts_to_hold, datanet_contributions
from node.ledger.state import get_adapter, get_base, get_contribution, get_datanet, get_provider
from tests.unit.node_ledger.world import (
    BALANCE,
    BASE_HASH,
    INDEX_ROOT,
    PARAMS,
    STAKE,
    VALIDATORS,
    World,
    address,
    codes,
)


def fails(world: World, name: str, body: Body) -> str:
    receipt = world.submit(name, body)
    assert receipt.status == ReceiptStatus.FAILED
    return receipt.code


def with_data(world: World) -> tuple[bytes, tuple[bytes, ...]]:
    datanet = world.accept("ann", DatanetCreate("docs", ("CC-BY-4.0", "MIT"), ""))
    return datanet, tuple(world.accept(name, world.contribution(datanet, name)) for name in ("ann", "ben"))


def with_base(world: World) -> None:
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    world.hold(BASE_HASH, b"")


def test_a_contribution_is_kept_counted_and_listed_in_order() -> None:
    world = World()
    datanet, (first, second) = with_data(world)
    found = get_datanet(world.state, datanet)
    assert found is not None
    assert (found.contribution_count, found.record_count, found.token_count) == (2, 4, 12)
    contribution = get_contribution(world.state, first)
    assert contribution is not None
    assert contribution.contributor == address("ann")
    assert [name for name, _ in datanet_contributions(world.state, datanet)] == [first, second]
    assert [name for name, _ in datanet_contributions(world.state, datanet, 1, 5)] == [second]
    assert datanet_contributions(world.state, datanet, 2) == datanet_contributions(world.state, first) == ()


def test_contributions_fail_with_a_typed_code() -> None:
    world = World()
    datanet, _ = with_data(world)
    assert fails(world, "ann", world.contribution(bytes(32), "x")) == "unknown-datanet"
    assert fails(world, "ann", world.contribution(datanet, "x", "GPL-3.0-only")) == "licence-not-allowed"
    assert fails(world, "cid", world.contribution(datanet, "ann")) == "duplicate"


def test_the_same_records_may_enter_another_datanet() -> None:
    world = World()
    with_data(world)
    other = world.accept("cid", DatanetCreate("more", ("MIT",), ""))
    world.accept("cid", world.contribution(other, "ann"))


def test_a_base_is_active_once_more_than_two_thirds_of_stake_hold_it() -> None:
    world = World()
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    for name, status in (("val0", 1), ("val1", 1), ("val2", 2)):
        world.accept(name, Held(BASE_HASH, b""))
        base = get_base(world.state, BASE_HASH)
        assert base is not None
        assert base.status == status
    assert fails(world, "ann", BaseRegister(BASE_HASH, "again")) == "duplicate"


def test_exactly_two_thirds_of_stake_are_not_enough() -> None:
    world = World(stakes=(2 * STAKE, STAKE, STAKE - 1, 2 * STAKE + 1))
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    world.hold(BASE_HASH, b"", ("val0", "val1", "val2"))
    assert "activated" not in codes(world.outcomes[-1])  # 4 * STAKE - 1 of 6 * STAKE
    equal = World(stakes=(2 * STAKE, STAKE, STAKE, 2 * STAKE))
    equal.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    equal.hold(BASE_HASH, b"", ("val0", "val3"))
    assert "activated" not in codes(equal.outcomes[-1])  # 4 * STAKE of 6 * STAKE
    equal.hold(BASE_HASH, b"", ("val1",))
    assert "activated" in codes(equal.outcomes[-1])


def test_a_holder_counts_once_and_only_with_the_published_root() -> None:
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    adapter = world.accept("owner", world.adapter_body(contributions))
    twice = world.tx("val0", Held(adapter, INDEX_ROOT))
    assert codes(world.block(twice, twice)) == ["", "duty-not-owed"]
    for root in (b"", bytes(32)):
        assert world.submit("val1", Held(adapter, root)).code == "duty-not-owed"
    assert world.submit("val1", Held(BASE_HASH, INDEX_ROOT)).code == "duty-not-owed"
    assert world.submit("ann", Held(adapter, INDEX_ROOT)).code == "duty-not-owed"
    found = get_adapter(world.state, adapter)
    assert found is not None
    assert found.held == (address("val0"),)


def test_publishing_fails_with_a_typed_code() -> None:
    world = World(replace(PARAMS, contributions_per_adapter_max=2, contributors_per_adapter_max=1))
    datanet, contributions = with_data(world)
    mine = contributions[:1]
    assert fails(world, "owner", world.adapter_body(mine)) == "unknown-base"
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    assert fails(world, "owner", world.adapter_body(mine)) == "base-not-active"
    world.hold(BASE_HASH, b"")
    assert fails(world, "owner", world.adapter_body((bytes(32),))) == "unknown-contribution"
    assert fails(world, "owner", world.adapter_body(contributions)) == "limit-exceeded"
    extra = tuple(world.accept("ann", world.contribution(datanet, text)) for text in "xy")
    assert fails(world, "owner", world.adapter_body((*mine, *extra))) == "limit-exceeded"
    world.accept("owner", world.adapter_body((*mine, extra[0])))


def test_an_adapter_of_more_records_than_an_index_can_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise every validator would read all of them, and refuse, as often as it looks at its duties."""
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    found = [get_contribution(world.state, name) for name in contributions]
    count = sum(contribution.record_count for contribution in found if contribution is not None)
    monkeypatch.setattr(models, "RECORDS_PER_ADAPTER_MAX", count - 1)
    assert fails(world, "owner", world.adapter_body(contributions)) == "limit-exceeded"
    monkeypatch.setattr(models, "RECORDS_PER_ADAPTER_MAX", count)
    world.accept("owner", world.adapter_body(contributions))


def test_an_adapter_of_more_tokens_than_leaders_are_found_among_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finding near-duplicates takes memory for each token: no publisher may exhaust that of every validator."""
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    found = [get_contribution(world.state, name) for name in contributions]
    count = sum(contribution.token_count for contribution in found if contribution is not None)
    monkeypatch.setattr(models, "TOKENS_PER_ADAPTER_MAX", count - 1)
    assert fails(world, "owner", world.adapter_body(contributions)) == "limit-exceeded"
    monkeypatch.setattr(models, "TOKENS_PER_ADAPTER_MAX", count)
    world.accept("owner", world.adapter_body(contributions))


def test_the_ledger_takes_no_more_than_the_engine_does() -> None:
    assert models.RECORDS_PER_ADAPTER_MAX <= RECORDS_MAX
    assert models.TOKENS_PER_ADAPTER_MAX <= TOKENS_MAX


def test_of_two_adapters_with_the_same_tensors_the_first_confirmed_is_the_one() -> None:
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    late = world.accept("ben", world.adapter_body(contributions))
    first = world.accept("owner", world.adapter_body(contributions))
    world.hold(first, INDEX_ROOT)
    assert fails(world, "ben", world.adapter_body(contributions)) == "duplicate"
    outcome = world.hold(late, INDEX_ROOT)
    assert codes(outcome) == ["", "", "", "expired", "duty-not-owed"]


def test_what_finds_no_quorum_of_holders_expires_and_leaves_the_backlog() -> None:
    world = World(replace(PARAMS, artefacts_pending_max=1))
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    assert fails(world, "owner", BaseRegister(bytes(32), "other")) == "backlog-full"
    world.hold(BASE_HASH, b"", ("val0", "val1"))
    world.blocks(4)
    base = get_base(world.state, BASE_HASH)
    assert base is not None
    assert base.status == ArtefactStatus.EXPIRED
    assert world.submit("val2", Held(BASE_HASH, b"")).code == "duty-not-owed"
    world.accept("ben", BaseRegister(BASE_HASH, "again"))
    assert fails(world, "owner", BaseRegister(bytes(32), "other")) == "backlog-full"


def test_an_adapter_without_a_quorum_expires() -> None:
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    adapter = world.accept("owner", world.adapter_body(contributions))
    world.blocks(6)
    found = get_adapter(world.state, adapter)
    assert found is not None
    assert found.status == ArtefactStatus.EXPIRED


def test_a_base_cannot_take_the_name_of_an_adapter() -> None:
    world = World()
    adapter = world.active_adapter()
    assert fails(world, "ben", BaseRegister(adapter, "mimic")) == "duplicate"


def test_duties_to_hold_last_until_attested_or_the_window_is_over() -> None:
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    adapter = world.accept("owner", world.adapter_body(contributions))
    (duty,) = artefacts_to_hold(world.state, address("val3"))
    assert (duty.artefact, duty.index_root, duty.is_adapter) == (adapter, INDEX_ROOT, True)
    world.hold(adapter, INDEX_ROOT, VALIDATORS[:3])
    assert artefacts_to_hold(world.state, address("val0")) == ()
    assert len(artefacts_to_hold(world.state, address("val3"))) == 1
    world.blocks(6)
    assert artefacts_to_hold(world.state, address("val3")) == ()
    world.accept("val3", Held(adapter, INDEX_ROOT))
    found = get_adapter(world.state, adapter)
    assert found is not None
    assert (found.status, len(found.held)) == (ArtefactStatus.ACTIVE, 4)


def test_the_owners_of_an_adapters_records_come_in_training_order() -> None:
    world = World()
    _, contributions = with_data(world)
    with_base(world)
    adapter = world.accept("owner", world.adapter_body(contributions))
    records = adapter_records(world.state, adapter)
    assert records is not None
    assert [(entry.contributor, entry.record_count) for entry in records] == [
        (address("ann"), 2),
        (address("ben"), 2),
    ]
    assert [entry.contribution for entry in records] == list(contributions)
    assert adapter_records(world.state, digest("blob", b"none")) is None


def test_bonds_add_up_and_cannot_exceed_the_balance() -> None:
    world = World()
    world.accept("provider", ProviderBond(5 * OPEN, "first"))
    world.accept("provider", ProviderBond(OPEN, "second"))
    provider = get_provider(world.state, address("provider"))
    assert provider is not None
    assert (provider.bond, provider.name) == (6 * OPEN, "second")
    assert fails(world, "provider", ProviderBond(BALANCE, "third")) == "insufficient-balance"
