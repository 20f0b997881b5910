from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attribution.adapter import bind
from attribution.decoder import Visited, backward, cross_entropy, forward, head
from attribution.errors import BadTokens
from attribution.exact.quantisation import to_grid
from attribution.gradients import Example, FactorBatch, factors, losses
from attribution.linear import contract
from attribution.model import Base
from tests.unit.attribution.model_cases import CONFIG, records, tiny_adapter, tiny_base
from tests.unit.attribution.reference_model import Reference


def examples() -> list[Example]:
    r = [tuple(ids) for ids in records()]
    return [
        Example((), r[0]),
        Example(r[1][:3], r[1][3:]),
        Example(r[2], r[3], ends=False),
        Example(r[4], ()),
        Example((), r[5][:1], ends=False),
    ]


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    )


def gradient(batch: FactorBatch, i: int) -> dict[str, tuple[Tensor, Tensor]]:
    start, stop = batch.spans[i]
    out = {}
    for m in batch.modules:
        x, u, dz, dh = (t[start:stop].double() for t in (m.x, m.u, m.dz, m.dh))
        out[m.name] = (batch.scale * dh.t() @ x, batch.scale * dz.t() @ u)
    return out


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_factors_give_the_gradients_of_autograd(kv: int) -> None:
    base = tiny_base({**CONFIG, "num_key_value_heads": kv})
    adapter = tiny_adapter(base)
    batch = factors(base, adapter, examples())
    reference = Reference(base, adapter)
    for i, e in enumerate(examples()):
        loss = reference.loss(e.prompt_ids, e.completion_ids, e.ends)
        assert abs(batch.losses[i] / 2**30 - float(loss.detach())) < 2e-3 * max(1.0, float(loss.detach()))
        truth = reference.gradients(loss)
        for name, pair in gradient(batch, i).items():
            for ours, theirs in zip(pair, truth[name], strict=True):
                if not theirs.any():
                    # A lone position attends to itself alone: no gradient by queries or keys,
                    # but for the rounding of two equal sums.
                    assert float(ours.norm()) < 1e-6
                    continue
                cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0)
                assert float(cosine) > 0.999, (i, name)
                assert abs(float(ours.norm() / theirs.norm()) - 1) < 0.02


def test_an_example_has_the_same_factors_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    adapter = tiny_adapter(base, targets=("k_proj", "o_proj", "gate_proj", "up_proj"))
    together = factors(base, adapter, examples())
    monkeypatch.setattr("attribution.gradients.ROWS_MAX", 20)
    split = factors(base, adapter, examples())
    assert together.spans == split.spans
    for a, b in zip(together.modules, split.modules, strict=True):
        assert all(same(getattr(a, part), getattr(b, part)) for part in ("x", "u", "dz", "dh"))
    for i, e in enumerate(examples()):
        alone = factors(base, adapter, [e])
        start, stop = together.spans[i]
        assert alone.losses == together.losses[i : i + 1]
        for a, b in zip(alone.modules, together.modules, strict=True):
            assert a.name == b.name
            assert all(
                same(getattr(a, part), getattr(b, part)[start:stop]) for part in ("x", "u", "dz", "dh")
            )


def test_shapes_order_and_losses() -> None:
    base = tiny_base()
    adapter = tiny_adapter(base)
    batch = factors(base, adapter, examples())
    assert [m.name for m in batch.modules] == [m.name for m in adapter.modules]
    rows = batch.spans[-1][1]
    assert rows == sum(1 + len(e.prompt_ids) + len(e.completion_ids) - (not e.ends) for e in examples())
    for m, lora in zip(batch.modules, adapter.modules, strict=True):
        assert m.x.shape == (rows, lora.a.shape[1])
        assert m.dz.shape == (rows, lora.b.shape[0])
        assert m.u.shape == m.dh.shape == (rows, 4)
        assert not any(bool((torch.signbit(t) & (t == 0)).any()) for t in (m.x, m.u, m.dz, m.dh))
    assert batch.scale == 1.5
    assert losses(base, adapter, examples()) == batch.losses
    assert losses(base, None, examples()) != batch.losses


def test_examples_without_a_counted_token_are_refused() -> None:
    base = tiny_base()
    with pytest.raises(BadTokens):
        factors(base, tiny_adapter(base), [Example((2,), (), ends=False)])
    with pytest.raises(BadTokens):
        factors(base, tiny_adapter(base), [])
    with pytest.raises(BadTokens):
        factors(base, tiny_adapter(base), [Example((), (64,), ends=False)])


def _visits(base: Base, sequences: list[list[int]]) -> list[Visited]:
    bound = bind(tiny_adapter(base), base)
    targets = torch.tensor([t for s in sequences for t in s[1:]])
    hidden, tape = forward(base, bound, [s[:-1] for s in sequences], save=True)
    found: list[Visited] = []
    backward(base, bound, tape, cross_entropy(head(base, hidden), targets, None).gradient, found.append)
    return found


def test_batch_gradients_do_not_depend_on_the_order_of_examples() -> None:
    base = tiny_base()
    sequences = [[0, *r, 1] for r in records()]
    for v, w in zip(_visits(base, sequences), _visits(base, sequences[::-1]), strict=True):
        first = contract(v.lora, v.x_block, v.h, v.dy_block, v.dh_scaled)
        second = contract(w.lora, w.x_block, w.h, w.dy_block, w.dh_scaled)
        assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_shards_that_agree_on_the_maxima_sum_to_the_whole_as_integers() -> None:
    base = tiny_base()
    v = _visits(base, [[0, *r, 1] for r in records()])[3]
    whole, _ = contract(v.lora, v.x_block, v.h, v.dy_block, v.dh_scaled)
    q, scale = to_grid(v.dh_scaled * v.x_block.scale.t())
    middle = q.shape[1] // 3
    total = torch.zeros(whole.shape, dtype=torch.int64)
    for rows in (slice(middle, None), slice(0, middle)):
        total += q[:, rows].to(torch.int64) @ v.x_block.q64[rows].to(torch.int64)
    assert same(whole + 0.0, (total.double() * scale.double()).float() + 0.0)


def test_projections_that_are_left_out_are_not_kept_and_change_no_other() -> None:
    base = tiny_base()
    adapter = tiny_adapter(base)
    whole, some = (
        factors(base, adapter, examples()),
        factors(base, adapter, examples(), ("q_proj", "v_proj", "k_proj")),
    )
    kept = [m for m in whole.modules if "self_attn" not in m.name or "o_proj" in m.name]
    assert [m.name for m in some.modules] == [m.name for m in kept]
    for one, other in zip(some.modules, kept, strict=True):
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("x", "u", "dz", "dh"))
    assert some.losses == whole.losses
