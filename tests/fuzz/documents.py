"""Files and texts: adapter, base, index, recipe, configuration, genesis, JSON-RPC."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import trio

from attribution.adapter import BYTES_MAX as ADAPTER_BYTES_MAX
from attribution.adapter import adapter_from_bytes, adapter_to_bytes
from attribution.checkpoint import load_base, save_base
from attribution.config import ModelConfig
from attribution.errors import BadAdapter, BadModel, BadRecipe
from attribution.index import HEADER_BYTES_MAX, Index, IndexFileError, IndexHeader
from attribution.recipe import Recipe
from attribution.whitening import FactorShape
from consensus.codec import decode, encode
from consensus.errors import CodecError
from node.config import CONFIG_BYTES_MAX, Config, load_config, render_toml
from node.errors import ConfigInvalid
from node.home import Home
from node.ledger.bodies import RECIPE_BYTES_MAX
from node.ledger.errors import LedgerError
from node.ledger.genesis import Genesis, genesis_to_dict
from node.rpc.errors import Code
from node.rpc.methods import METHODS
from node.rpc.protocol import answer
from node.startup import GENESIS_BYTES_MAX, load_genesis
from tests.fuzz.target import Target
from tests.unit.node.ledger_backend import LedgerBackend
from tests.vectors import content, paying

RPC_BATCH_MAX = 4


class InternalError(Exception):
    """A client got the error that is for our own faults."""


@cache
def scratch() -> Path:
    """A folder for files under test, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="openledger-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def document_targets() -> list[Target]:
    """Targets of this file."""
    index = scratch() / "index"
    content.index().save(index)
    save_base(content.base(), scratch() / "base.safetensors")
    return [
        Target(
            "adapter",
            adapter_from_bytes,
            adapter_to_bytes,
            (adapter_to_bytes(content.adapter()),),
            (BadAdapter,),
            ADAPTER_BYTES_MAX,
            "attribution/adapter.py",
            "peer (blob)",
        ),
        Target(
            "base",
            _read_base,
            _write_base,
            ((scratch() / "base.safetensors").read_bytes(),),
            (BadModel,),
            sender="file",
            same=lambda one, two: bool(one.hash == two.hash),
        ),
        Target(
            "index-header",
            IndexHeader.decode,
            IndexHeader.encode,
            _index_headers(),
            (IndexFileError,),
            sender="disk",
        ),
        Target(
            "index",
            _open_index,
            None,
            (content.index().header.encode(),),
            (IndexFileError,),
            HEADER_BYTES_MAX,
            "attribution/index.py",
            "disk",
        ),
        Target(
            "recipe",
            lambda data: Recipe.from_fields(decode(data, RECIPE_BYTES_MAX)),
            lambda recipe: encode(recipe.to_fields()),
            (encode(content.RECIPE.to_fields()), encode(Recipe().to_fields())),
            (BadRecipe, CodecError),
            RECIPE_BYTES_MAX,
            "node/ledger/bodies.py",
            "client, peer",
        ),
        *_text_targets(),
    ]


def _index_headers() -> tuple[bytes, ...]:
    """Of rows of signs, and of sketched ones."""
    header = content.index().header
    wide = tuple(FactorShape(f"{name}.B", 1 << 9, 1 << 8) for name in ("a", "b"))
    return header.encode(), replace(header, shapes=wide).encode()


def _text_targets() -> list[Target]:
    genesis = json.dumps(genesis_to_dict(paying.GENESIS), indent=1).encode()
    return [
        Target(
            "model-config",
            lambda data: ModelConfig.from_canonical_json(data.decode("utf-8", "replace")),
            lambda config: config.canonical_json().encode(),
            (content.CONFIG.canonical_json().encode(),),
            (BadModel,),
            sender="file",
            same=lambda one, two: bool(one == two),
            text=True,
        ),
        Target(
            "huggingface-config",
            _from_mapping,
            None,
            (json.dumps(asdict(content.CONFIG) | {"rms_norm_eps": 1e-5, "rope_theta": 1e4}).encode(),),
            (BadModel,),
            sender="file",
            text=True,
        ),
        Target(
            "config-toml",
            _read_config,
            lambda config: render_toml(config).encode(),
            (render_toml(Config()).encode(), b'[node]\nmoniker = "a"\nvalidator = true\n[rpc]\nport = 1\n'),
            (ConfigInvalid,),
            CONFIG_BYTES_MAX,
            "node/config.py",
            "file",
            same=lambda one, two: bool(one == two),
            text=True,
        ),
        Target(
            "genesis-json",
            _read_genesis,
            lambda found: json.dumps(genesis_to_dict(found)).encode(),
            (genesis,),
            (ConfigInvalid, LedgerError),
            GENESIS_BYTES_MAX,
            "node/startup.py",
            "file",
            same=lambda one, two: bool(one == two),
            text=True,
        ),
        Target(
            "json-rpc", _call, None, _requests(), (), sender="client", text=True
        ),
    ]  # fmt: skip


def _read_base(data: bytes) -> Any:
    path = scratch() / "fuzzed.safetensors"
    path.write_bytes(data)
    return load_base(path)


def _write_base(base: Any) -> bytes:
    path = scratch() / "again.safetensors"
    save_base(base, path)
    return path.read_bytes()


def _open_index(data: bytes) -> Index:
    (scratch() / "index" / "header.bin").write_bytes(data)
    return Index.open(scratch() / "index")


def _from_mapping(data: bytes) -> ModelConfig:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None  # reading the file is the caller's; the mapping is ours
    if not isinstance(values, dict):
        raise BadModel("not an object")
    return ModelConfig.from_mapping(values)


def _read_config(data: bytes) -> Config:
    path = scratch() / "config.toml"
    path.write_bytes(data)
    return load_config(path, environment={})


def _read_genesis(data: bytes) -> Genesis:
    home = Home(scratch())
    home.genesis_path.write_bytes(data)
    return load_genesis(home)


@cache
def _backend() -> LedgerBackend:
    return LedgerBackend()


def _call(data: bytes) -> bytes | None:
    """Answer a body; whatever a client sends, the answer is JSON-RPC, and never an internal error."""

    async def main() -> bytes | None:
        with trio.move_on_after(5):
            return await answer(data, METHODS, _backend(), RPC_BATCH_MAX, 1 << 20)
        raise InternalError("no answer within 5 s")

    found = trio.run(main)
    if found is None:
        return None
    document = json.loads(found)
    for response in document if isinstance(document, list) else [document]:
        if response["jsonrpc"] != "2.0" or ("result" in response) == ("error" in response):
            raise InternalError(f"not a response: {response}")
        if "error" in response and response["error"]["code"] == Code.INTERNAL_ERROR:
            raise InternalError(f"{data!r}")
    return found


def _requests() -> tuple[bytes, ...]:
    """A call of every method that answers at once, with parameters of the right form, and a batch of some."""
    examples: dict[str, object] = {"hex": "00" * 32, "int": 1}
    calls = []
    for number, (name, method) in enumerate(sorted(METHODS.items())):
        if "wait" in name:
            continue
        params = {
            param.name: examples["int"] if "integer" in param.expected else examples["hex"]
            for param in method.params
        }
        calls.append({"jsonrpc": "2.0", "id": number, "method": name, "params": params})
    return tuple(json.dumps(call).encode() for call in (*calls, calls[:3], calls[0] | {"id": "text"}))
