"""Directories that `transformers` wrote: the same logits within the quantisation error, the same hash every time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attribution.checkpoint import load_base
from attribution.generation import logits
from attribution.importing.directory import import_model, open_directory
from attribution.importing.float_model import float_logits, float_nats
from attribution.importing.perplexity import Comparison, base_loss, compare
from attribution.model import Base
from attribution.models import BASE_PATH
from tests.unit.attribution.importing.importing_cases import (
    FAMILIES,
    SIZES,
    base_of,
    config_of,
    drawn_ids,
    float_weights,
    packed,
    write_model,
)
from tests.unit.attribution.importing.wide_reference import exact_weights, import_bound

CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}


def transformers_model(settings: dict[str, Any], weights: dict[str, Tensor] | None) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config, model = (getattr(transformers, name) for name in CLASSES[settings["model_type"]])
    values = {k: v for k, v in settings.items() if k != "model_type"}
    built = model(config(**values, attn_implementation="eager")).float().eval()
    if weights is not None:
        assert not built.load_state_dict(weights, strict=False).unexpected_keys
    return built


def their_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([ids])).logits[0]
    return found


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(scope="module", params=list(FAMILIES))
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Tensor]:
    """(family, directory written by transformers in several shards, its logits)."""
    family = str(request.param)
    model = transformers_model(SIZES | FAMILIES[family], float_weights(config_of(family)))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return family, folder, their_logits(model, [0, *drawn_ids()])


@pytest.mark.parametrize("bits", [7, 14])
def test_logits_agree_with_transformers_within_the_quantisation_error(
    written: tuple[str, Path, Tensor], bits: int
) -> None:
    family, folder, theirs = written
    base, ids = import_model(folder, bits), [0, *drawn_ids()]
    bound = import_bound(config_of(family, bits), float_weights(config_of(family)), ids)
    error = distance(logits(base, None, ids), theirs)
    assert error <= bound
    # The bound is tight enough to mean something: the error is of its size, and small.
    assert bound / 20 < error
    assert bound < (0.15 if bits == 7 else 2e-3)


@pytest.mark.parametrize("bits", [7, 14])
def test_the_base_is_the_rounding_of_the_weights_and_its_hash_repeats(
    written: tuple[str, Path, Tensor], bits: int
) -> None:
    family, folder, _ = written
    base = import_model(folder, bits)
    expected = base_of(config_of(family, bits))
    assert base.config == expected.config
    assert base.hash == expected.hash == import_model(folder, bits).hash


def test_the_float_pass_agrees_with_transformers(written: tuple[str, Path, Tensor]) -> None:
    _, folder, theirs = written
    ids = [0, *drawn_ids()]
    with open_directory(folder) as directory:
        (found,) = float_logits(directory, [ids])
        assert distance(found, theirs) < 2e-6
        nats = float_nats(directory, [ids, ids[:7]])
    truth = torch.nn.functional.cross_entropy(theirs[:-1], torch.tensor(ids[1:]), reduction="sum")
    short = torch.nn.functional.cross_entropy(theirs[:6], torch.tensor(ids[1:7]), reduction="sum")
    assert nats == pytest.approx(float(truth + short), rel=1e-5)


def test_windows_of_a_text_add_up_and_more_bits_come_closer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "qwen3, tied, wide heads")
    ids = drawn_ids(150)
    losses = {}
    for bits in (7, 14):
        with open_directory(folder, bits) as directory:
            base = import_model(folder, bits)
            found = compare(directory, base, ids, window_tokens=64)
        parts = [ids[:64], ids[64:128], ids[128:]]
        assert found.tokens == 150
        assert found.base_loss == sum(base_loss(base, [0, *part]) for part in parts)
        losses[bits] = abs(found.base_perplexity - found.float_perplexity) / found.float_perplexity
    assert losses[14] < 1e-3
    assert losses[14] < losses[7] < 0.1


def test_a_perplexity_beyond_numbers_is_infinite_or_none() -> None:
    assert Comparison(1, 1 << 50, float("nan")).base_perplexity == math.inf
    assert math.isnan(Comparison(1, 1 << 50, float("nan")).float_perplexity)


def test_the_shipped_base_leaves_as_a_directory_and_comes_back_with_its_weights(tmp_path: Path) -> None:
    base = load_base(BASE_PATH)
    config = json.loads(base.config.canonical_json()) | {"model_type": "llama"}
    config |= {name: float(config[name]) for name in ("rms_norm_eps", "rope_theta")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(packed(exact_weights(base)))
    again = import_model(tmp_path)
    assert again.config == base.config
    for name, w in exact_weights(base).items():
        other = exact_weights(again)[name]
        if name.endswith("norm.weight"):
            assert torch.equal(other, w)
        else:
            # A row with 64 steps in it is written in steps of twice the size; every other is as it was.
            kept = base.tensors[f"{name.removesuffix('.weight')}.q"].abs().amax(1) < 64
            assert torch.equal(other[kept], w[kept])
            assert float(kept.float().mean()) > 0.9
    text = tuple(b"Return the number of items in a container.")
    with open_directory(tmp_path) as directory:
        found = compare(directory, base, text)
    # Its weights are integers already: only activations are rounded here.
    assert found.base_perplexity == pytest.approx(found.float_perplexity, rel=1e-3)


def full_shape() -> dict[str, Any]:
    """SmolLM2-135M's config.json, as its repository gives it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "vocab_size": 49152,
    }


@pytest.mark.slow
@pytest.mark.parametrize("bits", [7, 14])
def test_a_model_of_smollm2_135ms_full_shape_agrees_with_transformers(tmp_path: Path, bits: int) -> None:
    """Random weights at the shape, the depth and the precision (bfloat16) of the real model."""
    settings = full_shape()
    torch.manual_seed(7)
    model = transformers_model({k: v for k, v in settings.items() if k != "torch_dtype"}, None)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    ids = [0, *drawn_ids(48, 49152)]
    theirs = their_logits(model, ids)
    del model
    base: Base = import_model(tmp_path, bits)
    assert import_model(tmp_path, bits).hash == base.hash
    with open_directory(tmp_path, bits) as directory:
        assert directory.parameters == 134_515_008
        weights = {name: directory.tensor(name) for name in directory.weights.files}
    bound = import_bound(base.config, weights, ids, draws=2)
    error = distance(logits(base, None, ids), theirs)
    print(f"{bits} bits, base {base.hash.hex()}: distance {error:.2e}, bound {bound:.2e}")
    assert bound / 20 < error <= bound
    # Thirty layers of noise without a trained model's structure magnify any error; more than one's own size says nothing.
    assert bound < (1.0 if bits == 7 else 1e-2)
