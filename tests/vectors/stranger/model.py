"""One text through the model and back (docs/exact-arithmetic.md, sections 6 and 7): its loss and its modules' factors.

Rows are token positions; all numbers are binary32 unless a line says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.vectors.stranger.arithmetic import Matrix, Vector, fl32, fsum, sqrt32
from tests.vectors.stranger.arrays import nested
from tests.vectors.stranger.attention import Attended, Heads, attended, attended_back, rotated, rotations
from tests.vectors.stranger.functions import exp, log, sigmoid, squares, unit_sum
from tests.vectors.stranger.linear import Grid, Group, grids, group, plus, times

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LOSS_BITS = 30

Factors = dict[str, dict[str, Matrix]]
"""x, u, dz and dh (positions, width) by module."""
Turn = tuple[Vector, Vector]
Norm = tuple[Vector, float]
"""x_hat and inv of one row."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Four groups, two norms."""

    groups: list[Group]
    norms: list[Vector]


@dataclass(frozen=True, slots=True)
class Model:
    """A base with an adapter beside it."""

    config: Mapping[str, Any]
    embedding: list[Grid]
    layers: list[Layer]
    norm: Vector
    head: Group

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Model:
        """From the inputs of ``attribution.json``, with every B at three quarters."""
        config, base = inputs["config"], {name: nested(x) for name, x in inputs["base"].items()}
        adapter = {name: nested(x) for name, x in inputs["adapter"].items()}
        scale = fl32(inputs["alpha"] / inputs["rank"])
        layers = []
        for number in range(config["num_hidden_layers"]):
            at = f"model.layers.{number}."
            groups = [group(base, adapter, [at + name for name in names], scale) for names in GROUPS]
            norms = [base[f"{at}{name}_layernorm.weight"] for name in ("input", "post_attention")]
            layers.append(Layer(groups, norms))
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        embedding = grids(base, "model.embed_tokens")
        return cls(config, embedding, layers, base["model.norm.weight"], group(base, adapter, [head], scale))


@dataclass(frozen=True, slots=True)
class Tape:
    """One layer's activations: inputs and u of its groups, norms, attention, gates and what they gate, sigmoids; by position."""

    inputs: list[Matrix]
    us: list[list[list[Vector]]]
    norms: list[list[Norm]]
    attention: Attended
    wide: Matrix
    sigmoids: Matrix


def loss_and_factors(
    model: Model, prompt: Sequence[int], text: Sequence[int], *, ends: bool
) -> tuple[int, Factors]:
    """Summed loss of ``text``, and of the end token, given ``prompt``, in 2^-30 nats; and what the way back finds."""
    config = model.config
    tokens = [config["bos_token_id"], *prompt, *text, *([config["eos_token_id"]] if ends else [])]
    turns, eps = rotations(config, len(tokens) - 1), float(config["rms_norm_eps"])
    x = [[math.ldexp(q, e) for q in integers] for integers, e in (model.embedding[t] for t in tokens[:-1])]
    tapes = []
    for layer in model.layers:
        x, tape = _layer(config, layer, x, turns, eps)
        tapes.append(tape)
    loss, dx = 0, Matrix()
    for place, row in enumerate(x):
        y, x_hat, inv = normed(row, model.norm, eps)
        own, slope = token_loss(model.head.forward(y)[0], tokens[place + 1])
        if place < len(prompt):
            own, slope = 0, times(slope, 0.0)
        loss += own
        dx.append(normed_back(model.head.backward(slope)[0], model.norm, x_hat, inv))
    factors: Factors = {}
    for layer, tape in zip(reversed(model.layers), reversed(tapes), strict=True):
        dx = _layer_back(layer, tape, dx, turns, factors)
    return loss, factors


def token_loss(logits: Vector, target: int) -> tuple[int, Vector]:
    """One token's loss and its gradient by the logits."""
    top = max(logits)
    p = [exp(fl32(x - top)) for x in logits]
    den = unit_sum(p)
    loss = round(math.ldexp((log(den) + top) - logits[target], LOSS_BITS))
    slope = [fl32(x / fl32(den)) for x in p]
    slope[target] = fl32(slope[target] - 1.0)
    return loss, slope


def normed(x: Vector, weight: Vector, eps: float) -> tuple[Vector, Vector, float]:
    """(y, x_hat, inv)"""
    inv = fl32(1.0 / sqrt32(fl32(squares(x) / len(x) + eps)))
    x_hat = times(x, inv)
    return [fl32(x * w) for x, w in zip(x_hat, weight, strict=True)], x_hat, inv


def normed_back(dy: Vector, weight: Vector, x_hat: Vector, inv: float) -> Vector:
    """Gradient by the norm's input."""
    u = [fl32(d * w) for d, w in zip(dy, weight, strict=True)]
    a = fl32(fsum([fl32(x * y) for x, y in zip(u, x_hat, strict=True)]) / len(u))
    return [fl32(fl32(x - fl32(y * a)) * inv) for x, y in zip(u, x_hat, strict=True)]


def _layer(
    config: Mapping[str, Any], layer: Layer, x: Matrix, turns: Sequence[Turn], eps: float
) -> tuple[Matrix, Tape]:
    """Attention, then feed-forward, each added to what it read."""
    queries, keys, width = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    first = [normed(row, layer.norms[0], eps) for row in x]
    qkv, us_qkv = _forward(layer.groups[0], [y for y, _, _ in first])
    heads = _heads(qkv, width)
    turned = [
        [rotated(row, *turn) for row, turn in zip(rows, turns, strict=True)]
        for rows in heads[: queries + keys]
    ]
    scaled = [[times(row, fl32(1.0 / math.sqrt(width))) for row in rows] for rows in turned[:queries]]
    attention = attended(scaled, turned[queries:], heads[queries + keys :])
    joined = [[a for head in attention.o for a in head[t]] for t in range(len(x))]
    added, us_o = _forward(layer.groups[1], joined)
    x = [plus(*rows) for rows in zip(x, added, strict=True)]

    second = [normed(row, layer.norms[1], eps) for row in x]
    wide, us_wide = _forward(layer.groups[2], [y for y, _, _ in second])
    mixed, sigmoids = map(list, zip(*map(swiglu, wide), strict=True))
    added, us_down = _forward(layer.groups[3], mixed)
    x = [plus(*rows) for rows in zip(x, added, strict=True)]
    norms = [[(x_hat, inv) for _, x_hat, inv in rows] for rows in (first, second)]
    inputs = [[y for y, _, _ in first], joined, [y for y, _, _ in second], mixed]
    return x, Tape(inputs, [us_qkv, us_o, us_wide, us_down], norms, attention, wide, sigmoids)


def _layer_back(layer: Layer, tape: Tape, dx: Matrix, turns: Sequence[Turn], factors: Factors) -> Matrix:
    """Gradient by the layer's input from that by its output; factors of its modules are noted."""
    dm = _backward(layer, tape, 3, dx, factors)
    d_wide = [swiglu_back(*rows) for rows in zip(dm, tape.wide, tape.sigmoids, strict=True)]
    dy = _backward(layer, tape, 2, d_wide, factors)
    dx = _added_back(dx, dy, layer.norms[1], tape.norms[1])

    do = _backward(layer, tape, 1, dx, factors)
    width = len(tape.attention.o[0][0])
    dq, dk, dv = attended_back(_heads(do, width), tape.attention)
    dq = [[times(row, fl32(1.0 / math.sqrt(width))) for row in rows] for rows in dq]
    back = [(cos, [-s for s in sin]) for cos, sin in turns]
    turned = [[rotated(row, *turn) for row, turn in zip(rows, back, strict=True)] for rows in dq + dk]
    d_qkv = [[a for head in turned + dv for a in head[t]] for t in range(len(dx))]
    dy = _backward(layer, tape, 0, d_qkv, factors)
    return _added_back(dx, dy, layer.norms[0], tape.norms[0])


def _forward(layers: Group, x: Matrix) -> tuple[Matrix, list[list[Vector]]]:
    found = [layers.forward(row) for row in x]
    return [y for y, _ in found], [us for _, us in found]


def _backward(layer: Layer, tape: Tape, number: int, dy: Matrix, factors: Factors) -> Matrix:
    """Gradient by a group's input, and the factors of its adapted modules."""
    layers = layer.groups[number]
    found = [layers.backward(row) for row in dy]
    for at, lora in enumerate(layers.loras):
        factors[lora.name] = {
            "x": _plain(tape.inputs[number]),
            "u": _plain([us[at] for us in tape.us[number]]),
            "dz": _plain([row[lora.start : lora.stop] for row in dy]),
            "dh": _plain([gs[at] for _, gs in found]),
        }
    return [dx for dx, _ in found]


def _plain(matrix: Matrix) -> Matrix:
    """Without negative zeros."""
    return [[x + 0.0 for x in row] for row in matrix]


def _heads(rows: Matrix, width: int) -> Heads:
    return [[row[at : at + width] for row in rows] for at in range(0, len(rows[0]), width)]


def _added_back(dx: Matrix, dy: Matrix, weight: Vector, norms: Sequence[Norm]) -> Matrix:
    """What goes past a norm, plus what comes back through it."""
    return [plus(row, normed_back(own, weight, *norm)) for row, own, norm in zip(dx, dy, norms, strict=True)]


def swiglu(wide: Vector) -> tuple[Vector, Vector]:
    """silu(gate) times what it gates, of one row, gates first; and the gates' sigmoids."""
    half = len(wide) // 2
    sigmoids = [sigmoid(gate) for gate in wide[:half]]
    rows = zip(wide[:half], sigmoids, wide[half:], strict=True)
    return [fl32(fl32(gate * s) * up) for gate, s, up in rows], sigmoids


def swiglu_back(dm: Vector, wide: Vector, sigmoids: Vector) -> Vector:
    """Gradients of gates, then of what they gate, of one row."""
    half = len(dm)
    rows = list(zip(dm, wide[:half], wide[half:], sigmoids, strict=True))
    slopes = [fl32(fl32(fl32(fl32(1.0 - s) * gate) + 1.0) * s) for _, gate, _, s in rows]
    d_gate = [fl32(fl32(d * up) * slope) for (d, _, up, _), slope in zip(rows, slopes, strict=True)]
    return d_gate + [fl32(d * fl32(gate * s)) for d, gate, _, s in rows]
