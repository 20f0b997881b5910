"""A row alone takes shorter ways, in quantisation and in decoding: the same bits as among others, and the same refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from attribution import exact, generation_rows
from attribution.adapter import Adapter, bind
from attribution.decoder import no_adapter
from attribution.exact.quantisation import quantise, to_grid
from attribution.generation import Session, logits
from attribution.generation_rows import NarrowRows, narrow_rows_serve
from attribution.model import PROJECTIONS, Base
from tests.unit.attribution.importing.importing_cases import FAMILIES, base_of, config_of, drawn_ids
from tests.unit.attribution.model_cases import draw, tiny_adapter, tiny_base

ROWS = torch.cat(
    [
        draw("rows", 3, 70),
        draw("small", 1, 70) * 2.0**-140,
        torch.zeros(1, 70),
        -torch.zeros(1, 70),
        draw("huge", 1, 70) * 2.0**100,
        torch.full((1, 70), 2.0**-149),
        torch.full((1, 70), -(2.0**100)),
        torch.full((1, 70), 1.0).index_fill_(1, torch.tensor([3]), math.nextafter(2.0, 0.0)),
        torch.full((1, 70), 2.0**-99 - 2.0**-123),
    ]
)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal((a + 0.0).view(torch.int32), (b + 0.0).view(torch.int32))


@pytest.fixture(autouse=True)
def _torch_path() -> Iterator[None]:
    exact.set_backend("fp64" if "fused" in exact.BACKENDS else None)
    yield
    exact.set_backend(None)


def test_a_row_alone_is_quantised_as_among_others() -> None:
    q, e = quantise(ROWS)
    squares, sums = exact.sum_of_squares(ROWS), exact.fsum(ROWS)
    positive = to_grid(ROWS.abs(), nonnegative=True)
    for i, row in enumerate(ROWS):
        for alone, dim in ((row[None], -1), (row, 0), (row[:, None], 0), (row[None, :, None], 1)):
            alone_q, alone_e = quantise(alone, dim)
            assert alone_q.shape == alone.shape
            assert alone_e.shape == tuple(1 if n == 70 else n for n in alone.shape)
            assert same(alone_q.flatten(), q[i])
            assert int(alone_e) == int(e[i])
        assert torch.equal(exact.sum_of_squares(row[None]), squares[i : i + 1])
        assert torch.equal(exact.fsum(row[None]), sums[i : i + 1])
        found = to_grid(row.abs()[None], nonnegative=True)
        assert all(same(a, b[i : i + 1]) for a, b in zip(found, positive, strict=True))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 2.0**101, -(2.0**101)])
def test_a_row_alone_is_refused_as_among_others(value: float) -> None:
    row = torch.zeros(1, 9)
    row[0, 4] = value
    for function in (exact.sum_of_squares, exact.fsum, quantise):
        with pytest.raises(exact.NotRepresentable):
            function(row)


@pytest.mark.parametrize("shape", [(0,), (1, 0), (3, 0), (0, 3)])
def test_empty_rows_have_the_form_of_nothing(shape: tuple[int, ...]) -> None:
    q, e = quantise(torch.zeros(shape))
    assert q.shape == shape
    assert e.shape == (*shape[:-1], 1)
    assert bool((e == -112).all())


def decoded(base: Base, adapter: Adapter | None, ids: list[int]) -> Tensor:
    """Logits after the last of `ids`, fed one by one after the first three."""
    session = Session(base, bind(adapter, base) if adapter else no_adapter(base), len(ids))
    session.extend(ids[:3])
    return torch.stack([session.extend([token]) for token in ids[3:]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [7, 14])
@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj", "down_proj"), ("k_proj",), None])
def test_decoding_row_by_row_is_the_whole_text_for_every_kind_of_base_and_adapter(
    family: str, bits: int, targets: tuple[str, ...] | None
) -> None:
    base = base_of(config_of(family, bits))
    assert narrow_rows_serve(base)
    adapter = tiny_adapter(base, targets=targets) if targets else None
    ids = [0, *drawn_ids()][:7]
    assert same(decoded(base, adapter, ids), logits(base, adapter, ids)[3:])


def test_wide_groups_and_other_backends_take_the_common_way(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    widest = max(frozen.q.numel() for layer in base.layers for frozen in layer.groups)
    monkeypatch.setattr(generation_rows, "NUMBERS_MAX", widest)
    assert narrow_rows_serve(base)
    for name in ("fp32", "int8", "fused"):
        if name in exact.BACKENDS:
            exact.set_backend(name)
            assert not narrow_rows_serve(base)
    exact.set_backend("fp64")
    assert narrow_rows_serve(base)
    monkeypatch.setattr(generation_rows, "NUMBERS_MAX", widest - 1)
    assert not narrow_rows_serve(base)
    monkeypatch.setattr(generation_rows, "NUMBERS_MAX", widest)
    monkeypatch.setattr(generation_rows, "BACKENDS", ("fp32", "int8"))
    assert not narrow_rows_serve(base)


def test_the_short_way_is_taken_for_one_row_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, made, projected = tiny_base(), list[Base](), list[int]()
    build, project = NarrowRows.__init__, NarrowRows.project

    def counted(self: NarrowRows, base: Base, bound: object) -> None:
        made.append(base)
        build(self, base, bound)  # type: ignore[arg-type]

    def seen(self: NarrowRows, i: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projected.append(i)
        return project(self, i, x, cos, sin)

    monkeypatch.setattr(NarrowRows, "__init__", counted)
    monkeypatch.setattr(NarrowRows, "project", seen)
    session = Session(base, no_adapter(base), 9)
    session.extend([1, 2, 3])
    assert made == []
    session.extend([4])
    session.extend([5, 6])
    session.extend([7])
    assert len(made) == 1
    assert projected == 2 * list(range(base.config.num_hidden_layers))
