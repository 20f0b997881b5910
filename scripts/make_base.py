"""Train and write the small base model that ships with the project.

A byte-level Llama is trained in ordinary float32 on the docstrings of the installed Python standard library, read
with ``ast``, **without** the modules the demonstration's contributors own (`node.devnet.stories`), so that what an
adapter learns from their records is new to the base. It is then quantised to the exact model's 7-bit weights.

The written file is authoritative and its hash is pinned in ``attribution/models/__init__.py``. Running this script
again needs not reproduce its bits: float training differs between machines, and library versions differ in text.

    python -m scripts.make_base --out attribution/models/base.safetensors [--steps 2400] [--float-state FILE]

A document is ``0 bytes 0``; documents are packed into windows of 256 bytes. Byte 0 never occurs in text and serves as
both beginning and end. One document in fifty, chosen by the BLAKE3 hash of its text, is held out; its loss is printed.
"""

from __future__ import annotations

import argparse
import ast
import math
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import blake3
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attribution.checkpoint import save_base
from attribution.model import quantise_checkpoint
from node.devnet.stories import contributed_modules

WINDOW = 256
BATCH = 8
SKIPPED_FOLDERS = frozenset(
    (
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "lib-dynload",
        "turtledemo",
        "ensurepip",
    )
)


def llama_config() -> LlamaConfig:
    """The shape of the shipped base: 0.8 million parameters, grouped-query attention, untied output."""
    return LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=0,
        eos_token_id=0,
        hidden_act="silu",
    )


def docstrings(root: Path) -> Iterator[tuple[str, str, str]]:
    """(module, name, docstring) of every documented module, class and function below ``root``, in path order."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and text.isascii() and "\0" not in text:
                    yield module, getattr(node, "name", module), text


def documents() -> tuple[list[bytes], list[bytes]]:
    """Training and held-out documents: each docstring as it stands, and its first paragraph on one headed line."""
    owned = contributed_modules()
    mine, theirs = dict[str, tuple[str, str]](), set[str]()
    for module, name, text in docstrings(Path(sysconfig.get_paths()["stdlib"])):
        if any(module == m or module.startswith(m + ".") for m in owned):
            theirs.add(text)
        else:
            mine.setdefault(text, (module, name))
    train, held = list[bytes](), list[bytes]()
    for text, (module, name) in mine.items():
        if text in theirs or len(text) < 20:
            continue
        part = held if blake3.blake3(text.encode()).digest()[0] % 50 == 0 else train
        part.append(text.encode())
        line = " ".join(text.split("\n\n")[0].split())[:240]
        if len(line) >= 20:
            part.append(f"{module.rsplit('.', 1)[-1]}.{name.strip('_')}: {line}".encode())
    return train, held


def packed(texts: list[bytes], generator: np.random.Generator) -> np.ndarray:
    """All documents in a random order, as one stream ``0 text 0 text 0 ...`` of int64 tokens."""
    order = generator.permutation(len(texts))
    return np.frombuffer(b"\0" + b"\0".join(texts[i] for i in order) + b"\0", np.uint8).astype(np.int64)


def orthogonalised(m: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Jordan et al. 2024, Muon)."""
    x: torch.Tensor = m / (torch.linalg.matrix_norm(m) + 1e-7)
    if flip := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix: about half the steps of AdamW on the layers' matrices."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update to every matrix."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def windows_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats per byte of (batch, WINDOW + 1) tokens."""
    logits = model(tokens[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_bits(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    """Bits per byte over non-overlapping windows of the held-out stream."""
    rows = torch.from_numpy(stream[: len(stream) // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1))
    losses: list[float] = [windows_loss(model, part).item() * len(part) for part in torch.split(rows, 32)]
    return sum(losses) / len(rows) / math.log(2)


def trained(steps: int, seed: int, keep: Path | None) -> LlamaForCausalLM:
    """The float model after ``steps`` steps (warm-up, constant, linear decay), also kept in ``keep`` now and then."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    texts, held = documents()
    print(
        f"{len(texts)} documents, {sum(map(len, texts))} bytes; held out {len(held)}, {sum(map(len, held))} bytes"
    )
    model = LlamaForCausalLM(llama_config())
    held_stream = packed(held, generator)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, lr=0.02), 0.02),
        (torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0), 4e-3),
    ]
    start, stream, at = time.monotonic(), packed(texts, generator), 0
    for step in range(steps):
        size = BATCH * (WINDOW + 1)
        if at + size > len(stream):
            stream, at = packed(texts, generator), 0
        tokens = torch.from_numpy(stream[at : at + size].reshape(BATCH, WINDOW + 1))
        at += size
        loss = windows_loss(model, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser, lr in optimisers:
            optimiser.param_groups[0]["lr"] = (
                lr * min(1.0, (step + 1) / 20) * min(1.0, 1.6 * (1 - step / steps))
            )
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % 100 == 0:
            took = time.monotonic() - start
            print(f"{step + 1} steps, {took:.0f} s, {loss.item() / math.log(2):.3f} bits/byte", flush=True)
            if keep:
                torch.save(model.state_dict(), keep)
    print(
        f"held out: {held_out_bits(model, held_stream):.3f} bits/byte after {steps} steps of {BATCH}x{WINDOW} bytes"
    )
    return model


def main() -> None:
    """Train (or read a float state), quantise, write, and print the hash to pin."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=2400, help="about 13 minutes of one thread")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--float-state", type=Path, help="keep (or, where it exists, reuse) the float weights here"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.float_state and options.float_state.exists():
        state = torch.load(options.float_state, weights_only=True)
    else:
        state = trained(options.steps, options.seed, options.float_state).state_dict()
        if options.float_state:
            torch.save(state, options.float_state)
    base = quantise_checkpoint(state, llama_config().to_dict())
    save_base(base, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes\nBASE_HASH = {base.hash.hex()}")


if __name__ == "__main__":
    main()
