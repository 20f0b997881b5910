"""Training an adapter as a function: the same base, records and recipe give the same bytes everywhere.

AdamW (Loshchilov and Hutter 2019) on the mean next-token loss of a batch's tokens; all arithmetic is that of
docs/exact-arithmetic.md, section "Training".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from attribution.adapter import Adapter, LoraModule, bind
from attribution.decoder import Visited, backward, check_ids, cross_entropy, forward, head
from attribution.errors import BadTokens, ContextTooLong
from attribution.exact.bits import magnitude_exponent, pow2, row_magnitude
from attribution.exact.elementary import sqrt
from attribution.exact.random import permutation, uniform_floats
from attribution.exact.reductions import SQUARE_BITS
from attribution.model import GROUPS, PROJECTIONS, Base, module_name, projection_shape
from attribution.recipe import MICRO, Recipe

# 2^12 squares of 20-bit integers stay below 2^53.
_SQUARES_PER_ROW = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimiser step: counted from 1; `loss` is the batch's summed loss on the grid 2^-30 over `tokens`."""

    step: int
    steps: int
    loss: int
    tokens: int


class Parameters:
    """All factors of an adapter in one flat float32 vector, in model order: a then b, module by module."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.shapes: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
        for i in range(base.config.num_hidden_layers):
            for p in PROJECTIONS:
                if p in recipe.target_modules:
                    out, width = projection_shape(base.config, p)
                    self.shapes.append((module_name(i, p), (recipe.rank, width), (out, recipe.rank)))
        size = sum(a[0] * a[1] + b[0] * b[1] for _, a, b in self.shapes)
        self.flat = torch.zeros(size, device=base.device)
        self.recipe = recipe

    def views(self, flat: Tensor) -> list[LoraModule]:
        """The modules as views of a vector laid out like `flat`."""
        out, at = [], 0
        for name, a, b in self.shapes:
            na, nb = a[0] * a[1], b[0] * b[1]
            out.append(LoraModule(name, flat[at : at + na].view(a), flat[at + na : at + na + nb].view(b)))
            at += na + nb
        return out

    def adapter(self) -> Adapter:
        """The parameters as an adapter sharing their memory."""
        return Adapter(self.recipe.rank, self.recipe.alpha, tuple(self.views(self.flat)))

    def initialise(self) -> None:
        """A uniform in (-1, 1) / sqrt(in) from the seed's stream named after the module; B zero."""
        for m in self.views(self.flat):
            bound = 1.0 / math.sqrt(m.a.shape[1])
            draws = uniform_floats(self.recipe.seed, f"adapter init {m.name}", m.a.numel())
            m.a.copy_(torch.from_numpy(draws).view(m.a.shape).to(m.a.device) * bound)


class AdamW:
    """Decoupled weight decay Adam, elementwise in binary32; scalars in binary64; beta^t carried, never `pow`."""

    def __init__(self, recipe: Recipe, parameters: Tensor) -> None:
        self.beta1 = recipe.beta1_micro / MICRO
        self.beta2 = recipe.beta2_micro / MICRO
        self.eps = 2.0**recipe.eps_exponent
        self.decay = recipe.weight_decay_micro / MICRO
        self.power1 = 1.0
        self.power2 = 1.0
        self.m = torch.zeros_like(parameters)
        self.v = torch.zeros_like(parameters)

    def step(self, parameters: Tensor, gradient: Tensor, rate: float) -> None:
        """Update parameters in place: p <- p (1 - rate decay) - (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)) rate."""
        self.power1 *= self.beta1
        self.power2 *= self.beta2
        self.m.mul_(self.beta1).add_(gradient * (1.0 - self.beta1))
        self.v.mul_(self.beta2).add_((gradient * gradient).mul_(1.0 - self.beta2))
        root = sqrt(self.v / (1.0 - self.power2)).add_(self.eps)
        if self.decay:
            parameters.mul_(1.0 - rate * self.decay)
        parameters.sub_((self.m / (1.0 - self.power1)).div_(root).mul_(rate))


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Rate of step 0 <= step < steps: a rational number, rounded once to binary64."""
    rate = Fraction(recipe.learning_rate_micro, MICRO)
    if recipe.warmup_steps:
        rate *= min(Fraction(1), Fraction(step + 1, recipe.warmup_steps))
    if recipe.schedule == "linear":
        rate *= max(Fraction(recipe.decay_floor_micro, MICRO), 1 - Fraction(step, steps))
    return rate.numerator / rate.denominator


def clip(gradient: Tensor, limit_micro: int) -> None:
    """Scale the gradient in place so that its norm is at most limit_micro * 10^-6 (0: leave it).

    The norm is exact for the gradient rounded to 20 bits below its largest entry: integer squares, an integer
    root with 64 fractional bits, one binary64 quotient.
    """
    if not limit_micro:
        return
    e = magnitude_exponent(row_magnitude(gradient.abs()))
    q = torch.mul(gradient, pow2(SQUARE_BITS - e)).round_().double()
    total = sum(int(row.mul(row).sum()) for row in q.split(_SQUARES_PER_ROW))
    unit = int(e) - SQUARE_BITS
    norm = Fraction(math.isqrt(total << 128), 1 << 64) * Fraction(2) ** unit
    limit = Fraction(limit_micro, MICRO)
    if norm > limit:
        factor = limit / norm
        gradient.mul_(factor.numerator / factor.denominator)


def batches(recipe: Recipe, records: int) -> list[list[int]]:
    """Record indices of every step: each epoch a permutation from (seed, epoch), cut in order; the last may be short."""
    out = []
    for epoch in range(recipe.epochs):
        order = permutation(recipe.seed, f"batch order {epoch}", records)
        out.extend(order[i : i + recipe.batch_size] for i in range(0, records, recipe.batch_size))
    return out


def train(
    base: Base,
    records: Sequence[Sequence[int]],
    recipe: Recipe,
    progress: Callable[[Progress], None] | None = None,
) -> Adapter:
    """Train an adapter on token-id records (without BOS and EOS), on the base's device.

    Each example is BOS + ids + EOS. Raises BadTokens, ContextTooLong (recipe's or model's limit),
    NotRepresentable if training diverges.
    """
    c = base.config
    examples = [[c.bos_token_id, *ids, c.eos_token_id] for ids in records]
    if not examples:
        raise BadTokens("no records")
    for tokens in examples:
        if len(tokens) > recipe.context_tokens_max:
            raise ContextTooLong(len(tokens), recipe.context_tokens_max)
        check_ids(base, [tokens])
    parameters = Parameters(base, recipe)
    parameters.initialise()
    optimiser = AdamW(recipe, parameters.flat)
    gradient = torch.zeros_like(parameters.flat)
    schedule = batches(recipe, len(examples))
    for step, batch in enumerate(schedule):
        # Sorting by length saves padding; the order of examples changes no bit of the gradient's sums.
        chosen = sorted((examples[i] for i in batch), key=len)
        loss, tokens_count = batch_gradient(base, parameters, chosen, gradient)
        clip(gradient, recipe.grad_clip_micro)
        optimiser.step(parameters.flat, gradient, learning_rate(recipe, step, len(schedule)))
        if progress is not None:
            progress(Progress(step + 1, len(schedule), loss, tokens_count))
    trained = tuple(LoraModule(m.name, m.a + 0.0, m.b + 0.0) for m in parameters.views(parameters.flat))
    return Adapter(recipe.rank, recipe.alpha, trained)


def batch_gradient(
    base: Base, parameters: Parameters, examples: Sequence[Sequence[int]], gradient: Tensor
) -> tuple[int, int]:
    """Write the gradient of the mean token loss into `gradient`; returns (summed loss on 2^-30, tokens)."""
    adapter = parameters.adapter()
    bound = bind(adapter, base)
    inputs = [tokens[:-1] for tokens in examples]
    targets = torch.tensor([t for tokens in examples for t in tokens[1:]], dtype=torch.int64, device=base.device)
    hidden, tape = forward(base, bound, inputs, save=True)
    loss = cross_entropy(head(base, hidden), targets, None)
    places = {m.name: m for m in parameters.views(gradient)}
    target = parameters.recipe.target_modules

    def visit(v: Visited) -> None:
        names = [module_name(v.layer, p) for p in GROUPS[v.group] if p in target]
        grads = v.lora.gradients(v.x_block, v.h, v.dy_block, v.dh_scaled, v.frozen)
        for name, grad in zip(names, grads, strict=True):
            places[name].a.copy_(grad.a)
            places[name].b.copy_(grad.b)

    backward(base, bound, tape, loss.gradient, visit)
    gradient.div_(float(targets.shape[0]))
    return int(loss.tokens.sum()), targets.shape[0]
