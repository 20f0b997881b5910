from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attribution import exact
from attribution.adapter import adapter_to_bytes
from attribution.errors import BadRecipe, BadTokens, ContextTooLong
from attribution.model import Base
from attribution.recipe import Recipe
from attribution.training import (
    AdamW,
    Parameters,
    Progress,
    batch_gradient,
    batches,
    clip,
    learning_rate,
    train,
)
from tests.unit.attribution.model_cases import records, tiny_base
from tests.unit.attribution.reference_model import Reference

RECIPE = Recipe(
    rank=4, alpha=8, learning_rate_micro=30_000, batch_size=3, epochs=6, warmup_steps=2, context_tokens_max=32
)
# Changes only on purpose, with the specification.
GOLDEN_HASH = "d71cde59223bb65445f1663bf5e32c75d5e84a1d3f3f19facbac53e2e24efece"


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def test_training_lowers_the_loss_and_is_the_golden_adapter(base: Base) -> None:
    seen: list[Progress] = []
    adapter = train(base, records(), RECIPE, seen.append)
    assert [p.step for p in seen] == list(range(1, 13))
    assert all(p.steps == 12 for p in seen)
    first, last = (sum(p.loss for p in part) / sum(p.tokens for p in part) for part in (seen[:2], seen[-2:]))
    assert last < 0.8 * first
    assert adapter.hash.hex() == GOLDEN_HASH


def test_backends_and_threads_train_the_same_bytes(base: Base) -> None:
    recipe, few = replace(RECIPE, epochs=2), records()[:3]
    first = adapter_to_bytes(train(base, few, recipe))
    threads = torch.get_num_threads()
    try:
        for name in exact.BACKENDS:
            exact.set_backend(name)
            assert adapter_to_bytes(train(base, few, recipe)) == first, name
        exact.set_backend(None)
        torch.set_num_threads(3 - min(threads, 2))
        assert adapter_to_bytes(train(base, few, recipe)) == first
    finally:
        torch.set_num_threads(threads)
        exact.set_backend(None)


def test_every_field_that_should_matter_changes_the_adapter(base: Base) -> None:
    recipe = replace(RECIPE, epochs=1)
    hashes = {train(base, records(), recipe).hash}
    changes = (
        {"seed": 1},
        {"learning_rate_micro": 29_999},
        {"weight_decay_micro": 10_000},
        {"grad_clip_micro": 100_000},
        {"schedule": "constant"},
        {"target_modules": ("q_proj", "v_proj")},
        {"beta2_micro": 980_000},
        {"alpha": 7},
    )
    for change in changes:
        hashes.add(train(base, records(), replace(recipe, **change)).hash)
    assert len(hashes) == 1 + len(changes)


def test_the_batch_gradient_is_autograds(base: Base) -> None:
    parameters = Parameters(base, RECIPE)
    parameters.initialise()
    for _, _, b in parameters.modules():
        b.copy_(torch.linspace(-0.2, 0.2, b.numel()).view(b.shape))
    sequences = [[0, *r, 1] for r in records()[:3]]
    gradient, loss = batch_gradient(base, parameters, sequences)
    reference = Reference(base, parameters.adapter())
    total = torch.stack([reference.loss((), s[1:-1]) for s in sequences]).sum()
    tokens = sum(len(s) - 1 for s in sequences)
    assert abs(loss / 2**30 - float(total.detach())) < 2e-3 * float(total.detach())
    truth = reference.gradients(total / tokens)
    views = parameters.views(gradient)
    spare = Parameters(base, RECIPE)
    spare.flat = gradient
    assert len(views) == len(parameters.places)
    for name, a, b in spare.modules():
        for ours, theirs in ((a, truth[name][0]), (b.t(), truth[name][1])):
            assert float(torch.cosine_similarity(ours.double().flatten(), theirs.flatten(), 0)) > 0.999


def test_adamw_agrees_with_torch() -> None:
    recipe = Recipe(weight_decay_micro=10_000)
    ours = torch.linspace(-1, 1, 257)
    theirs = ours.clone().requires_grad_()
    mine = AdamW(recipe, ours)
    optimiser = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), eps=2.0**-27, weight_decay=0.01)
    for step in range(5):
        gradient = torch.linspace(1, 2 + step, 257).sin()
        mine.step(ours, gradient, 0.01)
        theirs.grad = gradient.clone()
        optimiser.step()
    assert float((ours - theirs.detach()).abs().max()) < 1e-6


def test_clipping_sets_the_norm_and_leaves_small_gradients_alone() -> None:
    g = torch.linspace(-3, 5, 10_001)
    whole = g.clone()
    clip(whole, 500_000)
    assert abs(float(whole.double().norm()) - 0.5) < 1e-5
    assert float(torch.cosine_similarity(whole.double(), g.double(), 0)) > 0.9999999
    for limit in (0, 1000_000_000):
        same = g.clone()
        clip(same, limit)
        assert torch.equal(same, g)
    zero = torch.zeros(5)
    clip(zero, 1)
    assert zero.tolist() == [0.0] * 5


def test_the_schedule_warms_up_then_falls_to_its_floor() -> None:
    recipe = Recipe(warmup_steps=10, learning_rate_micro=8_000, decay_floor_micro=50_000)
    rates = [learning_rate(recipe, i, 100) for i in range(100)]
    assert rates[0] == 8e-4
    assert max(rates) < 8e-3
    assert rates[50] == 4e-3
    assert rates[99] == 8e-3 * 0.05
    flat = replace(recipe, schedule="constant", warmup_steps=0)
    assert {learning_rate(flat, i, 7) for i in range(7)} == {8e-3}


def test_every_epoch_visits_every_record_once_in_another_order() -> None:
    recipe = Recipe(batch_size=4, epochs=3)
    steps = batches(recipe, 10)
    assert [len(b) for b in steps] == [4, 4, 2] * 3
    epochs = [[*steps[i], *steps[i + 1], *steps[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3


def test_records_out_of_bounds_are_refused(base: Base) -> None:
    with pytest.raises(BadTokens):
        train(base, [], RECIPE)
    with pytest.raises(BadTokens):
        train(base, [[64]], RECIPE)
    with pytest.raises(ContextTooLong):
        train(base, [[2] * 31], RECIPE)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": 1.0},
        {"rank": True},
        {"alpha": 1 << 20},
        {"beta1_micro": 1_000_000},
        {"eps_exponent": 0},
        {"seed": -1},
        {"schedule": "cosine"},
        {"target_modules": ()},
        {"target_modules": ("v_proj", "q_proj")},
        {"target_modules": ["q_proj"]},
        {"batch_size": 0},
    ],
)
def test_bad_recipes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadRecipe):
        replace(Recipe(), **change)  # type: ignore[arg-type]


def test_recipe_fields_round_trip_and_hold_no_float() -> None:
    recipe = Recipe(seed=5, target_modules=("q_proj", "down_proj"))
    values = recipe.to_fields()
    assert Recipe.from_fields([list(v) if isinstance(v, tuple) else v for v in values]) == recipe
    assert all(type(v) in (int, str, tuple) for v in values)
    for bad in (values[:-1], "recipe", None, [*values[:2], 5, *values[3:]], [*values[:2], [5], *values[3:]]):
        with pytest.raises(BadRecipe):
            Recipe.from_fields(bad)
