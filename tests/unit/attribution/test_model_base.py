from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from attribution.adapter import (
    Adapter,
    LoraModule,
    adapter_from_bytes,
    adapter_to_bytes,
    check_fits,
)
from attribution.checkpoint import load_base, save_base
from attribution.errors import BadAdapter, BadModel, NotRepresentable
from attribution.exact.bits import pow2
from attribution.model import Base, ModelConfig, quantise_checkpoint, weight_shapes
from tests.unit.attribution.model_cases import CONFIG, dequantised, state_dict, tiny_adapter, tiny_base


def test_weights_are_within_half_a_step_and_seven_bits() -> None:
    base, floats = tiny_base(), state_dict()
    for name in weight_shapes(base.config):
        q, e = base.tensors[f"{name}.q"], base.tensors[f"{name}.e"]
        assert int(q.abs().max()) <= 64
        step = pow2(e.to(torch.int32))[:, None]
        assert bool(((q.float() * step - floats[f"{name}.weight"]).abs() <= step / 2).all())


def test_quantising_dequantised_weights_changes_nothing() -> None:
    base = tiny_base()
    again = quantise_checkpoint(dequantised(base), CONFIG)
    for name, w in dequantised(again).items():
        assert torch.equal(w, dequantised(base)[name])


def test_saved_base_loads_with_the_same_hash(tmp_path: Path) -> None:
    base = tiny_base()
    save_base(base, tmp_path / "base.safetensors")
    again = load_base(tmp_path / "base.safetensors")
    assert again.hash == base.hash
    assert len(base.hash) == 32
    assert again.config == base.config
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_the_hash_sees_every_part() -> None:
    base = tiny_base()
    other = tiny_base({**CONFIG, "rope_theta": 20000.0})
    assert base.hash != other.hash
    tensors = dict(base.tensors)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].clone()
    tensors["model.norm.weight"][3] += 2.0**-20
    assert Base(base.config, tensors).hash != base.hash


def test_tied_embeddings_need_no_head() -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    floats = state_dict(config)
    assert "lm_head.weight" not in floats
    base = quantise_checkpoint(floats, config)
    assert base.head.q is not None
    assert torch.equal(base.head.q, base.tensors["model.embed_tokens.q"])


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": 1 << 20},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"vocab_size": "64"},
        {"bos_token_id": 64},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": -1.0},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"tie_word_embeddings": 1},
        {"num_hidden_layers": True},
    ],
)
def test_bad_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadModel):
        ModelConfig.from_mapping({**CONFIG, **change})


def test_a_configuration_lacking_a_key_is_refused() -> None:
    for key in ("hidden_size", "vocab_size", "eos_token_id"):
        with pytest.raises(BadModel):
            ModelConfig.from_mapping({k: v for k, v in CONFIG.items() if k != key})


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    floats = state_dict()
    with pytest.raises(BadModel):
        quantise_checkpoint({**floats, "model.extra.weight": torch.ones(2)}, CONFIG)
    with pytest.raises(BadModel):
        quantise_checkpoint({k: v for k, v in floats.items() if k != "lm_head.weight"}, CONFIG)
    with pytest.raises(BadModel):
        quantise_checkpoint({**floats, "lm_head.weight": torch.ones(3, 3)}, CONFIG)
    for value in (float("inf"), float("nan"), 2.0**14):
        bad = floats["lm_head.weight"].clone()
        bad[1, 1] = value
        with pytest.raises(NotRepresentable):
            quantise_checkpoint({**floats, "lm_head.weight": bad}, CONFIG)


def test_files_that_are_not_a_base_are_refused(tmp_path: Path) -> None:
    base = tiny_base()
    path = tmp_path / "base.safetensors"
    save_base(base, path)
    good = path.read_bytes()
    config = {"config": base.config.canonical_json()}
    tensors = {k: v.clone() for k, v in base.tensors.items()}

    def refused() -> None:
        with pytest.raises(BadModel):
            load_base(path)

    for data in (b"", good[:7], good[:200], good[:-1], b"\xff" * 64, good[:8] + b"{" * 64 + good[72:]):
        path.write_bytes(data)
        refused()
    save_file(tensors, path)
    refused()
    save_file({k: v for k, v in tensors.items() if k != "lm_head.q"}, path, metadata=config)
    refused()
    save_file({**tensors, "more": torch.ones(1)}, path, metadata=config)
    refused()
    save_file({**tensors, "lm_head.q": tensors["lm_head.q"].to(torch.int16)}, path, metadata=config)
    refused()
    save_file({**tensors, "lm_head.q": torch.full_like(tensors["lm_head.q"], 65)}, path, metadata=config)
    refused()
    save_file({**tensors, "lm_head.e": torch.full_like(tensors["lm_head.e"], 9)}, path, metadata=config)
    refused()
    nan = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file({**tensors, "model.norm.weight": nan}, path, metadata=config)
    refused()
    spaced = json.dumps(json.loads(config["config"]))
    save_file(tensors, path, metadata={"config": spaced})
    refused()
    save_file(tensors, path, metadata=config)
    with pytest.raises(BadModel):
        load_base(path, bytes_max=1000)
    with pytest.raises(BadModel):
        load_base(tmp_path / "absent")


def test_adapter_bytes_are_one_form_and_round_trip() -> None:
    base = tiny_base()
    adapter = tiny_adapter(base)
    data = adapter_to_bytes(adapter)
    again = adapter_from_bytes(data)
    assert adapter_to_bytes(again) == data
    assert again.hash == adapter.hash
    assert [m.name for m in again.modules] == [m.name for m in adapter.modules]
    assert (again.rank, again.alpha) == (4, 6)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in header


def test_adapter_bytes_load_with_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.torch import load

    adapter = tiny_adapter(tiny_base())
    tensors = load(adapter_to_bytes(adapter))
    assert torch.equal(
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"], adapter.modules[-1].b
    )


def test_negative_zeros_do_not_reach_bytes_or_hash() -> None:
    a, b = torch.zeros(2, 4), torch.zeros(3, 2)
    plain = Adapter(2, 2, (LoraModule("model.layers.0.self_attn.q_proj", a, b),))
    signed = Adapter(2, 2, (LoraModule("model.layers.0.self_attn.q_proj", -a, -b),))
    assert adapter_to_bytes(plain) == adapter_to_bytes(signed)
    assert plain.hash == signed.hash


def test_hostile_adapter_bytes_are_refused() -> None:
    good = adapter_to_bytes(tiny_adapter(tiny_base()))
    size = int.from_bytes(good[:8], "little")
    header, body = good[8 : 8 + size], good[8 + size :]

    def packed(text: bytes, rest: bytes = body) -> bytes:
        return len(text).to_bytes(8, "little") + text + rest

    deep = b"[" * 100_000
    cases = [
        b"",
        good[:5],
        good[:-1],
        good + b"\0",
        b"\xff" * 8 + good[8:],
        packed(b"[]"),
        packed(deep),
        packed(header + b" " * 8),
        packed(header.replace(b'"rank":"4"', b'"rank":"5"')),
        packed(header.replace(b'"rank":"4"', b'"rank":"-4"')),
        packed(header.replace(b"F32", b"F16")),
        packed(header.replace(b"lora_A", b"lora_C")),
        packed(header.replace(b"layers.0.", b"layers.x.")),
        packed(header.replace(b"q_proj", b"z_proj")),
        packed(header.replace(b'"__metadata__"', b'"__metadatb__"')),
        packed(header.replace(b'"shape":[4,32]', b'"shape":[4,-32]', 1)),
        packed(header.replace(b'"shape":[4,32]', b'"shape":[true,32]', 1)),
        packed(header, b"\xff" * len(body)),
        packed(b'{"__metadata__":{"alpha":"6","format":"pt","rank":"4"}}', b""),
    ]
    for data in cases:
        with pytest.raises(BadAdapter):
            adapter_from_bytes(data)
    with pytest.raises(BadAdapter):
        adapter_from_bytes(good, bytes_max=100)


def test_an_adapter_of_another_shape_does_not_fit() -> None:
    base = tiny_base()
    other = tiny_base({**CONFIG, "intermediate_size": 40})
    check_fits(tiny_adapter(base), base)
    with pytest.raises(BadAdapter):
        check_fits(tiny_adapter(base), other)
    modules = tiny_adapter(base).modules
    with pytest.raises(BadAdapter):
        check_fits(Adapter(4, 6, modules[::-1]), base)
    with pytest.raises(BadAdapter):
        Adapter(4, 6, (modules[0], modules[0]))
    with pytest.raises(BadAdapter):
        Adapter(3, 6, modules)
