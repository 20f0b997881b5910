"""Fine-tuning in binary32, as `attribution.training` does it exactly: same start, same order of records, same AdamW.

Made for many short trainings on one thread: a module's factors are merged into its weight once a step, sequences are packed without
padding (only attention is padded), projections that read the same input are one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from attribution.exact.random import permutation, uniform_floats
from attribution.model import GROUPS, Base, module_name
from attribution.recipe import MICRO, Recipe
from attribution.training import learning_rate
from benchmarks.lds.network import Network, State

Factors = dict[str, tuple[Tensor, Tensor]]
ATTENTION_ROWS_MAX = 64


@dataclass(frozen=True)
class Packed:
    """Sequences side by side: inputs and targets (tokens,), each token's place (row, position) in the padded batch."""

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    places: Tensor
    rows: int
    longest: int


def pack(sequences: Sequence[Sequence[int]], end: int = 0) -> Packed:
    """Records between BOS and EOS, one after the other."""
    lengths = torch.tensor([len(ids) + 1 for ids in sequences])
    longest = int(lengths.max())
    rows = torch.repeat_interleave(torch.arange(len(sequences)), lengths)
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(int(lengths.sum())) - starts[rows]
    inputs = torch.tensor([t for ids in sequences for t in (end, *ids)])
    targets = torch.tensor([t for ids in sequences for t in (*ids, end)])
    return Packed(inputs, targets, positions, rows * longest + positions, len(sequences), longest)


class Merged:
    """The frozen parts of a network, and its forward pass over packed tokens with the factors merged into the weights."""

    def __init__(self, network: Network) -> None:
        model = network.model
        self.scale = network.alpha / network.rank
        self.weights = {name: m.base_layer.weight.detach() for name, m in network.adapted()}
        self.embedding, self.head = model.embed_tokens.weight.detach(), network.lm_head.weight.detach()
        self.norm, self.eps = model.norm.weight.detach(), model.norm.eps
        self.norms = [
            tuple(
                layer.get_submodule(f"{part}_layernorm").get_parameter("weight").detach()
                for part in ("input", "post_attention")
            )
            for layer in model.layers
        ]
        attention = model.layers[0].get_submodule("self_attn")
        self.heads, self.kv = int(attention.heads), int(attention.kv)  # type: ignore[arg-type]
        self.cos, self.sin = model.get_buffer("cos"), model.get_buffer("sin")

    def logits(self, factors: State, batch: Packed) -> Tensor:
        """(tokens, vocabulary)."""
        cos, sin = self.cos[batch.positions][:, None], self.sin[batch.positions][:, None]
        half = cos.shape[-1] // 2
        turn = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        x = functional.embedding(batch.inputs, self.embedding)
        for i, (first, second) in enumerate(self.norms):
            mixed = self._attend(self._product(factors, i, 0, self._normed(x, first)), cos, turn, batch)
            x = x + self._product(factors, i, 1, mixed)
            gate, up = self._product(factors, i, 2, self._normed(x, second)).chunk(2, -1)
            x = x + self._product(factors, i, 3, functional.silu(gate) * up)
        return functional.linear(self._normed(x, self.norm), self.head)

    def _product(self, factors: State, layer: int, group: int, x: Tensor) -> Tensor:
        merged = []
        for projection in GROUPS[group]:
            name = module_name(layer, projection)
            a, b = factors[name]
            merged.append(torch.addmm(self.weights[name], b, a, alpha=self.scale))
        return functional.linear(x, merged[0] if len(merged) == 1 else torch.cat(merged))

    def _attend(self, qkv: Tensor, cos: Tensor, turn: Tensor, batch: Packed) -> Tensor:
        width = self.cos.shape[1]
        both = qkv[:, : (self.heads + self.kv) * width].view(len(qkv), -1, width)
        a, b = both.chunk(2, -1)
        turned = (both * cos + torch.cat([b, a], -1) * turn).flatten(1)
        padded_qkv = qkv.new_zeros(batch.rows * batch.longest, qkv.shape[1]).index_copy(
            0, batch.places, torch.cat([turned, qkv[:, turned.shape[1] :]], 1)
        )
        # The fused attention is several times slower on strided input.
        parts = padded_qkv.view(batch.rows, batch.longest, -1, width).transpose(1, 2).contiguous()
        q, k, v = torch.split(parts, [self.heads, self.kv, self.kv], 1)
        shared = self.heads // self.kv
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return o.transpose(1, 2).reshape(batch.rows * batch.longest, -1)[batch.places]

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.eps)


def initial(base: Base, network: Network, seed: int) -> Factors:
    """The factors that `attribution.training` starts from with this seed: A uniform, B zero."""
    out = {}
    for name, m in network.adapted():
        a, b = m.lora_A.weight, m.lora_B.weight
        draws = torch.from_numpy(uniform_floats(seed, f"adapter init {name}", a.numel())).view(a.shape)
        out[name] = (draws * (1.0 / math.sqrt(a.shape[1])), torch.zeros_like(b))
    return out


def schedule(recipe: Recipe, kept: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Record numbers of every step: the full training's order of each epoch without the records that are left out."""
    out: list[list[int]] = []
    for epoch in range(recipe.epochs):
        order = [i for i in permutation(recipe.seed, f"batch order {epoch}", len(kept)) if kept[i]]
        out.extend(order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size))
    return out


@dataclass(frozen=True)
class Step:
    """State after a step: 1-based number, of how many, the rate used, factors, AdamW's corrected second moments."""

    step: int
    steps: int
    rate: float
    factors: Factors
    second_moments: Factors


def train(
    network: Network,
    base: Base,
    records: Sequence[Sequence[int]],
    kept: npt.NDArray[np.bool_],
    recipe: Recipe,
    seen: Callable[[Step], None] | None = None,
) -> Factors:
    """Factors after training on the records that are `kept`; `seen` is called after every step with live tensors."""
    merged = Merged(network)
    factors = initial(base, network, recipe.seed)
    flat = [x.requires_grad_() for pair in factors.values() for x in pair]
    adamw = torch.optim.AdamW(
        flat,
        lr=1.0,
        betas=(recipe.beta1_micro / MICRO, recipe.beta2_micro / MICRO),
        eps=2.0**recipe.eps_exponent,
        weight_decay=recipe.weight_decay_micro / MICRO,
        fused=True,
    )
    steps = schedule(recipe, kept)
    for number, chosen in enumerate(steps):
        batch = pack([records[i] for i in chosen])
        rate = learning_rate(recipe, number, len(steps))
        adamw.param_groups[0]["lr"] = rate
        with torch.enable_grad():
            loss = functional.cross_entropy(merged.logits(factors, batch), batch.targets)
            loss.backward()  # type: ignore[no-untyped-call]
        if recipe.grad_clip_micro:
            torch.nn.utils.clip_grad_norm_(flat, recipe.grad_clip_micro / MICRO)
        adamw.step()
        adamw.zero_grad()
        if seen is not None:
            seen(Step(number + 1, len(steps), rate, factors, _second_moments(adamw, factors, number + 1)))
    return {name: (a.detach(), b.detach()) for name, (a, b) in factors.items()}


def _second_moments(adamw: torch.optim.AdamW, factors: Factors, steps: int) -> Factors:
    """AdamW's running mean of squared gradients of every factor, corrected for its start at zero."""
    correction = 1.0 - adamw.param_groups[0]["betas"][1] ** steps
    return {
        name: (adamw.state[a]["exp_avg_sq"] / correction, adamw.state[b]["exp_avg_sq"] / correction)
        for name, (a, b) in factors.items()
    }


@torch.no_grad()
def losses(network: Network, factors: State, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Summed loss in nats of each sequence and its EOS."""
    merged, out = Merged(network), list[float]()
    for part in _parts(sequences):
        batch = pack(part)
        found = functional.cross_entropy(merged.logits(factors, batch), batch.targets, reduction="none")
        rows = torch.zeros(batch.rows, dtype=torch.float64)
        rows.index_add_(0, batch.places // batch.longest, found.double())
        out += rows.tolist()
    return np.array(out)


def _parts(sequences: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    for at in range(0, len(sequences), ATTENTION_ROWS_MAX):
        yield sequences[at : at + ATTENTION_ROWS_MAX]
