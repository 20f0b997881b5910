"""The whole path on a device of its own, under CUDA's documented rules; and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from attribution import exact
from attribution.config import ModelConfig
from attribution.exact import backends as exact_backends
from attribution.exact.backends import family_for
from attribution.exact.products import PRODUCTS
from attribution.golden import CASES, Materials, drawn, golden_hashes
from attribution.model import rope_tables
from attribution.signs import mean_magnitudes
from attribution.whitening import weights
from attribution.whitening.wide import wide_bases
from tests.machines.__main__ import CUDA_SETTINGS
from tests.machines.accelerator import DEVICE, Held, WrongPlace, accelerator
from tests.machines.levels import BACKEND, Choice
from tests.machines.running import run
from tests.unit.attribution.model_cases import CONFIG

QUICK = tuple(case.name for case in CASES if case.quick and case.name != "decoding")
EVERY = tuple(case.name for case in CASES)


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        ("fp64", QUICK),
        ("int8", QUICK),
        pytest.param("fp64", EVERY, marks=pytest.mark.slow),
        pytest.param("int8", EVERY, marks=pytest.mark.slow),
    ],
)
def test_the_path_from_product_to_payment_needs_neither_the_cpus_place_nor_its_habits(
    monkeypatch: pytest.MonkeyPatch, backend: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setitem(PRODUCTS, backend, (DEVICE, PRODUCTS[backend][1]))
    monkeypatch.setattr(exact_backends, "_chosen", backend)
    golden = golden_hashes()
    with accelerator() as mode:
        materials = Materials(DEVICE)
        found = {case.name: case.compute(materials) for case in CASES if case.name in names}
        assert isinstance(materials.base.embedding, Held)
    assert mode.operations > 1000
    assert mode.reciprocals == 0
    assert found == {name: golden[name] for name in names}


def test_the_accelerator_refuses_and_distorts_what_cuda_would() -> None:
    x = torch.arange(1.0, 65.0).view(8, 8)
    with accelerator() as mode:
        there = x.to(DEVICE)
        with pytest.raises(WrongPlace):
            there + x
        with pytest.raises(WrongPlace):
            torch.exp(there)
        with pytest.raises(RuntimeError, match="on CUDA"):
            torch._int_mm(there.to(torch.int8), there.to(torch.int8))
        number = torch.tensor(49.0)
        parts = (there / 49.0).cpu()
        assert torch.equal((there / number).cpu(), parts)
        assert mode.reciprocals == 2
        assert torch.equal((there / number.to(DEVICE)).cpu(), x / 49.0)
        fine = torch.tensor([[1.0 + 2.0**-12]])
        assert float(torch.mm(fine.to(DEVICE), fine.to(DEVICE))) == 1.0
        assert isinstance(there.add_(number), Held)
        assert (there - 49.0).cpu().tolist() == x.tolist()
    assert not torch.equal(parts, x / 49.0)


def test_divisors_are_tensors_on_the_accelerator() -> None:
    """The last rounding to binary32 hides most differences, so that hashes alone would seldom show the reciprocal."""
    gradient = drawn("divisors", 2, 77, 3)
    square_sums = (gradient[0].abs() * 2.0**40).to(torch.int64)
    magnitudes, found = mean_magnitudes([gradient]), weights(square_sums)
    # Heads of 24 have no exact reciprocal, and the table of angles divides by their width.
    config = ModelConfig.from_mapping({**CONFIG, "head_dim": 24})
    tables = rope_tables(config, torch.device("cpu"))
    # A width of 24 as well: something of the mean of the diagonal is added to it.
    sides = (gradient[0] * 8).round().double().repeat(1, 8)
    moments = sides.T @ sides
    bases = wide_bases(moments)
    with accelerator() as mode:
        there = rope_tables(config, torch.device(DEVICE))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(there, tables, strict=True))
        assert torch.equal(mean_magnitudes([gradient.to(DEVICE)]).cpu(), magnitudes)
        assert torch.equal(weights(square_sums.to(DEVICE)).cpu(), found)
        assert torch.equal(wide_bases(moments.to(DEVICE)).cpu(), bases)
    assert mode.operations
    assert mode.reciprocals == 0


def test_a_backend_chosen_for_the_cpu_is_not_used_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary32 parts, checked on the CPU, would run as TF32 on a GPU that is told to."""
    monkeypatch.setattr(exact_backends, "BACKENDS", (*exact.BACKENDS, "cuda-fp64"))
    monkeypatch.setattr(exact_backends, "_chosen", "fp32")
    assert family_for(torch.device("cpu")) == "fp32"
    assert family_for(torch.device("cuda")) == "fp64"
    monkeypatch.setattr(exact_backends, "_chosen", None)
    assert family_for(torch.device("cuda")) == "fp64"


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: python -m tests.machines --device cuda runs it"
)
@pytest.mark.parametrize("backend", [name for name in PRODUCTS if name.startswith("cuda-")])
@pytest.mark.parametrize("settings", CUDA_SETTINGS, ids=lambda settings: ",".join(settings) or "plain")
def test_a_gpu_gives_the_golden_hashes(
    backend: str, settings: Choice, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run({**settings, BACKEND: backend}, "cuda")
    with capsys.disabled():
        print(f"\n{outcome.facts} {outcome.line()}")
    assert outcome.hashes == golden_hashes(), outcome.line()
