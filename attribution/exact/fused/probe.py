"""The fused kernels held against the torch paths on small operands: at every start, as part of `attribution.exact.selfcheck`.

The torch paths themselves are held against plain integers in the same check. What is compared: a group of layers forward and backward with an adapter
on part of it, parameter gradients, attention forward, backward and cached, normalisation, rotation, SwiGLU, the loss, examples' gradients and their turning, an optimiser step,
the scan of an index.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attribution.exact.random import uniform_floats, uniform_integers

Parts = list[Tensor]


def drawn(label: str, *shape: int) -> Tensor:
    """Floats in (-1, 1), each row (the first axis) scaled by a power of two of its own, from 2^-11 to 2^11."""
    size = 1
    for n in shape:
        size *= n
    x = torch.from_numpy(uniform_floats(0, f"fused {label}", size)).view(shape)
    e = uniform_integers(0, f"fused {label} exponent", shape[0], 23) - 11
    return x * torch.from_numpy(2.0**e).float().view(-1, *[1] * (len(shape) - 1))


def layers(bits: int) -> Parts:
    """A group of three modules, two of them adapted: 11 rows and the first alone, an odd width."""
    from attribution.exact.quantisation import Block
    from attribution.linear import Frozen, Lora, NarrowBlock, contract, group_backward, group_forward

    width, spans, top = 37, [(0, 20), (27, 40)], 1 << (bits - 1)
    q = torch.from_numpy(uniform_integers(0, f"fused weights {bits}", 40 * width, 2 * top + 1) - top)
    e = torch.from_numpy(uniform_integers(0, "fused exponents", 40, 7) - 6).to(torch.int32)
    kept = q.view(40, width).to(torch.int8 if bits == 7 else torch.int16)
    frozen = Frozen(kept, e, drawn("bias", 40))
    lora = Lora(drawn("a", 6, width), drawn("b", 3, 33), spans, 2.0, frozen)
    x = Block.of(drawn("x", 11, width))
    y, u, h = group_forward(frozen, lora, x)
    g = group_backward(frozen, lora, drawn("dy", 11, 40))
    first, *_ = group_forward(frozen, lora, Block(x.q[:1], x.scale[:1]))
    parts = [frozen.forward(x), frozen.backward(Block.of(drawn("dz", 11, 40))), y, g.dx, first]
    if u is not None and h is not None and g.dh is not None and g.dh_scaled is not None:
        parts += [u, h, g.dh, g.dh_scaled, *contract(lora, NarrowBlock(x.q64, x.scale), h, g.dy, g.dh_scaled)]
    return parts


def between() -> Parts:
    """Normalisation both ways, SwiGLU both ways, the loss and its gradient."""
    from attribution.decoder import cross_entropy, rms_norm, rms_norm_backward, swiglu, swiglu_backward

    x, weight, wide = drawn("norm", 7, 45), drawn("weight", 45), drawn("wide", 7, 26)
    y, saved = rms_norm(x, weight, 1e-5)
    mixed, s = swiglu(wide)
    loss = cross_entropy(drawn("logits", 7, 45), torch.arange(7) * 6, None)
    back = [rms_norm_backward(y * 3.0, weight, saved), swiglu_backward(mixed, wide, s)]
    return [y, *saved, mixed, s, *back, loss.tokens, loss.gradient]


def attention() -> Parts:
    """Two sequences of 19 and 2 positions, four heads over two, six numbers each: outputs, gradients, and the first one cached."""
    from attribution.attention import attention as attend_all
    from attribution.attention import attention_backward
    from attribution.generation import cache_of

    spans, x = [(0, 19), (19, 21)], drawn("heads", 21, 8, 6)
    o, kept = attend_all(x, 4, spans, True)
    cache = cache_of(2, 6, 19, x.device)
    cached = [cache.attend(x[i:j].contiguous(), 4, i) for i, j in ((0, 5), (5, 6), (6, 19))]
    return [o, *cached, attention_backward(drawn("do", 21, 4, 6), kept)]


def gradients() -> Parts:
    """Gradients of two examples of 33 and 6 tokens, their second moments, and turned by bases of a rank of seven on one side, and on both."""
    from attribution.gradients import FactorBatch, ModuleFactors
    from attribution.whitening.bases import Bases, Turning, moments
    from attribution.whitening.gradients import FactorShape, factor_gradients

    sides = [drawn(label, 39, width) for label, width in (("in", 21), ("u", 7), ("dz", 18), ("dh", 7))]
    batch = FactorBatch((ModuleFactors("module", *sides),), ((0, 33), (33, 39)), (0, 0), 1.0)
    found = factor_gradients(batch)
    shapes = [FactorShape("module.B", 18, 7), FactorShape("module.A", 21, 7)]
    bases = [Bases(drawn("narrow", 7, 7), None), Bases(drawn("narrow", 7, 7), drawn("wide side", 21, 21))]
    return [*found, *(moments(g) for g in found), *Turning(bases, shapes).turned(found)]


def optimiser() -> Parts:
    """Two steps of AdamW with weight decay, and clipping."""
    from attribution.recipe import Recipe
    from attribution.training import AdamW, clip

    p, g = drawn("parameters", 50, 1).view(-1), drawn("gradient", 50, 1).view(-1)
    adamw = AdamW(Recipe(weight_decay_micro=10_000), p)
    for _ in range(2):
        clip(g, 1_000_000)
        adamw.step(p, g, 1e-3)
    return [p, g, adamw.m, adamw.v]


def rows() -> Parts:
    """Scores of 67 rows, in three factors of 300, 13 and 91 bytes, by queries whose high digits do and do not fit together, and by the largest; of chosen rows; first looks."""
    from attribution.first_look import likeliest, short_rows
    from attribution.signs import integer_scores, scan
    from attribution.whitening import FactorShape

    shapes = [FactorShape(f"f{k}", wide, 1) for k, wide in enumerate((2400, 101, 727))]
    counts, width = [2400, 104, 728], 404
    signs = uniform_integers(0, "fused signs", 67 * width, 256).astype(np.uint8).reshape(67, width)
    scales = uniform_integers(0, "fused scales", 67 * 3, 1 << 25).astype(np.uint32).reshape(67, 3)
    queries = []
    for label, top in (("small", 900), ("large", 8191), ("largest", 8192)):
        q = uniform_integers(0, f"fused query {label}", sum(counts), 2 * top + 1) - top
        queries.append(np.where(np.abs(q) > 8000, np.sign(q) * top, q).astype(np.int32))
    short, everyone = short_rows(signs, scales), np.ones(67, np.bool_)
    found = [scan(q, signs, scales, shapes) for q in queries]
    found += [likeliest(q, short, everyone, 20).tolist() for q in queries]
    chosen = np.array([66, 3, 3, 40, 0, 65, 64, 9, 33])
    found += [integer_scores(q, signs, scales[chosen], shapes, chosen).tolist() for q in queries]
    return [torch.tensor(part) for part in found]


CASES: tuple[tuple[str, Callable[[], Parts]], ...] = (
    ("layers of 7 bits", lambda: layers(7)),
    ("layers of 14 bits", lambda: layers(14)),
    ("between products", between),
    ("attention", attention),
    ("gradients of examples", gradients),
    ("optimiser", optimiser),
    ("rows", rows),
)


def first_difference(choose: Callable[[str], None], beside: str) -> str | None:
    """The first case in which the fused kernels differ from backend `beside`; None if none does. `choose` sets the backend."""
    for case, compute in CASES:
        choose(beside)
        expected = compute()
        choose("fused")
        found = compute()
        if not all(same(a, b) for a, b in zip(found, expected, strict=True)):
            return case
    return None


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits; the sign of a zero does not count."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    return (x + 0.0).contiguous().view(torch.int32) if x.dtype == torch.float32 else x
