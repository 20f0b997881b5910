"""A schedule can be told again, brings every fault, and keeps within f but for the faults that are meant to exceed it."""

import pytest

from tests.chaos.schedule import (
    BEYOND_F,
    BYZANTINE_PART,
    EPOCHS,
    SIGNERS,
    SNAPSHOTS,
    Fault,
    Kind,
    Roles,
    draw_schedule,
    joined,
)

DURATION_MS = 600_000
CANDIDATES = ("candidate-1", "candidate-2", "candidate-3")


def roles(count: int) -> Roles:
    names = tuple(f"validator-{number}" for number in range(1, count + 1))
    return Roles(names, "full-node", CANDIDATES, names[-1])


def drawn(seed: int, validators: int, duration_ms: int = DURATION_MS) -> tuple[Fault, ...]:
    return draw_schedule(seed, roles(validators), duration_ms)


def test_a_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    assert drawn(7, 4) == drawn(7, 4)
    assert drawn(7, 4) != drawn(8, 4)


@pytest.mark.parametrize("validators", [4, 7])
def test_a_long_run_brings_every_kind_of_fault(validators: int) -> None:
    assert {fault.kind for fault in drawn(1, validators)} == set(Kind)


@pytest.mark.parametrize("validators", [4, 7, 10])
def test_never_more_than_f_validators_are_faulty_but_where_that_is_the_fault(validators: int) -> None:
    faulty_max = (validators - 1) // 3
    for seed in range(20):
        byzantine: set[str] = set()
        for fault in drawn(seed, validators):
            down = fault.nodes[1:] if fault.kind in EPOCHS else fault.nodes
            struck = {name for name in down if name != "full-node"}
            assert not struck & byzantine
            assert struck or fault.nodes == ("full-node",)
            if fault.kind in BEYOND_F:
                assert len(struck) < validators or fault.kind is Kind.POWER_CUT
            else:
                assert len(struck | byzantine) <= faulty_max
            byzantine |= struck if fault.kind is Kind.BYZANTINE else set()


def test_the_byzantine_one_comes_once_and_for_the_last_third() -> None:
    for seed in range(20):
        schedule = drawn(seed, 4)
        places = [place for place, fault in enumerate(schedule) if fault.kind is Kind.BYZANTINE]
        assert len(places) == 1
        assert places[0] >= len(schedule) * (BYZANTINE_PART - 1) // BYZANTINE_PART - 4


def test_a_run_of_one_kind_has_that_kind_alone() -> None:
    schedule = draw_schedule(3, roles(4), 1, [Kind.KILL])
    assert [fault.kind for fault in schedule] == [Kind.KILL]


def test_who_leaves_has_joined_and_nobody_joins_twice() -> None:
    for seed in range(20):
        schedule = drawn(seed, 4, 3 * DURATION_MS)
        for place, fault in enumerate(schedule):
            before = joined(schedule[:place])
            come = [earlier.nodes[0] for earlier in schedule[:place] if earlier.kind is Kind.JOIN]
            if fault.kind is Kind.LEAVE:
                assert fault.nodes[0] in before
            if fault.kind is Kind.JOIN:
                assert fault.nodes[0] in CANDIDATES
                assert fault.nodes[0] not in come
            if fault.kind in EPOCHS:
                assert fault.nodes[1] not in fault.nodes[:1]
    assert draw_schedule(3, roles(4), 1, [Kind.LEAVE])[0].kind is Kind.JOIN


def test_only_who_has_its_key_elsewhere_or_no_key_loses_its_disk_and_the_byzantine_one_has_no_signer() -> (
    None
):
    for seed in range(20):
        for fault in drawn(seed, 4):
            if fault.kind in SNAPSHOTS:
                assert fault.nodes[0] in ("full-node", "validator-4")
            if fault.kind in SIGNERS:
                assert fault.nodes == ("validator-4",)
            if fault.kind is Kind.BYZANTINE:
                assert fault.nodes != ("validator-4",)


def test_what_the_roles_have_nobody_for_is_left_out() -> None:
    few = Roles(roles(4).validators, "full-node")
    kinds = {fault.kind for fault in draw_schedule(1, few, DURATION_MS)}
    assert kinds == set(Kind) - {Kind.JOIN, Kind.LEAVE, *SIGNERS}
