"""PEFT directories: what we write `peft` loads, what `peft` writes we load, and what would be lost is refused by name."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution.adapter import PREFIX, Adapter, adapter_to_bytes
from attribution.errors import BadAdapter
from attribution.generation import logits
from attribution.importing.errors import ImportRefused
from attribution.importing.peft import peft_options, read_peft, write_peft
from attribution.model import Base
from tests.profiles import examples
from tests.unit.attribution.importing.importing_cases import SIZES, base_of, config_of, drawn_ids, packed
from tests.unit.attribution.importing.wide_reference import exact_weights
from tests.unit.attribution.model_cases import draw, tiny_adapter

FAMILY = "llama, grouped heads"
IDS = [0, *drawn_ids()[:20]]
OPTIONS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}
Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


@cache
def small_base() -> Base:
    return base_of(config_of(FAMILY, 14))


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    return dict(sorted(adapter.tensors().items()))


@cache
def plain_bytes() -> bytes:
    return packed(tensors_of(tiny_adapter(small_base(), targets=("q_proj", "v_proj"))))


def write(folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A directory as a stranger could write it (a value of `...`: leave the key out)."""
    folder.mkdir(exist_ok=True)
    values = {k: v for k, v in {**OPTIONS, **changes}.items() if v is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "adapter_model.safetensors").write_bytes(packed(tensors) if tensors else plain_bytes())
    return folder


def uneven(adapter: Adapter) -> Adapter:
    """Another choice of modules in each layer."""
    names = (Q0, V1, "model.layers.1.mlp.down_proj")
    return replace(adapter, modules=tuple(m for m in adapter.modules if m.name in names))


def cases() -> dict[str, Adapter]:
    base = small_base()
    full = tiny_adapter(base)
    return {
        "all modules": full,
        "two modules, rslora": replace(tiny_adapter(base, 6, 9, ("k_proj", "up_proj")), rslora=True),
        "rank one": tiny_adapter(base, 1, 1, ("o_proj",)),
        "one layer": replace(full, modules=full.modules[7:]),
        "uneven": uneven(full),
    }


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("layers", [None, 2])
def test_what_is_written_is_read_back_whole(tmp_path: Path, case: str, layers: int | None) -> None:
    adapter = cases()[case]
    write_peft(adapter, tmp_path / "out", layers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == adapter_to_bytes(adapter)
    again = read_peft(tmp_path / "out")
    assert again.hash == adapter.hash
    with pytest.raises(ImportRefused, match="nothing is overwritten"):
        write_peft(adapter, tmp_path / "out")


def test_an_adapter_of_every_layer_names_no_layers_once_the_base_is_known() -> None:
    adapter = cases()["all modules"]
    assert "layers_to_transform" not in peft_options(adapter, 2)
    assert peft_options(adapter)["layers_to_transform"] == [0, 1]
    assert peft_options(adapter, 3)["layers_to_transform"] == [0, 1]
    with pytest.raises(BadAdapter):
        peft_options(adapter, 1)


def peft_library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason="peft is not installed: pip install peft")


def their_base(base: Base) -> Any:
    import transformers

    config = transformers.LlamaConfig(**SIZES, rope_theta=5000.0, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).float().eval()
    assert not model.load_state_dict(exact_weights(base), strict=False).unexpected_keys
    return model


def their_logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([IDS])).logits[0]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("layers", [None, 2])
def test_peft_loads_what_we_write(tmp_path: Path, case: str, layers: int | None) -> None:
    peft, base, adapter = peft_library(), small_base(), cases()[case]
    write_peft(adapter, tmp_path / "out", layers)
    model = peft.PeftModel.from_pretrained(their_base(base), tmp_path / "out").eval()
    loaded = {n for n, p in model.named_parameters() if "lora_B" in n and bool(p.abs().max() > 0)}
    assert len(loaded) == len(adapter.modules)
    theirs, ours = their_logits(model), logits(base, adapter, IDS)
    assert float((theirs - ours).norm() / theirs.norm()) < 2e-3
    plain = logits(base, None, IDS)
    assert float((theirs - plain).norm() / theirs.norm()) > 0.02


WRITTEN: dict[str, dict[str, Any]] = {
    "names": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
    "all linear, rslora": {"r": 9, "lora_alpha": 16, "target_modules": "all-linear", "use_rslora": True},
    "one layer": {"r": 2, "lora_alpha": 8, "target_modules": ["down_proj"], "layers_to_transform": [1]},
    "full names": {"r": 3, "lora_alpha": 3, "target_modules": [Q0, V1]},
    "gaussian": {"r": 3, "lora_alpha": 3, "target_modules": ["k_proj"], "init_lora_weights": "gaussian"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(WRITTEN))
def test_we_load_what_peft_writes(tmp_path: Path, case: str) -> None:
    peft, base = peft_library(), small_base()
    model = peft.get_peft_model(their_base(base), peft.LoraConfig(**WRITTEN[case])).eval()
    for i, (name, p) in enumerate(model.named_parameters()):
        if "lora_" in name:
            p.data = draw(f"peft {i}", *p.shape, scale=0.2)
    model.save_pretrained(tmp_path)
    adapter = read_peft(tmp_path, layers=2)
    theirs, ours = their_logits(model), logits(base, adapter, IDS)
    assert float((theirs - ours).norm() / theirs.norm()) < 3e-3
    assert float((theirs - logits(base, None, IDS)).norm() / theirs.norm()) > 0.005


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"peft_type": ...}, "peft_type None"),
        ({"frobnicate": None}, "'frobnicate' is not an option"),
        ({"use_dora": True}, "use_dora = True"),
        ({"use_qalora": True}, "use_qalora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"megatron_config": {}}, "megatron_config"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"use_rslora": 1}, "use_rslora"),
        ({"r": "4"}, "r = '4'"),
        ({"r": True}, "r = True"),
        ({"r": 5}, "for rank 5"),
        ({"r": 1 << 40}, "rank"),
        ({"lora_alpha": 6.5}, "lora_alpha = 6.5"),
        ({"lora_alpha": 0}, "alpha 0"),
        ({"lora_alpha": 1e300}, "alpha"),
        ({"target_modules": ".*proj"}, "not a list of names"),
        ({"target_modules": None}, "not a list of names"),
        ({"target_modules": ["q_proj", 7]}, "not a list of names"),
        ({"target_modules": ["q_proj"]}, "v_proj is not selected by"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj is not in adapter_model.safetensors"),
        ({"target_modules": ["q_proj", "v_proj", "c_attn"]}, "'c_attn'"),
        ({"target_modules": "all-linear"}, "is not in adapter_model.safetensors"),
        ({"layers_to_transform": [0]}, "layers.1.self_attn.q_proj is not selected by"),
        ({"layers_to_transform": [0, 1, 5]}, "layers.5.self_attn.q_proj is not in"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"layers_to_transform": [True]}, "layers_to_transform"),
        ({"layers_to_transform": [10**30]}, "is not selected by"),
    ],
)
def test_options_that_change_what_is_computed_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises((ImportRefused, BadAdapter)) as error:
        read_peft(write(tmp_path / "p", **changes))
    assert says in str(error.value)


def test_ways_of_saying_the_same_give_the_same_adapter(tmp_path: Path) -> None:
    plain = read_peft(write(tmp_path / "p"))
    assert plain.hash == tiny_adapter(small_base(), targets=("q_proj", "v_proj")).hash
    full = [m.name for m in plain.modules]
    ways: tuple[dict[str, Any], ...] = (
        {
            "lora_alpha": 6.0,
            "lora_dropout": 0.1,
            "use_rslora": False,
            "rank_pattern": {},
            "megatron_core": "x",
        },
        {"target_modules": ["self_attn.q_proj", "v_proj"], "layers_to_transform": [1, 0]},
        {"target_modules": full},
        {"target_modules": full, "layers_to_transform": [0]},
    )
    for changes in ways:
        assert read_peft(write(tmp_path / "p", **changes), layers=2).hash == plain.hash
    with pytest.raises(ImportRefused, match=r"layers.2.self_attn.q_proj is not in"):
        read_peft(write(tmp_path / "p"), layers=3)


def test_narrow_factors_are_read_exactly(tmp_path: Path) -> None:
    plain = tiny_adapter(small_base(), targets=("q_proj", "v_proj"))
    narrow = {n: x.to(torch.bfloat16) for n, x in tensors_of(plain).items()}
    wide = {n: x.float() for n, x in narrow.items()}
    assert read_peft(write(tmp_path / "p", narrow)).hash == read_peft(write(tmp_path / "p", wide)).hash


def test_tensors_that_do_not_belong_to_an_adapter_are_refused_by_name(tmp_path: Path) -> None:
    good = tensors_of(tiny_adapter(small_base(), targets=("q_proj", "v_proj")))
    a = f"{PREFIX}{Q0}.lora_A.weight"

    def refused(tensors: dict[str, Tensor], says: str) -> None:
        with pytest.raises((ImportRefused, BadAdapter)) as error:
            read_peft(write(tmp_path / "p", tensors))
        assert says in str(error.value)

    for extra in (
        f"{PREFIX}lm_head.lora_A.weight",
        f"{PREFIX}model.embed_tokens.lora_embedding_A",
        f"{PREFIX}{Q0}.lora_magnitude_vector",
        f"{PREFIX}{Q0}.lora_B.bias",
        f"{PREFIX}model.layers.300.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}model.layers.00.self_attn.q_proj.lora_A.weight",
    ):
        refused({**good, extra: torch.ones(4, 32)}, "missing or unexpected")
    refused({n: x for n, x in good.items() if n != a}, "missing or unexpected")
    refused({"x": torch.ones(2)}, "no factor")
    refused({**good, a: torch.ones(4)}, "not a matrix")
    refused({**good, a: torch.ones(5, 32)}, "for rank 4")
    for value in (float("nan"), float("inf"), 2.0**41):
        refused({**good, a: torch.full((4, 32), value)}, "not finite or too large")


def test_adapters_in_pickle_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "p")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ImportRefused, match=r"'adapter_model\.bin' is pickle"):
        read_peft(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ImportRefused, match="is not in"):
        read_peft(folder)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.sampled_from(["q_proj", "v_proj", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=examples(40))
@given(data=st.data())
def test_any_value_of_any_option_is_read_or_refused_with_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    from attribution.importing.peft import _HARMLESS, _ONLY, _READ

    keys = sorted({*_READ, *_HARMLESS, *_ONLY})
    changes: dict[str, Any] = {
        key: data.draw(_JSON) for key in data.draw(st.lists(st.sampled_from(keys), max_size=2))
    }
    folder = write(tmp_path_factory.mktemp("peft") / "p", **changes)
    try:
        adapter = read_peft(folder, layers=2)
    except (ImportRefused, BadAdapter):
        return
    assert [m.name for m in adapter.modules][::3] == [Q0, V1]
