"""What a peer is given and what it gives back, as files: a Hugging Face model, PEFT adapters, token ids; scores.

    model/          Hugging Face Llama: config.json, model.safetensors, the base's own numbers in float32
    adapters/N/     PEFT adapter of checkpoint N; adapters/final is the last one
    moments.safetensors   AdamW's second moments of the last checkpoint, by PEFT name
    probe.safetensors     a few sequences and the logits that the work's own network gives them
    work.json       token ids of records and of what is asked, BOS and EOS, seed
    answer.npz      from the peer: scores (asked, records) float32, and facts as JSON

A peer's answer is a stranger's file: sizes, types and values are checked, nothing in it is executed.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from attribution.importing.peft import write_peft
from attribution.model import ModelConfig
from benchmarks.lds.network import Network, State, as_adapter, padded
from benchmarks.lds.peers import PeerFailed
from benchmarks.lds.work import Work

POSITIONS = 1 << 15
"""Written as the model's context, for bergson refuses batches of more tokens than that; positions are not limited by it."""
SELVES = 8
"""So many records are also asked, to see whether each finds itself."""
PROBED = 4
ANSWER_BYTES_MAX = 1 << 28
FACTS_BYTES_MAX = 1 << 14


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores (asked + selves, records), cost in CPU seconds and bytes a record, and remarks of the peer."""

    scores: NDArray[np.float64]
    build_s: float
    query_ms: float
    bytes_per_record: int
    note: str


def selves(work: Work) -> list[int]:
    """Numbers of the records that are asked about, too, spread over all."""
    count = min(SELVES, len(work.records))
    return [i * len(work.records) // count for i in range(count)]


def asked(work: Work) -> list[tuple[int, ...]]:
    """What a peer scores: the work's queries and unrelated texts, then `selves`."""
    return [*work.asked, *(work.records[i] for i in selves(work))]


def write_work(work: Work, folder: Path) -> None:
    """Write everything that a peer may read into the empty `folder`."""
    c = work.base.config
    write_model(work.network, c, folder / "model")
    names = [str(n) for n in range(len(work.checkpoints) - 1)] + ["final"]
    for name, checkpoint in zip(names, work.checkpoints, strict=True):
        _write_adapter(work.network, checkpoint.state, folder, name)
    moments = {
        f"{name}.lora_{side}.weight": v.contiguous()
        for name, pair in work.checkpoints[-1].second_moments.items()
        for side, v in zip("AB", pair, strict=True)
    }
    save_file(moments, folder / "moments.safetensors")
    ids, _ = padded(work.records[:PROBED], c.eos_token_id)
    with torch.no_grad():
        save_file({"ids": ids, "logits": work.network(ids)}, folder / "probe.safetensors")
    document = {
        "records": work.records,
        "asked": asked(work),
        "bos": c.bos_token_id,
        "eos": c.eos_token_id,
        "seed": work.seed,
        "learning_rates": [checkpoint.learning_rate for checkpoint in work.checkpoints],
    }
    (folder / "work.json").write_text(json.dumps(document))


def write_model(network: Network, config: ModelConfig, folder: Path) -> None:
    """The frozen base as a Hugging Face directory."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if ".lora_" not in name:
            tensors[name.replace(".base_layer", "")] = tensor.detach().clone().contiguous()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llama_options(config), indent=2))


def llama_options(config: ModelConfig) -> dict[str, object]:
    """The contents of a Hugging Face `config.json`. Raises ValueError for what plain Llama does not have."""
    if config.biases or config.qk_norm or config.rope_scaling is not None:
        raise ValueError("biases, normed heads or stretched rotary frequencies are not plain Llama")
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    )
    return {name: getattr(config, name) for name in names} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": float(config.rms_norm_eps),
        "rope_theta": float(config.rope_theta),
        "dtype": "float32",
    }


def _write_adapter(network: Network, state: State, folder: Path, name: str) -> None:
    place = folder / "adapters" / name
    write_peft(as_adapter(network, state), place, len(network.model.layers))
    options = json.loads((place / "adapter_config.json").read_text())
    options["base_model_name_or_path"] = str(folder / "model")
    (place / "adapter_config.json").write_text(json.dumps(options))


def read_answer(path: Path, shape: tuple[int, int]) -> Answer:
    """Check and read a peer's answer. Raises PeerFailed for anything but finite scores of that shape and sane facts."""
    try:
        if path.stat().st_size > ANSWER_BYTES_MAX:
            raise PeerFailed(f"its answer has {path.stat().st_size} bytes")
        scores, facts = _contents(path, shape)
        answer = Answer(
            scores=scores.astype(np.float64),
            build_s=_number(facts, "build_s"),
            query_ms=_number(facts, "query_ms"),
            bytes_per_record=int(_number(facts, "bytes_per_record")),
            note=str(facts.get("note", ""))[:300],
        )
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise PeerFailed(f"its answer cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
    if not np.isfinite(answer.scores).all():
        raise PeerFailed(f"{int((~np.isfinite(answer.scores)).sum())} of its scores are not finite")
    if not answer.scores.std() > 0:
        raise PeerFailed("its scores are all the same")
    return answer


def _contents(path: Path, shape: tuple[int, int]) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Scores and facts; the archive's own word on sizes is checked before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > ANSWER_BYTES_MAX:
            raise ValueError("it unpacks to too much")
    with np.load(path, allow_pickle=False) as file:
        facts = np.asarray(file["facts"])
        if facts.dtype != np.uint8 or facts.ndim != 1 or facts.size > FACTS_BYTES_MAX:
            raise ValueError("its facts are not JSON")
        scores = np.asarray(file["scores"])
    if scores.dtype != np.float32 or scores.shape != shape:
        raise ValueError(f"scores {scores.dtype} {scores.shape} where float32 {shape} are due")
    document = json.loads(facts.tobytes())
    if not isinstance(document, dict):
        raise ValueError("its facts are not an object")
    return scores, document


def _number(facts: dict[str, object], name: str) -> float:
    value = facts[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return float(value)
