"""A schedule can be told again, brings every fault, and keeps within f but for the faults that are meant to exceed it."""

import pytest

from tests.chaos.schedule import BEYOND_F, BYZANTINE_PART, Fault, Kind, draw_schedule

DURATION_MS = 600_000


def names(count: int) -> list[str]:
    return [f"validator-{number}" for number in range(1, count + 1)]


def drawn(seed: int, validators: int, duration_ms: int = DURATION_MS) -> tuple[Fault, ...]:
    return draw_schedule(seed, names(validators), "full-node", duration_ms)


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
            struck = {name for name in fault.nodes if name != "full-node"}
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
    schedule = draw_schedule(3, names(4), "full-node", 1, [Kind.KILL])
    assert [fault.kind for fault in schedule] == [Kind.KILL]
