from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attribution import exact
from attribution.exact import products
from attribution.exact.oracle import float32_of, quantise_row
from attribution.exact.random import uniform_integers


def bits(x: Tensor) -> list[int]:
    return [int(v) for v in x.contiguous().view(torch.int32).flatten()]


def full_range(label: str, rows: int, columns: int) -> Tensor:
    q = uniform_integers(1, label, rows * columns, 1 << 14).astype("float32") - 8192.0
    return torch.from_numpy(q).view(rows, columns)


def test_int8_and_fp64_are_usable_everywhere() -> None:
    assert {"int8", "fp64"} <= set(exact.BACKENDS)


def test_selfcheck_passes_every_usable_backend_and_reports_each() -> None:
    reports = exact.selfcheck(exact.BACKENDS)
    assert [r.name for r in reports] == list(exact.BACKENDS)
    assert all(r.failed_case is None for r in reports)


def test_selfcheck_refuses_a_backend_that_rounds_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(qa: Tensor, qb: Tensor) -> Tensor:
        return torch.mm(qa, qb).double()

    monkeypatch.setitem(products.PRODUCTS, "fp64", ("cpu", naive))
    with pytest.raises(exact.BackendRefused) as refused:
        exact.selfcheck(("fp64",))
    assert refused.value.name == "fp64"


@pytest.mark.parametrize("backend", exact.BACKENDS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 7, 2), (17, 64, 9), (2, 4097, 3), (5, 0, 4), (0, 3, 2), (2, 3, 0)]
)
def test_backend_equals_the_integer_oracle(backend: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = full_range("a", m, k), full_range("b", k, n)
    if a.numel():
        a *= torch.from_numpy(2.0 ** -uniform_integers(2, "rows", m, 60).astype("float32"))[:, None]
    got = exact.matmul(a, b, backend=backend)
    assert got.shape == (m, n)
    assert bits(got) == bits(exact.oracle_matmul(a, b))


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_saturating_and_double_rounding_operands_are_exact(backend: str) -> None:
    same_sign = torch.full((5, 4500), 8191.0)
    odd = same_sign.clone()
    odd[:, ::3] = 8189.0
    edge = torch.tensor([8128.0, -8128.0, 8191.0, 64.0, -64.0, 63.0]).repeat(40)[None].repeat(3, 1)
    for a, b in ((same_sign, odd.t()[:, :2]), (odd, -odd.t()[:, :2]), (edge, edge.t())):
        a, b = a.contiguous(), b.contiguous()
        assert bits(exact.matmul(a, b, backend=backend)) == bits(exact.oracle_matmul(a, b))


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_subnormals_zeros_and_huge_values(backend: str) -> None:
    rows = [
        [0.0, -0.0, 0.0],
        [2.0**-149, -(2.0**-149), 2.0**-140],
        [2.0**-99, 2.0**-112, 2.0**-111],
        [2.0**100, -(2.0**90), 1.0],
        [1.9999998 * 2.0**100, 2.0**100, -(2.0**99)],
    ]
    a = torch.tensor(rows)
    for b in (
        torch.tensor([[1.0], [2.0], [-3.0]]),
        torch.full((3, 2), 2.0**-60),
        torch.full((3, 1), 2.0**40),
    ):
        got = exact.matmul(a, b, backend=backend)
        assert bits(got) == bits(exact.oracle_matmul(a, b))
        assert not torch.signbit(got[0]).any()


def test_every_backend_gives_the_same_bits_at_size() -> None:
    a, b = full_range("left", 40, 700), full_range("right", 700, 50)
    first = bits(exact.matmul(a, b, backend=exact.BACKENDS[0]))
    assert all(bits(exact.matmul(a, b, backend=name)) == first for name in exact.BACKENDS[1:])


def test_sums_beyond_binary64_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FP64_K_MAX", 100)
    a, b = full_range("left", 3, 1001), full_range("right", 1001, 2)
    assert bits(exact.matmul(a, b, backend="fp64")) == bits(exact.oracle_matmul(a, b))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    a, b = full_range("left", 33, 65), full_range("right", 65, 8)
    together = exact.matmul(a, b)
    for i in (0, 16, 32):
        assert bits(exact.matmul(a[i : i + 1], b)) == bits(together[i : i + 1])


def test_one_and_two_threads_give_the_same_bits() -> None:
    a, b = full_range("left", 64, 512), full_range("right", 512, 64)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append([bits(exact.matmul(a, b, backend=name)) for name in exact.BACKENDS])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 2.0**101, -(2.0**127)])
def test_values_without_a_form_are_refused(value: float) -> None:
    x = torch.tensor([[1.0, value]])
    with pytest.raises(exact.NotRepresentable):
        exact.quantise(x)
    with pytest.raises(exact.NotRepresentable):
        exact.matmul(x, torch.ones(2, 1))
    with pytest.raises(exact.NotRepresentable):
        exact.oracle_matmul(x, torch.ones(2, 1))


def test_quantise_follows_the_definition_row_by_row() -> None:
    x = full_range("quantise", 9, 33) * 0.37
    x[3] = 0.0
    x[4, 0] = 8192.0 * 2.0**80
    q, e = exact.quantise(x)
    assert q.shape == x.shape
    assert e.shape == (9, 1)
    assert e.dtype == torch.int32
    for i in range(9):
        integers, exponent = quantise_row(x[i].tolist())
        assert (q[i].to(torch.int64).tolist(), int(e[i])) == (integers, exponent)
    columns, exponents = exact.quantise(x, dim=0)
    assert torch.equal(columns, exact.quantise(x.t().contiguous())[0].t())
    assert exponents.shape == (1, 33)


def test_quantise_accepts_empty_axes_and_refuses_other_dtypes() -> None:
    assert exact.quantise(torch.zeros(3, 0))[1].tolist() == [[-112]] * 3
    assert exact.quantise(torch.zeros(0, 3))[0].shape == (0, 3)
    for bad in (torch.zeros(2, 2, dtype=torch.float64), torch.tensor(1.0)):
        with pytest.raises(exact.ShapeMismatch):
            exact.quantise(bad)


def test_misfits_are_typed_errors() -> None:
    with pytest.raises(exact.ShapeMismatch):
        exact.matmul(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(exact.ShapeMismatch):
        exact.matmul(torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(exact.UnknownBackend):
        exact.matmul(torch.ones(1, 1), torch.ones(1, 1), backend="fastest")
    with pytest.raises(exact.UnknownBackend):
        exact.set_backend("fastest")


def test_the_oracle_rounds_to_binary32_as_numpy_does() -> None:
    from fractions import Fraction

    import numpy as np

    for value in (16777217, 16777219, (1 << 25) + 2, (1 << 40) + (1 << 16), 3, -16777217):
        assert float32_of(Fraction(value)) == float(np.float32(value))
    assert float32_of(Fraction(1, 1 << 150)) == 0.0
    assert float32_of(Fraction(3, 1 << 150)) == 2.0**-148
    assert float32_of(Fraction(2) ** 128) == float("inf")
