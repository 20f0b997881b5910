"""The linear datamodelling benchmark: its statistics, what it keeps on disk, and its float model beside the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.checkpoint import load_base
from attribution.gradients import Example
from attribution.gradients import factors as exact_factors
from attribution.model import Base
from attribution.models import BASE_PATH
from attribution.recipe import Recipe
from attribution.training import batches
from attribution.whitening import factor_gradients
from attribution.whitening.wide import wide_bases
from benchmarks.lds import counterfactual, learning, ours, statistics
from benchmarks.lds.__main__ import main
from benchmarks.lds.features import extract
from benchmarks.lds.network import Network, as_adapter, as_state, padded, token_losses
from benchmarks.lds.running import attributed, calibrated, load_scored, save_scored
from benchmarks.lds.truth import ForeignState, Truth, half_subsets, work_digest
from benchmarks.lds.work import Checkpoint, Scored, Settings, Texts, Work, draw_texts, pieces

RECORDS = (b"Return the number of", b"a cat sat on the mat.", b"close the socket")


@pytest.fixture(autouse=True)
def _settings() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE_PATH)


@pytest.fixture(scope="module")
def work(base: Base) -> Work:
    network = Network(base, 2, 4)
    generator = torch.Generator().manual_seed(1)
    state = {
        name: (a, torch.randn(b.shape, generator=generator) * 0.02)
        for name, (a, b) in learning.initial(base, network, 3).items()
    }
    network.load(state)
    checkpoint = Checkpoint(1, 0.001, state, state)
    rows = tuple(tuple(text) for text in RECORDS)
    return Work(
        0, Settings(rank=2, alpha=4), base, network, (checkpoint,), rows, (0, 0, 0), rows[:1], (0,), ()
    )


def test_rank_correlation_is_that_of_mid_ranks() -> None:
    a = np.array([[1.0], [2.0], [2.0], [4.0]])
    # Ranks -1.5, 0, 0, 1.5 against -1.5, -0.5, 0.5, 1.5.
    found = statistics.spearman(a, np.array([[10.0], [20.0], [30.0], [40.0]]))
    assert found[0] == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert statistics.spearman(a, -a)[0] == pytest.approx(-1.0)
    assert statistics.spearman(np.zeros((4, 1)), a)[0] == 0.0


def test_additive_truth_is_predicted_wholly_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    masks = half_subsets(40, 24, 5)
    scores = generator.normal(size=(8, 40))
    real = statistics.predictions(scores, masks)
    right = statistics.Measured(real * 3.0 + 1.0, real)
    wrong = statistics.Measured(generator.normal(size=real.shape), real)
    assert statistics.lds([right]) == pytest.approx(1.0)
    found = statistics.interval(statistics.lds([wrong]), statistics.resampled([wrong], 200))
    assert found.low < 0.0 < found.high
    assert found.high - found.low < 0.5


def test_half_subsets_are_halves_and_differ_by_seed() -> None:
    first, second = half_subsets(20, 4, 1), half_subsets(20, 4, 2)
    assert (first.sum(1) == 10).all()
    assert not (first == second).all()
    assert (half_subsets(20, 6, 1)[:4] == first).all()


def test_the_highest_scores_are_removed_and_every_query_counts_alike() -> None:
    scores = np.array([[0.0, 1e6, 0.0, 0.0], [0.0, 0.0, 1.0, 0.9]])
    assert statistics.removed(scores, [0, 1], 0.25).tolist() == [True, False, True, True]
    assert statistics.removed(scores, [1], 0.5).tolist() == [True, True, False, False]
    assert counterfactual.random_removal(100, 0.05, 1, 0).sum() == 95


def test_truth_survives_a_kill_and_is_not_another_works(tmp_path: Path) -> None:
    kept, trained = half_subsets(10, 3, 0), list[int]()

    def retrain(mask: np.ndarray) -> np.ndarray:
        trained.append(int(mask.nonzero()[0][0]))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return mask.astype(np.float64)

    truth = Truth.open(tmp_path / "truth.npz", b"a" * 32)
    for mask in kept[:2]:
        truth.losses(mask, retrain)
    with pytest.raises(KeyboardInterrupt):
        truth.losses(kept[2], retrain)
    again = Truth.open(tmp_path / "truth.npz", b"a" * 32)
    assert (again.losses(kept[0], retrain) == kept[0]).all()
    assert (again.losses(kept[1], retrain) == kept[1]).all()
    assert len(trained) == 3
    with pytest.raises(ForeignState, match="another work"):
        Truth.open(tmp_path / "truth.npz", b"b" * 32)
    (tmp_path / "truth.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ForeignState, match="cannot be read"):
        Truth.open(tmp_path / "truth.npz", b"a" * 32)


def test_a_work_is_told_by_its_texts_recipe_and_seed() -> None:
    texts = Texts(((1, 2),), (0,), ((3,),), (0,))
    other = Texts(((1,), (2,)), (0, 0), ((3,),), (0,))
    found = {
        work_digest(b"h", t, s, seed)
        for t in (texts, other)
        for s in (Settings(), Settings(epochs=1))
        for seed in (0, 1)
    }
    assert len(found) == 8


def test_texts_are_of_one_side_only_and_fit_their_bounds() -> None:
    settings = Settings(records_each=20, queries=7)
    texts = draw_texts(settings, 1)
    assert len(texts.records) == 60
    assert sorted(texts.query_labels) == [0, 0, 0, 1, 1, 2, 2]
    assert not set(texts.records) & set(texts.queries)
    assert all(40 <= len(r) <= 80 for r in texts.records + texts.queries)
    assert list(pieces("one two three. four five six\n\n>>> 1", 5, 16)) == ["one two three.", "four five six"]


def test_batches_are_the_engines_when_nothing_is_left_out() -> None:
    recipe = Recipe(batch_size=4, epochs=2, seed=9)
    assert learning.schedule(recipe, np.ones(10, np.bool_)) == batches(recipe, 10)
    kept = half_subsets(10, 1, 0)[0]
    assert sorted(i for step in learning.schedule(recipe, kept) for i in step) == sorted(
        [*kept.nonzero()[0]] * 2
    )


def test_gradients_are_the_engines_but_for_rounding(work: Work) -> None:
    features = extract(work, work.checkpoints[0].state)
    adapter = as_adapter(work.network, work.checkpoints[0].state)
    wanted = factor_gradients(exact_factors(work.base, adapter, [Example((), r) for r in work.records]))
    assert features.names[:2] == ("model.layers.0.self_attn.q_proj.B", "model.layers.0.self_attn.q_proj.A")
    counted = [
        g
        for name, g in zip(features.names, features.of_records(), strict=True)
        if name.split(".")[-2] not in ours.FEW
    ]
    for found, exact in zip(counted, wanted, strict=True):
        assert float(torch.nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1)).min()) > 0.999
    assert all(
        torch.equal(x, y)
        for (x, _), (y, _) in zip(as_state(adapter).values(), work.checkpoints[0].state.values(), strict=True)
    )


def test_merged_losses_are_the_networks(work: Work) -> None:
    losses = learning.losses(work.network, work.checkpoints[0].state, work.records)
    inputs, targets = padded(work.records)
    assert losses == pytest.approx(token_losses(work.network(inputs), targets).sum(1).numpy(), rel=1e-4)


def test_two_cholesky_steps_of_the_engine_agree_with_the_library() -> None:
    generator = torch.Generator().manual_seed(2)
    tall = torch.randn(12, 60, generator=generator) * torch.logspace(0, -1, 12)[:, None]
    moment = ((tall * 100).round().double()) @ ((tall * 100).round().double()).T
    assert torch.allclose(wide_bases(moment).double(), ours.triangular(moment), atol=0.02)


@pytest.mark.slow
def test_the_engine_scores_as_its_float_version(work: Work) -> None:
    exact = ours.engine(work)
    variant = ours.FLOAT_ENGINE
    state = ours.weakened(work.checkpoints[-1].state, variant.strength)
    floating = ours.floating(work, variant, [extract(work, state)])
    assert exact.bytes_per_record == floating.bytes_per_record
    assert exact.cosines is not None
    assert floating.cosines is not None
    # Of three records, moments are nearly degenerate: records agree in order and roughly in size.
    assert exact.cosines[0].argmax() == floating.cosines[0].argmax() == 0
    assert np.allclose(exact.cosines, floating.cosines, atol=0.1)


def test_folding_keeps_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5000, generator=generator)
    x[1] += x[0]
    whole = float(x[0] @ x[1])
    sketch = ours.folded([x[:, :2000], x[:, 2000:]], 2048)
    assert float(sketch[0] @ sketch[1]) == pytest.approx(whole, rel=0.1)
    assert torch.equal(sketch, ours.folded([x], 2048))


def test_unrelated_text_pays_nobody_below_the_floor() -> None:
    assert attributed(np.array([[0.01, 0.02]]), 0.05) == 0.0
    assert attributed(np.array([[0.3, 0.0]]), 0.1) == pytest.approx(0.9)
    cosines = np.array([[0.3], [0.05], [0.05]])
    found = calibrated(cosines, 1)
    assert found["floor"] == pytest.approx(0.08)
    assert found["unrelated_attributed"] == found["unrelated_at_default"] == 0.0
    assert found["queries_attributed"] > found["queries_at_default"] > 0.8


def test_scores_come_back_from_disk(tmp_path: Path) -> None:
    scored = Scored("a", np.eye(2), 7, 1.5, 2.5, note="n", cosines=np.ones((2, 2)))
    save_scored(scored, tmp_path / "s.npz")
    found = load_scored(tmp_path / "s.npz")
    assert (found.name, found.bytes_per_record, found.query_ms, found.note) == ("a", 7, 2.5, "n")
    assert found.cosines is not None
    assert (found.scores == scored.scores).all()
    assert (found.cosines == 1).all()


@pytest.mark.slow
def test_a_little_of_everything_runs_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--no-peers", "--json", "--state", str(tmp_path)]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in first["rows"]}
    assert ours.BEST.name in rows
    assert rows[ours.SMALL.name]["bytes_per_record"] <= 2_100
    assert "removal_5_percent" in rows["random records"]
    assert main(arguments) == 0
    out = capsys.readouterr()
    assert "retrained" not in out.err
    assert [r["lds"] for r in json.loads(out.out)["rows"] if "lds" in r] == [
        r["lds"] for r in first["rows"] if "lds" in r
    ]
