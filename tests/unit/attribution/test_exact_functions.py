from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from attribution import exact
from attribution.exact.elementary import exp64
from attribution.exact.random import permutation, stream, uniform_floats, uniform_integers


def fingerprint(x: torch.Tensor) -> str:
    return hashlib.sha256((x + 0.0).contiguous().numpy().tobytes()).hexdigest()[:16]


def test_exp_is_close_clamped_and_one_at_zero() -> None:
    x = torch.linspace(-80, 80, 50_001)
    assert float((exact.exp(x).double() / x.double().exp() - 1).abs().max()) < 2.0**-17.9
    near = torch.linspace(-1, 0, 10_001)
    assert float((exact.exp(near).double() / near.double().exp() - 1).abs().max()) < 2.0**-21
    assert exact.exp(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]
    assert torch.equal(exact.exp(torch.tensor([-1e30, 1e30])), exact.exp(torch.tensor([-80.0, 80.0])))


def test_exp_does_not_depend_on_place_or_shape() -> None:
    x = torch.from_numpy(uniform_floats(0, "exp", 70_000)) * 30.0
    whole = exact.exp(x)
    assert torch.equal(exact.exp(x[33_001:33_010]), whole[33_001:33_010])
    assert torch.equal(exact.exp(x.view(100, 700).t()), whole.view(100, 700).t())


def test_sigmoid_log_cos_and_sin_are_close() -> None:
    x = torch.linspace(-40, 40, 20_001)
    assert float((exact.sigmoid(x).double() - x.double().sigmoid()).abs().max()) < 2.0**-22
    y = torch.from_numpy(np.geomspace(1e-30, 1e30, 20_001))
    assert float((exact.log(y) - y.log()).abs().max()) < 2.0**-45
    angle = torch.linspace(-(2.0**19), 2.0**19, 20_001, dtype=torch.float64)
    cos, sin = exact.cos_sin(angle)
    assert float((cos - angle.cos()).abs().max()) < 2.0**-45
    assert float((sin - angle.sin()).abs().max()) < 2.0**-45
    z = torch.linspace(-20, 0, 1_001, dtype=torch.float64)
    assert float((exp64(z) / z.exp() - 1).abs().max()) < 2.0**-46


def test_sqrt_is_correctly_rounded() -> None:
    x = torch.from_numpy(uniform_floats(0, "sqrt", 100_000)).abs() * 1000.0
    assert np.array_equal(exact.sqrt(x).numpy(), np.sqrt(x.numpy()))
    with pytest.raises(exact.ShapeMismatch):
        exact.sqrt(torch.ones(1, dtype=torch.float64))


def test_golden_vectors() -> None:
    x = torch.from_numpy(uniform_floats(5, "golden", 4_096)) * 20.0
    found = {
        "exp": fingerprint(exact.exp(x)),
        "sigmoid": fingerprint(exact.sigmoid(x)),
        "log": fingerprint(exact.log(x.abs())),
        "sqrt": fingerprint(exact.sqrt(x.abs())),
        "cos": fingerprint(exact.cos_sin(x.double())[0]),
        "sin": fingerprint(exact.cos_sin(x.double())[1]),
        "fsum": fingerprint(exact.fsum(x.view(64, 64))),
        "squares": fingerprint(exact.sum_of_squares(x.view(64, 64))),
        "matmul": fingerprint(exact.matmul(x.view(64, 64), x.view(64, 64).t().contiguous())),
    }
    assert found == GOLDEN


# Computed once; they change only on purpose, with the specification.
GOLDEN: dict[str, str] = {
    "exp": "53920c288ccc2316",
    "sigmoid": "56fcc666c0456bed",
    "log": "4db8059bf1199491",
    "sqrt": "2d75e9dc44e1ebda",
    "cos": "9c36d5af81ed680d",
    "sin": "8e9583d76d58ed6f",
    "fsum": "c4d676b6a050cd25",
    "squares": "0f8ed0c52ca3258b",
    "matmul": "06b644d2c219ec1a",
}


def test_fsum_is_exact_on_its_grid_and_ignores_order() -> None:
    x = torch.from_numpy(uniform_floats(0, "fsum", 3_000)).view(3, 1000) * torch.tensor(
        [[1.0], [1e-20], [1e20]]
    )
    forward = exact.fsum(x)
    assert torch.equal(forward, exact.fsum(x.flip(1)))
    parts = x.double().sum(-1, keepdim=True)
    assert float(((forward - parts) / x.abs().amax(-1, keepdim=True)).abs().max()) < 1000 * 2.0**-30
    assert exact.fsum(torch.zeros(1, 4)).tolist() == [[0.0]]
    squares = exact.sum_of_squares(x)
    assert torch.equal(squares, exact.sum_of_squares(x.flip(1)))
    assert float((squares / x.double().square().sum(-1, keepdim=True) - 1).abs().max()) < 2.0**-18


def test_argmax_takes_the_lowest_of_equal_indices() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-0.0, 0.0, -1.0]])
    assert exact.argmax(x).tolist() == [1, 0, 0]


def test_the_random_stream_is_addressable_and_separated() -> None:
    whole = stream(3, "label", 100)
    assert stream(3, "label", 40, offset=60) == whole[60:]
    assert stream(4, "label", 100) != whole
    assert stream(3, "labe", 100) != whole
    floats = uniform_floats(1, "x", 10_000)
    assert abs(float(floats.mean())) < 0.03
    assert 0.98 < float(np.abs(floats).max()) < 1.0
    assert set(uniform_integers(1, "y", 500, 3).tolist()) == {0, 1, 2}
    assert sorted(permutation(9, "z", 50)) == list(range(50))
    with pytest.raises(ValueError, match="seed"):
        stream(-1, "label", 1)
    with pytest.raises(ValueError, match="bound"):
        uniform_integers(0, "x", 1, 0)
