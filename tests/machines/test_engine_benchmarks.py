"""The engine's benchmarks compare like with like, run in a moment with `--quick`, and say so where there is no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attribution.adapter import Adapter
from attribution.checkpoint import load_base
from attribution.generation import generate, logits
from attribution.golden import Materials
from attribution.gradients import Example
from attribution.gradients import factors as exact_factors
from attribution.model import Base
from attribution.models import BASE_PATH
from attribution.recipe import Recipe
from benchmarks import attribution, exact, floating
from benchmarks.floating import Floating
from tests.machines import gpu, gpu_devnet

RECORDS = [b"Return the number of ", b"a cat sat on the mat."]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE_PATH)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Materials("cpu").adapter


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.tensor([[0, *record, 0] for record in RECORDS])


@pytest.fixture(autouse=True)
def _settings() -> None:
    # The benchmarks set these for their process; tests put torch's settings back by themselves.
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)


def likeness(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), 0))


def test_the_floating_model_is_the_exact_one_but_for_rounding(
    base: Base, adapter: Adapter, batch: torch.Tensor
) -> None:
    model = Floating(base, adapter)
    found = model.logits(model.embed(batch[:, :-1]))
    for row, record in zip(found, RECORDS, strict=True):
        wanted = logits(base, adapter, [0, *record])
        assert float((row - wanted).norm() / wanted.norm()) < 3e-3


def test_the_floating_factors_are_those_of_attribution(
    base: Base, adapter: Adapter, batch: torch.Tensor
) -> None:
    found = floating.factors(Floating(base, adapter), batch)
    wanted = exact_factors(base, adapter, [Example((), tuple(record)) for record in RECORDS])
    assert len(found) == len(wanted.modules) == 7 * base.config.num_hidden_layers
    for ours, module in zip(found, wanted.modules, strict=True):
        for part, other in zip(ours, (module.x, module.u, module.dz, module.dh), strict=True):
            assert part.shape == other.shape
            assert likeness(part, other) > 0.999, module.name


def test_a_floating_step_moves_the_adapter_where_an_exact_one_does(
    base: Base, adapter: Adapter, batch: torch.Tensor
) -> None:
    model = Floating(base, adapter)
    before = [factor.clone() for factor in model.parameters()]
    gradient = gradients_of(model, batch)
    floating.train_step(model, floating.optimiser(model, 1e-3, 0.0), batch, 1.0)
    moved = torch.cat([(a.detach() - b).flatten() for a, b in zip(model.parameters(), before, strict=True)])
    # Adam's first step is against the gradient's sign, by the rate, wherever the gradient is not tiny.
    large = gradient.abs() > gradient.abs().max() * 1e-3
    assert torch.allclose(moved[large], -1e-3 * gradient[large].sign(), rtol=0.02)
    assert likeness(gradient, exact_gradient(base, adapter)) > 0.999


def gradients_of(model: Floating, batch: torch.Tensor) -> torch.Tensor:
    factors = floating.factors(model, batch)
    scale = 2.0
    parts = []
    for x, u, dz, dh in factors:
        parts += [(scale * dh.t() @ x).flatten(), (scale * dz.t() @ u).flatten()]
    return torch.cat(parts) / batch[:, 1:].numel()


def exact_gradient(base: Base, adapter: Adapter) -> torch.Tensor:
    """The exact engine's gradient of the batch, in the order of `Floating.parameters`."""
    from attribution.training import Parameters, batch_gradient

    parameters = Parameters(base, Recipe(rank=adapter.rank, alpha=adapter.alpha))
    for (_, a, b), module in zip(parameters.modules(), adapter.modules, strict=True):
        a.copy_(module.a)
        b.copy_(module.b.t())
    gradient, _ = batch_gradient(base, parameters, [[0, *record, 0] for record in RECORDS])
    parameters.flat.copy_(gradient)
    parts = [part.flatten() for _, a, b in parameters.modules() for part in (a, b.t())]
    return torch.cat(parts)


def test_both_sides_decode_the_same_text(base: Base, adapter: Adapter) -> None:
    prompt = tuple(RECORDS[0])
    wanted = generate(base, adapter, prompt, 6)
    assert wanted
    ours = attribution.exact_decoding(base, adapter, [0, *prompt], 6)
    theirs = floating.decode(Floating(base, adapter), [0, *prompt], 6)
    assert ours[: len(wanted)] == theirs[: len(wanted)] == wanted


def document(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: str) -> Any:
    code = main(["--json", *arguments])
    assert code == 0
    return json.loads(capsys.readouterr().out)


def test_a_quick_layer_benchmark_tells_every_backend_and_whether_the_target_is_for_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = document(capsys, exact.main, "--quick")
    (row,) = found["widths"]
    assert found["backends"] == list(exact.backends("cpu"))
    assert set(row["microseconds"]) == {"fp32", *(f"exact {name}" for name in found["backends"])}
    assert (row["width"], row["target"], row["same_bits"]) == (128, 1.0, True)
    assert row["ratio"] == min(row["ratios"].values()) > 0
    # A glance at one layer is held to nothing.
    assert (found["target_applies"], found["target_reached"]) == (False, None)


@pytest.mark.parametrize(
    ("units", "seconds", "wanted"),
    [([], 9.0, None), (["avx512_vnni"], 9.0, False), (["amx_int8"], 0.5, True)],
)
def test_a_missed_target_fails_only_where_the_processor_has_int8_units(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    units: list[str],
    seconds: float,
    wanted: bool | None,
) -> None:
    monkeypatch.setattr(exact, "machine", lambda device: {"int8_units": units, "device": device})
    monkeypatch.setattr(exact, "TARGETS", {128: 0.6})
    monkeypatch.setattr(
        exact, "least", lambda runs, *_, **__: {name: 1.0 if name == "fp32" else seconds for name in runs}
    )
    code = exact.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["target_applies"], found["target_reached"]) == (bool(units), wanted)
    assert code == (1 if wanted is False else 0)
    exact.show(found)
    assert ("not for this machine" in capsys.readouterr().out) == (not units)


def test_a_quick_engine_benchmark_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, attribution.main, "--quick")
    rows = {(row["what"], row["width"]): row for row in found["ratios"]}
    assert set(rows) == {(what, width) for what in attribution.TARGETS for width in (128, 576)}
    for (what, width), row in rows.items():
        assert row["ratio"] > 0
        assert row["target"] == attribution.TARGETS[what][width]
        assert row["reached"] == (row["exact_ms"] / row["floating_ms"] <= row["target"])
    demo = found["demo"]
    assert demo["index_peak_bytes"] > demo["index_bytes_per_record"] > 0
    assert demo["index_ms_per_record"] > 0 < demo["score_us_per_record"]
    attribution.show(found)
    assert "decoding" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "run",
    [
        lambda: exact.main(["--device", "cuda"]),
        lambda: attribution.main(["--device", "cuda"]),
        lambda: gpu.main([]),
        lambda: gpu_devnet.main([]),
    ],
    ids=["exact", "attribution", "gpu", "gpu_devnet"],
)
def test_without_a_gpu_the_recipes_say_so_and_run_nothing(
    run: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == f"skipped: torch {torch.__version__} sees no CUDA device\n"
