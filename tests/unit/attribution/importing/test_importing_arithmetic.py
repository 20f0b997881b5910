"""The widened decoder is exact as the plain one is: same bits by every backend, batch and cache; gradients are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from torch import Tensor

from attribution import exact
from attribution.adapter import Adapter, adapter_from_bytes, adapter_to_bytes, bind
from attribution.checkpoint import load_base, save_base
from attribution.config import ModelConfig, RopeScaling
from attribution.decoder import forward, head, no_adapter
from attribution.errors import BadModel, NotRepresentable
from attribution.exact import backends as exact_backends
from attribution.exact.products import PRODUCTS
from attribution.exact.quantisation import Block
from attribution.generation import Session, logits
from attribution.gradients import Example, factors, losses
from attribution.linear import Frozen
from attribution.model import Base, quantise_weight, rope_tables, tensor_specs
from attribution.recipe import Recipe
from attribution.tensor_hash import tensor_bytes
from attribution.training import train
from tests.machines.accelerator import DEVICE, accelerator
from tests.unit.attribution.importing.importing_cases import (
    FAMILIES,
    LLAMA3,
    base_of,
    config_of,
    drawn_ids,
    float_weights,
    scaling_of,
)
from tests.unit.attribution.importing.wide_reference import WideReference, exact_weights
from tests.unit.attribution.model_cases import tiny_adapter

CASES = [(family, bits) for family in FAMILIES for bits in (7, 14)]
EXAMPLE = Example(drawn_ids()[:9], drawn_ids()[9:22])
GOLDEN: dict[tuple[str, int], str] = {
    ("llama, grouped heads", 7): "19a75937e779d00ac4623d54831080dbee9936fcd07144d4b181436218ba9489",
    ("llama, grouped heads", 14): "058f3b75f44e977ce95215a739158bd55738a13747ee49f7098e6dfa876fb26e",
    (
        "llama, tied, llama3 frequencies",
        7,
    ): "6b17adb266f5b6fb7fdb6b3998f329f7464d77e3376062590997397e2f602b36",
    (
        "llama, tied, llama3 frequencies",
        14,
    ): "adadd52806159bad0c26142acaf39ee8b54c655fc367c0f04bb1068c3af5e8ee",
    (
        "llama, biases everywhere, wide heads, linear frequencies",
        7,
    ): "40558c9df348a5666e4846899bf2057896c20ab74ab7fe02a576d04943bca611",
    (
        "llama, biases everywhere, wide heads, linear frequencies",
        14,
    ): "81c8c0971fc1bce19e8c0d837f77c52c751f6641bba91ef3e4f8d341a7b6663c",
    ("qwen2, one key head", 7): "410f59821ea5409b4b74f320a20d393d09ef08b284b247e3421b75c2f8e4352c",
    ("qwen2, one key head", 14): "18c94e4edd7222da1a9ab2a4a063db6a94da319d213bc19308a79144a5f17ec8",
    ("qwen3, tied, wide heads", 7): "64044dfc1b7e98544d5c4018a434c6068c69510b6a65803be92e06ab298d83dd",
    ("qwen3, tied, wide heads", 14): "6f763f405c7cda9d697bf5f6e6a2d127dc4150f5f46474a381e201043e32bf56",
}


@pytest.fixture
def _default_backend() -> Iterator[None]:
    yield
    exact.set_backend(None)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal((a + 0.0).view(torch.int32), (b + 0.0).view(torch.int32))


def adapter_of(base: Base) -> Adapter:
    return replace(tiny_adapter(base), rslora=True)


def digest_of(base: Base) -> str:
    """Over the logits with an adapter, and every factor of an example's gradient."""
    adapter, hasher = adapter_of(base), blake3()
    hasher.update(tensor_bytes(logits(base, adapter, [0, *drawn_ids()])))
    for m in factors(base, adapter, [EXAMPLE]).modules:
        for part in (m.x, m.u, m.dz, m.dh):
            hasher.update(tensor_bytes(part))
    return hasher.hexdigest()


@pytest.mark.usefixtures("_default_backend")
@pytest.mark.parametrize(("family", "bits"), CASES)
def test_every_backend_gives_the_golden_bits(family: str, bits: int) -> None:
    base = base_of(config_of(family, bits))
    found = {}
    for name in (None, *exact.BACKENDS):
        exact.set_backend(name)
        found[name] = digest_of(base)
    assert set(found.values()) == {GOLDEN[family, bits]}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fp64", "int8"])
def test_an_accelerator_gives_the_golden_bits(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """A simulated one, under CUDA's rules: operands in one place, divisors as tensors, its own order of additions."""
    monkeypatch.setitem(PRODUCTS, backend, (DEVICE, PRODUCTS[backend][1]))
    monkeypatch.setattr(exact_backends, "_chosen", backend)
    for family, bits in CASES:
        with accelerator() as mode:
            found = digest_of(base_of(config_of(family, bits)).to(DEVICE))
        assert mode.operations > 1000
        assert mode.reciprocals == 0
        assert found == GOLDEN[family, bits]


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_gradients_agree_with_autograd(family: str, bits: int) -> None:
    base = base_of(config_of(family, bits))
    adapter = adapter_of(base)
    truth = WideReference(base.config, exact_weights(base), adapter).gradients(
        EXAMPLE.prompt_ids, EXAMPLE.completion_ids
    )
    batch = factors(base, adapter, [EXAMPLE])
    for m in batch.modules:
        a, b = truth[m.name]
        for found, right in ((m.dh.t() @ m.x, a), (m.dz.t() @ m.u, b)):
            assert float((batch.scale * found.double() - right).norm() / right.norm()) < 5e-3


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_rows_depend_neither_on_the_cache_nor_on_what_they_are_batched_with(family: str, bits: int) -> None:
    base = base_of(config_of(family, bits))
    adapter = adapter_of(base)
    ids = [0, *drawn_ids()[:20]]
    whole = logits(base, adapter, ids)
    session = Session(base, bind(adapter, base), 32)
    for start, stop in ((0, 7), (7, 8), (8, 21)):
        assert same(session.extend(ids[start:stop]), whole[stop - 1])
    together, _ = forward(base, bind(adapter, base), [ids[:5], ids, [0, 3]], save=True)
    assert same(head(base, together)[5:26], whole)


def test_training_on_a_widened_base_is_a_function_and_learns() -> None:
    base = base_of(config_of("qwen3, tied, wide heads", 14))
    records = [drawn_ids()[:12], drawn_ids()[12:30]]
    recipe = Recipe(rank=2, alpha=4, batch_size=2, epochs=6, warmup_steps=1, context_tokens_max=64)
    first = train(base, records, recipe)
    assert first.hash == train(base, records, recipe).hash
    before, after = (sum(losses(base, a, [Example((), r) for r in records])) for a in (None, first))
    assert after < 0.9 * before


def test_an_adapter_of_zeros_changes_no_bit_beside_a_bias() -> None:
    base = base_of(config_of("qwen2, one key head"))
    adapter = tiny_adapter(base)
    silent = Adapter(4, 6, tuple(replace(m, b=m.b * 0.0) for m in adapter.modules))
    ids = [0, *drawn_ids()[:9]]
    assert same(logits(base, silent, ids), logits(base, None, ids))


@pytest.mark.usefixtures("_default_backend")
@pytest.mark.parametrize("width", [16, 1100, 4500])
def test_products_with_weights_of_14_bits_are_exact_at_the_extremes(width: int) -> None:
    """All of one sign at full range: sums near 2^38, where binary32 holds no neighbour."""
    q = torch.full((24, width), 8192, dtype=torch.int16)
    q[::3] = -8192
    q[1::5, ::7] = 8191
    q[2, :] = -8191
    frozen = Frozen(q, torch.arange(24, dtype=torch.int32) - 37)
    x = Block.of(torch.full((20, width), 8191.0) - torch.arange(20.0)[:, None])
    tiny = Block.of(torch.full((3, width), 3.0 * 2.0**-149))
    dy = Block.of(torch.full((20, 24), -8189.0) + torch.arange(24.0))
    wide = q.to(torch.int64)
    truths = [
        ((x.q.to(torch.int64) @ wide.t()).double() * x.scale64 * frozen.scale.double()).float(),
        ((tiny.q.to(torch.int64) @ wide.t()).double() * tiny.scale64 * frozen.scale.double()).float(),
        ((dy.q.to(torch.int64) @ wide).double() * dy.scale64).float(),
    ]
    for name in (None, *exact.BACKENDS):
        exact.set_backend(name)
        for found, truth in zip(
            (frozen.forward(x), frozen.forward(tiny), frozen.backward(dy)), truths, strict=True
        ):
            assert same(found, truth)


def test_weights_of_14_bits_are_within_half_a_step() -> None:
    w = torch.cat([torch.linspace(-1, 1, 101)[None] * 2.0**k for k in (-60, -30, -3, 0, 13)])
    q, e = quantise_weight(w, 14)
    assert q.dtype == torch.int16
    assert int(q.to(torch.int32).abs().max()) <= 8192
    assert e.tolist() == [-37, -37, -15, -12, 1]
    step = torch.ldexp(torch.ones(5, dtype=torch.float64), e.to(torch.int32))[:, None]
    assert bool(((q.double() * step - w.double()).abs() <= step / 2).all())
    for value in (2.0**14, float("nan"), float("inf")):
        with pytest.raises(NotRepresentable):
            quantise_weight(torch.tensor([[1.0, value]]), 14)


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_a_widened_base_is_saved_and_loaded_with_its_hash(tmp_path: Path, family: str, bits: int) -> None:
    base = base_of(config_of(family, bits))
    save_base(base, tmp_path / "base.safetensors")
    again = load_base(tmp_path / "base.safetensors")
    assert (again.hash, again.config) == (base.hash, base.config)


def test_what_a_plain_model_hashes_is_untouched_by_the_new_fields() -> None:
    text = config_of("llama, grouped heads").canonical_json()
    for name in ("rope_scaling", "biases", "qk_norm", "weight_bits"):
        assert name not in text
    widened = [config_of(family, bits).canonical_json() for family, bits in CASES]
    assert len(set(widened)) == len(CASES)
    for config in (config_of(family, bits) for family, bits in CASES):
        assert ModelConfig.from_canonical_json(config.canonical_json()) == config
    defaults = text.replace('"vocab_size":64}', '"vocab_size":64,"weight_bits":7}')
    with pytest.raises(BadModel):
        ModelConfig.from_canonical_json(defaults)


@pytest.mark.parametrize(
    "values",
    [
        '"rope_scaling":{"factor":"2.0","rope_type":"yarn"}',
        '"rope_scaling":{"factor":"0.5","rope_type":"linear"}',
        '"rope_scaling":{"factor":"2.0","low_freq_factor":"1.0","rope_type":"linear"}',
        '"rope_scaling":{"factor":2.0,"rope_type":"linear"}',
        '"rope_scaling":{"rope_type":"linear"}',
        '"rope_scaling":[1]',
        '"rope_scaling":null',
        '"rope_scaling":{"factor":"8.0","high_freq_factor":"1.0","low_freq_factor":"1.0",'
        '"original_max_position_embeddings":32,"rope_type":"llama3"}',
        '"rope_scaling":{"factor":"8.0","high_freq_factor":"4.0","low_freq_factor":"1.0",'
        '"original_max_position_embeddings":true,"rope_type":"llama3"}',
        '"biases":["v_proj","q_proj"]',
        '"biases":["q_proj","q_proj"]',
        '"biases":["lm_head"]',
        '"biases":[["q_proj"]]',
        '"biases":"q_proj"',
        '"biases":[]',
        '"qk_norm":1',
        '"qk_norm":false',
        '"weight_bits":8',
        '"weight_bits":true',
        '"weight_bits":"14"',
        '"weight_bit":14',
    ],
)
def test_canonical_configurations_with_bad_new_fields_are_refused(values: str) -> None:
    text = config_of("llama, grouped heads").canonical_json()
    with pytest.raises(BadModel):
        ModelConfig.from_canonical_json(",".join(sorted([*text[1:-1].split(","), values])).join("{}"))


def test_stretched_frequencies_are_those_of_the_published_formula() -> None:
    for config in (config_of(family) for family in FAMILIES):
        cos, sin = rope_tables(config, torch.device("cpu"))
        angle = (
            torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None]
            * WideReference(config, {}).frequencies()
        )
        assert float((cos[:, 0].double() - angle.cos()).abs().max()) < 1e-7
        assert float((sin[:, 0].double() - angle.sin()).abs().max()) < 1e-7


def test_llama3s_three_bands_are_all_there() -> None:
    """Else the test above could pass without the middle one."""
    config = config_of("llama, tied, llama3 frequencies")
    plain = WideReference(replace(config, rope_scaling=None), {}).frequencies()
    ratio = WideReference(config, {}).frequencies() / plain
    assert float(ratio[0]) == 1.0
    assert float(ratio[-1]) == pytest.approx(1 / 8)
    assert any(1 / 8 < float(r) < 1 for r in ratio[1:-1])


def test_tables_do_not_depend_on_how_many_positions_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llama, tied, llama3 frequencies")
    whole = rope_tables(config, torch.device("cpu"))
    monkeypatch.setattr("attribution.model._POSITIONS_AT_ONCE", 7)
    for a, b in zip(whole, rope_tables(config, torch.device("cpu")), strict=True):
        assert same(a, b)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.0.self_attn.q_proj.q", lambda x: x.to(torch.int8)),
        ("model.layers.0.self_attn.q_proj.q", lambda x: torch.full_like(x, 8193)),
        ("model.layers.0.self_attn.q_proj.q", lambda x: torch.full_like(x, -32768)),
        ("model.layers.0.self_attn.q_proj.e", lambda x: torch.full_like(x, 2)),
        ("model.layers.0.self_attn.q_proj.e", lambda x: torch.full_like(x, -38)),
        ("model.layers.1.self_attn.q_norm.weight", lambda x: x * float("nan")),
        ("model.layers.1.self_attn.k_norm.weight", lambda x: x[:-1]),
    ],
)
def test_tensors_out_of_their_bounds_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    base = base_of(config_of("qwen3, tied, wide heads", 14))
    with pytest.raises(BadModel, match=name):
        Base(base.config, {**base.tensors, name: change(base.tensors[name])})


def test_rslora_scales_by_the_root_of_the_rank_and_is_hashed() -> None:
    base = base_of(config_of("llama, grouped heads"))
    plain = tiny_adapter(base)
    rooted = replace(plain, rslora=True)
    assert rooted.scale == 6 / 2
    assert plain.scale == 6 / 4
    assert rooted.hash != plain.hash
    again = adapter_from_bytes(adapter_to_bytes(rooted))
    assert again.rslora
    assert again.hash == rooted.hash
    ids = [0, *drawn_ids()[:9]]
    same_scale = replace(plain, alpha=12)
    assert same(logits(base, rooted, ids), logits(base, same_scale, ids))
    assert not same(logits(base, rooted, ids), logits(base, plain, ids))


def test_a_bias_matters_and_is_added_once() -> None:
    config = config_of("llama, biases everywhere, wide heads, linear frequencies")
    base, ids = base_of(config), [0, *drawn_ids()[:9]]
    weights = float_weights(config)
    tensors = {n: t * 0.0 if n.endswith(".bias") else t for n, t in base.tensors.items()}
    assert set(tensor_specs(config)) == set(tensors)
    with_bias, without = logits(base, None, ids), logits(Base(config, tensors), None, ids)
    truth = WideReference(config, exact_weights(base)).logits(ids)
    assert float((with_bias.double() - truth).norm() / truth.norm()) < 2e-3
    assert float((without.double() - truth).norm() / truth.norm()) > 0.1
    assert any(n.endswith(".bias") for n in weights)
    assert no_adapter(base)[0] == (None, None, None, None)


def test_a_scaling_is_read_back_as_it_was() -> None:
    assert scaling_of(LLAMA3).to_mapping()["original_max_position_embeddings"] == 32
    assert RopeScaling("linear", "2.0").to_mapping() == {"rope_type": "linear", "factor": "2.0"}
