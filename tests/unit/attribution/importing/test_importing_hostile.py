"""What strangers write: every option by name, every offset, count and path, and nothing that could run code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution.errors import BadModel
from attribution.importing.directory import import_model, open_directory
from attribution.importing.errors import ImportRefused
from attribution.importing.files import parse_json, read_bytes
from attribution.importing.shards import open_weights
from attribution.importing.tensor_file import open_tensors
from tests.profiles import examples
from tests.unit.attribution.importing.importing_cases import (
    FAMILIES,
    LLAMA3,
    base_of,
    config_of,
    float_weights,
    packed,
    write_model,
)

LLAMA = "llama, grouped heads"
QWEN2 = "qwen2, one key head"
QWEN3 = "qwen3, tied, wide heads"
LINEAR = {"rope_type": "linear", "factor": 2.0}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def refused(folder: Path, says: str, **chosen: int) -> None:
    with pytest.raises((ImportRefused, BadModel)) as error:
        import_model(folder, **chosen)
    assert says in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        (LLAMA, {"model_type": "gpt2"}, "model_type 'gpt2'"),
        (LLAMA, {"model_type": ...}, "model_type None"),
        (LLAMA, {"model_type": ["llama"]}, "model_type"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        (LLAMA, {"frobnicate": None}, "'frobnicate' is not an option of llama"),
        (LLAMA, {"x" * 5000: 1}, "is not an option"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp = 2"),
        (LLAMA, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA, {"rope_interleaved": 0}, "rope_interleaved"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"),
        (LLAMA, {"sliding_window": 4096}, "sliding_window"),
        (LLAMA, {"attention_bias": "yes"}, "attention_bias"),
        (LLAMA, {"attention_bias": 1}, "attention_bias"),
        (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA, {"layer_types": "full_attention"}, "layer_types"),
        (LLAMA, {"hidden_size": ...}, "hidden_size"),
        (LLAMA, {"hidden_size": 32.0}, "hidden_size"),
        (LLAMA, {"hidden_size": True}, "hidden_size"),
        (LLAMA, {"hidden_size": 1 << 40}, "hidden_size"),
        (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers"),
        (LLAMA, {"num_attention_heads": 5}, "num_attention_heads"),
        (LLAMA, {"num_attention_heads": 0}, "num_attention_heads"),
        (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads"),
        (LLAMA, {"vocab_size": 1 << 30}, "vocab_size"),
        (LLAMA, {"max_position_embeddings": 1 << 30}, "max_position_embeddings"),
        (LLAMA, {"max_position_embeddings": ...}, "max_position_embeddings"),
        (LLAMA, {"rms_norm_eps": ...}, "rms_norm_eps"),
        (LLAMA, {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps"),
        (LLAMA, {"rope_theta": 10**400}, "rope_theta"),
        (LLAMA, {"tie_word_embeddings": None}, "tie_word_embeddings"),
        (LLAMA, {"bos_token_id": None}, "choose it with --bos"),
        (LLAMA, {"eos_token_id": [1, 2]}, "choose it with --eos"),
        (LLAMA, {"eos_token_id": 64}, "eos_token_id"),
        (LLAMA, {"rope_scaling": "linear"}, "rope_scaling"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        (LLAMA, {"rope_scaling": {**LINEAR, "type": "llama3"}}, "two types"),
        (LLAMA, {"rope_scaling": {**LINEAR, "attention_factor": 1.0}}, "'attention_factor'"),
        (LLAMA, {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "'factor'"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        (LLAMA, {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor"),
        (LLAMA, {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": "8192"}}, "original_max"),
        (LLAMA, {"rope_scaling": LINEAR, "rope_parameters": LLAMA3}, "twice"),
        (LLAMA, {"rope_theta": 5e3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "twice"),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window = True"),
        (QWEN2, {"sliding_window": 64}, "sliding_window = 64"),
        (QWEN2, {"attention_bias": False}, "'attention_bias' is not an option of qwen2"),
        (QWEN2, {"num_key_value_heads": ...}, "num_key_value_heads"),
        (QWEN3, {"head_dim": ...}, "head_dim"),
        (QWEN3, {"mlp_bias": False}, "'mlp_bias' is not an option of qwen3"),
    ],
)
def test_options_that_change_what_is_computed_are_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], says: str
) -> None:
    refused(write_model(tmp_path / "m", family, {}, **changes), says)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (LLAMA, {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "use_cache": True}),
        (LLAMA, {"eos_token_id": [1], "hidden_act": "silu", "pretraining_tp": 1, "pad_token_id": None}),
        (LLAMA, {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
        (LLAMA, {"rope_scaling": None, "rope_theta": 5000, "head_dim": 8}),
        (QWEN2, {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}),
        (QWEN3, {"layer_types": ["full_attention"] * 2, "attention_dropout": 0.1}),
    ],
)
def test_ways_of_saying_the_same_give_the_same_base(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    assert (
        import_model(write_model(tmp_path / "m", family, **changes)).hash == base_of(config_of(family)).hash
    )


def test_tokens_that_the_file_leaves_open_are_chosen(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA, bos_token_id=None, eos_token_id=[1, 2])
    base = import_model(folder, bos=5, eos=2)
    assert (base.config.bos_token_id, base.config.eos_token_id) == (5, 2)
    refused(folder, "eos_token_id", bos=5, eos=64)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"model_type":"llama","model_type":"qwen2"}', "a key twice"),
        (b'{"rope_theta":NaN}', "NaN"),
        (b'{"rope_theta":-Infinity}', "-Infinity"),
        (b'{"model_type":"llama"\xff}', "is not JSON"),
        (b" " * ((1 << 20) + 1), "the limit is 1048576"),
    ],
)
def test_configurations_that_are_not_one_json_object_are_refused(
    tmp_path: Path, data: bytes, says: str
) -> None:
    folder = write_model(tmp_path / "m", LLAMA, {})
    (folder / "config.json").write_bytes(data)
    refused(folder, says)


def small() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 25]}}, "not the size"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]}}, "overlaps"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]}}, "gap"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [-24, 0]}}, "not the size"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}}, "not the size"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, True]}}, "not the size"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24, 24]}}, "malformed"),
        ({"a": {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 24]}}, "not the size"),
        ({"a": {"dtype": "F32", "shape": [2, True], "data_offsets": [0, 8]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [1, 2, 3], "data_offsets": [0, 24]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 1 << 64]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}, "leaves a gap"),
        ({"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}, "'F64'"),
        ({"a": {"dtype": "I8", "shape": [24], "data_offsets": [0, 24]}}, "'I8'"),
        ({"a": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}}, "'F8_E4M3'"),
        (
            {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], "file": "/etc/x"}},
            "unknown fields",
        ),
        ({"a": [1]}, "malformed"),
        ({"a": None}, "gap"),
        ({"b": None}, "end at byte"),
        ({"__metadata__": 3}, "metadata"),
        ({"c": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]}}, "overlaps"),
        ({"c": {"dtype": "F32", "shape": [4], "data_offsets": [40, 56]}}, "the file at"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(small(), **changes))
    with pytest.raises(ImportRefused) as error, open_tensors(path):
        pass
    assert says in str(error.value)


def test_files_that_are_cut_or_announce_too_much_are_refused(tmp_path: Path) -> None:
    good = packed(small())
    path = tmp_path / "x.safetensors"
    for data in (
        b"",
        good[:9],
        good[:40],
        good[:-1],
        good + b"\0",
        b"\xff" * 8 + good[8:],
        (1 << 22).to_bytes(8, "little") + good[8:],
        (1).to_bytes(8, "little") + good[8:],
    ):
        path.write_bytes(data)
        with pytest.raises(ImportRefused), open_tensors(path):
            pass
    path.write_bytes(good)
    with open_tensors(path) as file:
        assert torch.equal(file.whole("a"), small()["a"])


def test_a_header_longer_than_any_model_needs_is_refused(tmp_path: Path) -> None:
    good = packed(small())
    length = (1 << 22) + 8
    padded = good[8 : 8 + int.from_bytes(good[:8], "little")].ljust(length)
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + padded + bytes(40))
    with pytest.raises(ImportRefused, match="a header of 4194312 bytes"), open_tensors(path):
        pass


def test_a_header_with_too_many_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(small()))
    monkeypatch.setattr("attribution.importing.tensor_file.TENSORS_MAX", 1)
    with pytest.raises(ImportRefused, match="2 tensors"), open_tensors(path):
        pass


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(small()))
    with open_tensors(path) as file:
        os.truncate(path, path.stat().st_size - 3)
        assert file.whole("a").shape == (2, 3)
        with pytest.raises(ImportRefused, match="ends before"):
            file.whole("b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 999).to(dtype).view(27, 37)
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({"x": x}))
    with open_tensors(path) as file:
        assert torch.equal(file.whole("x"), x.float())
        assert torch.equal(file.rows("x", 5, 9), x[5:9].float())


@pytest.mark.parametrize("at_once", [1, 4 * 32 * 3, 1 << 25])
def test_the_base_does_not_depend_on_how_many_rows_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("attribution.importing.tensor_file.BYTES_AT_ONCE", at_once)
    assert import_model(write_model(tmp_path / "m", QWEN2)).hash == base_of(config_of(QWEN2)).hash


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0**14])
@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight", "model.layers.1.self_attn.k_proj.bias"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    tensors = float_weights(config_of(QWEN2))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[3] = value * (2.0**7 if name != Q_PROJ else 1.0)
    refused(write_model(tmp_path / "m", QWEN2, tensors), name)


def test_tensors_that_are_missing_extra_or_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    good = float_weights(config_of(LLAMA))
    without = {k: v for k, v in good.items() if k != Q_PROJ}
    folder = write_model(tmp_path / "m", LLAMA, without)
    refused(folder, Q_PROJ)
    for extra in ("evil.weight", "model.layers.2.mlp.up_proj.weight", f"{Q_PROJ[:-6]}bias"):
        write_model(folder, LLAMA, {**good, extra: torch.ones(3)})
        refused(folder, extra)
    write_model(folder, LLAMA, {**good, Q_PROJ: good[Q_PROJ].t()[:, :31].contiguous()})
    refused(folder, "has shape [32, 31], config.json says [32, 32]")
    write_model(folder, LLAMA, {**good, "model.norm.weight": torch.ones(1, 32)})
    refused(folder, "model.norm.weight has shape")
    write_model(folder, LLAMA, {**good, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert import_model(folder).hash == base_of(config_of(LLAMA)).hash


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path: Path) -> None:
    good = float_weights(config_of(QWEN3))
    table = good["model.embed_tokens.weight"]
    folder = write_model(tmp_path / "m", QWEN3, {**good, "lm_head.weight": table})
    assert import_model(folder).hash == base_of(config_of(QWEN3)).hash
    other = table.clone()
    other[5, 5] += 1e-6
    for head in (other, table[:9].contiguous()):
        write_model(folder, QWEN3, {**good, "lm_head.weight": head})
        refused(folder, "lm_head.weight is not model.embed_tokens.weight")


def sharded(folder: Path, **places: Any) -> Path:
    """Two shards and their index; `places` replace files that the index names."""
    tensors = float_weights(config_of(LLAMA))
    names = sorted(tensors)
    write_model(folder, LLAMA, {})
    (folder / "model.safetensors").unlink()
    placed: dict[str, Any] = {}
    for shard, part in (("one.safetensors", names[:9]), ("two.safetensors", names[9:])):
        (folder / shard).write_bytes(packed({n: tensors[n] for n in part}))
        placed |= dict.fromkeys(part, shard)
    placed |= places
    index = {"metadata": {"total_size": 1}, "weight_map": {k: v for k, v in placed.items() if v is not ...}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read_as_the_index_places_them(tmp_path: Path) -> None:
    assert import_model(sharded(tmp_path / "m")).hash == base_of(config_of(LLAMA)).hash


def test_a_directory_of_links_as_in_the_hubs_cache_is_read(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs")
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in blobs.iterdir():
        (links / path.name).symlink_to(Path("..") / "blobs" / path.name)
    assert import_model(links).hash == base_of(config_of(LLAMA)).hash


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("../one.safetensors", "'../one.safetensors'"),
        ("sub/one.safetensors", "'sub/one.safetensors'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("..", "'..'"),
        (".hidden.safetensors", "'.hidden.safetensors'"),
        ("one.safetensors\0", "one.safetensors"),
        ("one.bin", "'one.bin'"),
        ("two.safetensors", "does not place there"),
        ("absent.safetensors", "absent.safetensors cannot be read"),
        (7, "7"),
        (None, "None"),
        ("x" * 500 + ".safetensors", "not a .safetensors file beside it"),
        (..., "does not place there"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, file: object, says: str) -> None:
    (tmp_path / "one.safetensors").write_bytes(packed(small()))
    refused(sharded(tmp_path / "m", **{"lm_head.weight": file}), says)


def test_an_index_is_bounded_and_says_nothing_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tmp_path / "m", extra="one.safetensors")
    refused(folder, "'extra'")
    index = folder / "model.safetensors.index.json"
    for text, says in (
        ('{"weight_map":{},"code":1}', "'code'"),
        ('{"weight_map":{}}', "1 to"),
        ('{"weight_map":["one.safetensors"]}', "1 to"),
        (" " * ((1 << 22) + 1), "the limit is 4194304"),
    ):
        index.write_text(text)
        refused(folder, says)
    sharded(folder)
    monkeypatch.setattr("attribution.importing.shards.SHARDS_MAX", 1)
    refused(folder, "2 files; the limit is 1")


def test_pickle_is_refused_by_name_and_never_opened(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA)
    bomb = folder / "pytorch_model.bin"
    bomb.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    bomb.chmod(0)
    with open_directory(folder) as directory:
        assert directory.weights.not_read == ("pytorch_model.bin",)
    assert import_model(folder).hash == base_of(config_of(LLAMA)).hash
    (folder / "model.safetensors").unlink()
    refused(folder, "'pytorch_model.bin' is pickle")
    bomb.rename(folder / "consolidated.00.pth")
    refused(folder, "'consolidated.00.pth' is pickle")
    (folder / "consolidated.00.pth").unlink()
    refused(folder, "neither model.safetensors nor")


def test_two_ways_to_the_weights_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(packed(small()))
    refused(folder, "both there")


def test_pipes_devices_and_folders_in_place_of_files_are_refused_at_once(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA)
    weights = folder / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    refused(folder, "not a regular file")
    weights.unlink()
    weights.mkdir()
    refused(folder, "not a regular file")
    weights.rmdir()
    weights.symlink_to("/dev/zero")
    refused(folder, "not a regular file")
    refused(tmp_path / "absent", "cannot be read")
    with pytest.raises(ImportRefused, match="the limit is 3"):
        read_bytes(folder / "config.json", 3)


def test_a_folder_of_too_many_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attribution.importing.files.NAMES_MAX", 1)
    folder = write_model(tmp_path / "m", LLAMA)
    with pytest.raises(ImportRefused, match="more than 1 names"), open_weights(folder):
        pass


@pytest.mark.slow
def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """A header that claims the largest shapes that config.json may name, read in 256 MiB of further address space."""
    folder = write_model(
        tmp_path / "m", LLAMA, {}, hidden_size=8192, num_attention_heads=32, vocab_size=1 << 18
    )
    rows, size = 1 << 18, (1 << 18) * 8192 * 4
    entry = {"dtype": "F32", "shape": [rows, 8192], "data_offsets": [0, size]}
    (folder / "model.safetensors").write_bytes(packed(small(), **{"model.embed_tokens.weight": entry}))
    script = (
        "import sys, torch; from pathlib import Path; from attribution.importing.directory import import_model\n"
        "from attribution.importing.errors import ImportRefused\n"
        "import resource; used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "try: import_model(Path(sys.argv[1]))\n"
        "except ImportRefused as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "overlaps another tensor or leaves a gap" in done.stdout, done.stderr


def test_a_model_larger_than_a_base_can_be_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    """Files of that size cost a stranger nothing: they can be holes."""
    sizes = {
        "hidden_size": 8192,
        "num_attention_heads": 32,
        "intermediate_size": 1 << 16,
        "num_hidden_layers": 256,
    }
    refused(write_model(tmp_path / "m", LLAMA, {}, **sizes), "bytes as a base; the limit is")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=examples(60))
@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_any_value_of_any_key_is_read_or_refused_with_a_typed_error(family: str, data: st.DataObject) -> None:
    from attribution.importing.architecture import _HARMLESS, _ONLY, _READ, _WINDOW, model_config
    from tests.unit.attribution.importing.importing_cases import SIZES

    keys = sorted({*_READ, *_HARMLESS, *_ONLY, *_WINDOW, "attention_bias", "mlp_bias"})
    values = {**SIZES, **FAMILIES[family]}
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        values[key] = data.draw(_JSON)
    try:
        config = model_config(values)
    except (ImportRefused, BadModel):
        return
    assert type(config).from_canonical_json(config.canonical_json()) == config


@settings(max_examples=examples(60))
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_changed_byte_is_refused_or_changes_only_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    data = bytearray(packed(small()))
    data[at % len(data)] = byte
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    path.write_bytes(bytes(data)[: len(data) - cut])
    try:
        with open_tensors(path) as file:
            for name, entry in file.entries.items():
                assert file.whole(name).shape == entry.shape
    except ImportRefused:
        return
    assert cut == 0


def test_one_object_is_one_meaning() -> None:
    assert parse_json(b'{"a": [1, {"b": 2.5}]}', "x") == {"a": [1, {"b": 2.5}]}
    with pytest.raises(ImportRefused, match="a key twice"):
        parse_json(b'{"a": {"b": 1, "b": 1}}', "x")
