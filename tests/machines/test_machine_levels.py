"""Golden hashes in separate processes over the kernels that this processor has. The whole product: `python -m tests.machines`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import pytest

from attribution.exact import BACKENDS
from attribution.golden import golden_hashes
from tests.machines.__main__ import cpu_backends
from tests.machines.levels import (
    AVX512,
    BACKEND,
    LEVELS,
    MKL,
    ONEDNN,
    Choice,
    covering,
    every,
    lacking,
    once,
    pairs,
    processor,
    supported,
)
from tests.machines.running import run_all


@pytest.mark.parametrize("choose", [once, pytest.param(covering, marks=pytest.mark.slow)])
def test_every_level_that_this_processor_has_gives_the_golden_hashes(
    capsys: pytest.CaptureFixture[str], choose: Callable[[Mapping[str, Sequence[str]]], list[Choice]]
) -> None:
    name, features = processor()
    choices = choose({**supported(features), BACKEND: cpu_backends()})
    outcomes = list(run_all(choices, jobs=2))
    with capsys.disabled():
        print(f"\n{name}; lacks {', '.join(lacking(features)) or 'nothing'}")
        for outcome in outcomes:
            print(f"  {outcome.line()}")
    golden = golden_hashes()
    for outcome in outcomes:
        assert not outcome.error, outcome.line()
        assert outcome.hashes == golden, outcome.line()
    # What was asked for and is claimed did take effect.
    for outcome in outcomes:
        assert outcome.capability.lower() == outcome.choice["ATEN_CPU_CAPABILITY"]
        assert outcome.threads == int(outcome.choice["OMP_NUM_THREADS"])
    isas = {outcome.choice[ONEDNN]: outcome.onednn for outcome in outcomes}
    assert len(set(isas.values())) == len(isas), isas
    assert {outcome.choice[BACKEND] for outcome in outcomes} == set(cpu_backends()) <= set(BACKENDS)


@pytest.mark.parametrize(
    "factors",
    [
        {"a": "12", "b": "12", "c": "12", "d": "12", "e": "123"},
        {"a": "1234", "b": "123", "c": "123", "d": "12", "e": "123"},
        {"a": "1"},
    ],
)
def test_a_covering_set_holds_every_pair_and_is_short(factors: dict[str, str]) -> None:
    chosen, whole = covering(factors), every(factors)
    met = {pair for row in chosen for pair in pairs(row)}
    assert met == {pair for row in whole for pair in pairs(row)}
    assert len(chosen) <= max(
        1, 2 * max((len(a) * len(b) for a, b in itertools.combinations(factors.values(), 2)), default=1)
    )
    assert chosen == covering(factors)


def test_levels_that_a_processor_lacks_are_not_tried_and_not_claimed() -> None:
    old, new = frozenset({"sse4_1"}), AVX512 | {"sse4_1", "avx2", "fma", "sse4_2", "GenuineIntel"}
    assert supported(old)[ONEDNN] == ["SSE41"]
    assert f"{ONEDNN}=AVX2" in lacking(old)
    assert supported(new)[ONEDNN] == ["SSE41", "AVX2", "AVX512_CORE"]
    assert supported(new)[MKL] == list(LEVELS[MKL])
    assert lacking(new) == [f"{ONEDNN}=AVX512_CORE_AMX"]
