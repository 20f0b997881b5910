from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attribution import exact
from attribution.adapter import Adapter, LoraModule, bind
from attribution.checkpoint import load_base
from attribution.decoder import cross_entropy, forward, head
from attribution.errors import BadTokens, ContextTooLong, NotRepresentable
from attribution.exact.quantisation import Block
from attribution.generation import logits
from attribution.linear import Frozen
from attribution.model import Base
from attribution.models import BASE_PATH
from tests.unit.attribution.model_cases import CONFIG, dequantised, records, tiny_adapter, tiny_base
from tests.unit.attribution.reference_model import Reference, quantisation_bound


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal((a + 0.0).view(torch.int32), (b + 0.0).view(torch.int32))


@pytest.fixture
def _default_backend() -> Iterator[None]:
    yield
    exact.set_backend(None)


SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": CONFIG,
    "wide feed-forward, one key head": {
        **CONFIG,
        "hidden_size": 96,
        "intermediate_size": 400,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
    },
    "full heads, tied": {
        **CONFIG,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
    },
    "deep, narrow heads": {
        **CONFIG,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}


def transformers_logits(base: Base, ids: list[int]) -> Tensor:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = json.loads(base.config.canonical_json())
    settings |= {name: float(settings[name]) for name in ("rms_norm_eps", "rope_theta")}
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).float()
    missing = model.load_state_dict(dequantised(base), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        theirs: Tensor = model(torch.tensor([ids])).logits[0]
    return theirs


@pytest.mark.parametrize("shape", [*SHAPES, "shipped base"])
def test_logits_agree_with_transformers_within_the_quantisation_error(shape: str) -> None:
    """The bound is what random errors of half a step do at each place that is quantised (see `quantisation_bound`)."""
    if shape == "shipped base":
        base, ids = load_base(BASE_PATH), [0, *b"Return the number of items in a container."]
    else:
        base, ids = tiny_base(SHAPES[shape]), [0, *records()[0], *records()[1]]
    theirs, bound = transformers_logits(base, ids), quantisation_bound(base, ids)
    distance = float((logits(base, None, ids) - theirs).norm() / theirs.norm())
    assert distance <= bound
    # The bound is tight enough to mean something: the error is of its size, and small.
    assert bound / 20 < distance
    assert bound < 4e-3


def test_logits_with_an_adapter_agree_with_the_float_model() -> None:
    base = tiny_base()
    adapter = tiny_adapter(base)
    ids = [0, *records()[1]]
    theirs = Reference(base, adapter).logits(ids).detach()
    assert float((logits(base, adapter, ids).double() - theirs).norm() / theirs.norm()) < 2e-3


def test_rows_do_not_depend_on_batch_order_or_later_tokens() -> None:
    base = tiny_base()
    bound = bind(tiny_adapter(base), base)
    sequences = [[0, *r] for r in records()]
    alone = [head(base, forward(base, bound, [s], save=False)[0]) for s in sequences]
    together = head(base, forward(base, bound, sequences, save=True)[0])
    assert same(torch.cat(alone), together)
    backwards = head(base, forward(base, bound, sequences[::-1], save=False)[0])
    assert same(torch.cat(alone[::-1]), backwards)
    padded = head(base, forward(base, bound, [sequences[0] + [5] * 9], save=False)[0])
    assert same(alone[0], padded[: len(sequences[0])])


@pytest.mark.usefixtures("_default_backend")
def test_every_backend_gives_the_same_logits() -> None:
    base = tiny_base()
    adapter = tiny_adapter(base)
    ids = [0, *records()[2]]
    first = logits(base, adapter, ids)
    for name in exact.BACKENDS:
        exact.set_backend(name)
        assert same(logits(base, adapter, ids), first)


@pytest.mark.usefixtures("_default_backend")
@pytest.mark.parametrize("width", [16, 150, 1100])
def test_frozen_products_agree_over_backends_with_extreme_weights(width: int) -> None:
    q = torch.full((40, width), 64, dtype=torch.int8)
    q[::3] = -64
    q[1::5, ::7] = 1
    frozen = Frozen(q, torch.arange(40, dtype=torch.int32) - 37)
    x = Block.of(torch.full((20, width), 8191.0) - torch.arange(20.0)[:, None])
    small = Block.of(torch.full((3, width), 3.0 * 2.0**-149))
    dy = Block.of(torch.full((20, 40), -8189.0) + torch.arange(40.0))
    found = []
    for name in exact.BACKENDS:
        exact.set_backend(name)
        found.append([frozen.forward(x), frozen.forward(small), frozen.backward(dy)])
    truth = (x.q.to(torch.int64) @ q.t().to(torch.int64)).double() * x.scale64 * frozen.scale.double()
    assert same(found[0][0], truth.float())
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))


def test_grouped_and_full_heads_and_tied_embeddings_run() -> None:
    for change in ({"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"tie_word_embeddings": True}):
        base = tiny_base({**CONFIG, **change})
        adapter = tiny_adapter(base, targets=("q_proj", "v_proj", "up_proj"))
        ids = [0, *records()[0]]
        theirs = Reference(base, adapter).logits(ids).detach()
        assert float((logits(base, adapter, ids).double() - theirs).norm() / theirs.norm()) < 2e-3


def test_loss_agrees_with_log_softmax() -> None:
    values = torch.linspace(-9, 9, 5 * 64).view(5, 64).sin() * 20.0
    targets = torch.tensor([0, 5, 63, 9, 9])
    loss = cross_entropy(values, targets, None)
    truth = -values.double().log_softmax(-1)[torch.arange(5), targets]
    assert float((loss.tokens.double() / 2.0**30 - truth).abs().max()) < 1e-6
    assert float((loss.gradient.double().sum(-1)).abs().max()) < 1e-6


def test_tokens_out_of_bounds_are_refused() -> None:
    base = tiny_base()
    for ids in ([], [64], [-1], [True]):
        with pytest.raises(BadTokens):
            logits(base, None, ids)
    with pytest.raises(ContextTooLong) as refused:
        logits(base, None, [2] * 65)
    assert (refused.value.tokens, refused.value.tokens_max) == (65, 64)


def test_activations_that_overflow_are_refused() -> None:
    base = tiny_base()
    modules = tuple(
        LoraModule(m.name, m.a.sign() * 2.0**39, m.b.sign() * 2.0**39) for m in tiny_adapter(base).modules
    )
    with pytest.raises(NotRepresentable):
        logits(base, Adapter(4, 4096, modules), [0, 2, 3])
