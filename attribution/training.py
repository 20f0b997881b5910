"""Training an adapter as a function: the same base, records and recipe give the same bytes everywhere.

AdamW (Loshchilov and Hutter 2019) on the mean next-token loss of a batch's tokens; all arithmetic is that of
docs/exact-arithmetic.md, section "Training".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from attribution.adapter import Adapter, LoraModule, group_spans
from attribution.decoder import Visited, backward, check_ids, cross_entropy, forward, head
from attribution.errors import BadTokens, ContextTooLong
from attribution.exact.backends import fused_serves
from attribution.exact.bits import row_power
from attribution.exact.elementary import divide_, sqrt
from attribution.exact.random import permutation, uniform_floats
from attribution.exact.reductions import SQUARE_BITS, round_to
from attribution.heap import keep_heap
from attribution.linear import Bound, Lora, contract, pack
from attribution.model import GROUPS, Base, module_name
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


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """Where one adapted group's factors lie in the flat vector: a (modules * r, in), then b (r, outs side by side)."""

    layer: int
    group: int
    names: tuple[str, ...]
    spans: list[tuple[int, int]]
    at: int
    width: int


class Parameters:
    """All factors of an adapter in one flat float32 vector, group after group in model order (see GroupPlace)."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.base, self.recipe, self.places = base, recipe, list[GroupPlace]()
        at = 0
        for layer in range(base.config.num_hidden_layers):
            for index, group in enumerate(GROUPS):
                names = tuple(module_name(layer, p) for p in group if p in recipe.target_modules)
                if names:
                    spans = group_spans(base, layer, group, set(names))
                    width = base.layers[layer].groups[index].q.shape[1]
                    self.places.append(GroupPlace(layer, index, names, spans, at, width))
                    at += recipe.rank * (width * len(names) + sum(j - i for i, j in spans))
        self.flat = torch.zeros(at, device=base.device)

    def views(self, flat: Tensor) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """(a, b) of each (layer, group) as views of a vector laid out like `flat`."""
        r, out = self.recipe.rank, {}
        for p in self.places:
            rows, columns = r * len(p.names), sum(j - i for i, j in p.spans)
            middle = p.at + rows * p.width
            a = flat[p.at : middle].view(rows, p.width)
            out[p.layer, p.group] = (a, flat[middle : middle + r * columns].view(r, columns))
        return out

    def bind(self) -> Bound:
        """The parameters quantised for use."""
        rows: list[list[Lora | None]] = [[None] * len(GROUPS) for _ in self.base.layers]
        views = self.views(self.flat)
        scale = self.recipe.alpha / self.recipe.rank
        for p in self.places:
            a, b = views[p.layer, p.group]
            rows[p.layer][p.group] = Lora(a, b, p.spans, scale, self.base.layers[p.layer].groups[p.group])
        return [tuple(row) for row in rows]

    def modules(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, a (r, in), b transposed (r, out)) of each module, in model order, as views."""
        views = self.views(self.flat)
        for p in self.places:
            a, b = views[p.layer, p.group]
            for j, (name, (start, stop)) in enumerate(zip(p.names, pack(p.spans), strict=True)):
                yield name, a[j * self.recipe.rank : (j + 1) * self.recipe.rank], b[:, start:stop]

    def adapter(self) -> Adapter:
        """A copy of the parameters as an adapter."""
        modules = tuple(LoraModule(name, a + 0.0, b.t().contiguous() + 0.0) for name, a, b in self.modules())
        return Adapter(self.recipe.rank, self.recipe.alpha, modules)

    def initialise(self) -> None:
        """A uniform in (-1, 1) / sqrt(in) from the seed's stream named after the module; B zero."""
        for name, a, _ in self.modules():
            bound = 1.0 / math.sqrt(a.shape[1])
            draws = uniform_floats(self.recipe.seed, f"adapter init {name}", a.numel())
            a.copy_(torch.from_numpy(draws).view(a.shape).to(a.device) * bound)


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
        if fused_serves(parameters):
            from attribution.exact.fused import steps

            kept = (self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2)
            scalars = (1.0 - self.power1, 1.0 - self.power2, self.eps, 1.0 - rate * self.decay, rate)
            steps.adamw(parameters, gradient, self.m, self.v, (*kept, *scalars))
            return
        self.m.mul_(self.beta1).add_(gradient * (1.0 - self.beta1))
        self.v.mul_(self.beta2).add_((gradient * gradient).mul_(1.0 - self.beta2))
        root = sqrt(divide_(self.v.clone(), 1.0 - self.power2)).add_(self.eps)
        if self.decay:
            parameters.mul_(1.0 - rate * self.decay)
        parameters.sub_(divide_(self.m.clone(), 1.0 - self.power1).div_(root).mul_(rate))


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
    unit, total = _squares(gradient)
    norm = Fraction(math.isqrt(total << 128), 1 << 64) * Fraction(unit)
    limit = Fraction(limit_micro, MICRO)
    if norm > limit:
        factor = limit / norm
        gradient.mul_(factor.numerator / factor.denominator)


def _squares(gradient: Tensor) -> tuple[float, int]:
    """(2^(E-20), sum of squares of the integers of 20 bits) of a flat gradient."""
    if fused_serves(gradient):
        from attribution.exact.fused import steps

        return steps.norm_squares(gradient)
    grid = row_power(gradient).mul_(2.0 ** (1 - SQUARE_BITS))
    q = round_to(gradient, grid)
    starts = range(0, q.numel(), _SQUARES_PER_ROW)
    return float(grid), sum(_integer_squares(q[i : i + _SQUARES_PER_ROW]) for i in starts)


def _integer_squares(q: Tensor) -> int:
    return int((q * q).sum())


def batches(recipe: Recipe, records: int) -> list[list[int]]:
    """Record indices of every step: each epoch a permutation from (seed, epoch), cut in order; the last may be short."""
    out: list[list[int]] = []
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
    keep_heap()
    parameters = Parameters(base, recipe)
    parameters.initialise()
    optimiser = AdamW(recipe, parameters.flat)
    schedule = batches(recipe, len(examples))
    for step, batch in enumerate(schedule):
        chosen = [examples[i] for i in batch]
        gradient, loss = batch_gradient(base, parameters, chosen)
        clip(gradient, recipe.grad_clip_micro)
        optimiser.step(parameters.flat, gradient, learning_rate(recipe, step, len(schedule)))
        if progress is not None:
            progress(Progress(step + 1, len(schedule), loss, sum(len(tokens) - 1 for tokens in chosen)))
    return parameters.adapter()


def batch_gradient(
    base: Base, parameters: Parameters, examples: Sequence[Sequence[int]]
) -> tuple[Tensor, int]:
    """(gradient of the mean token loss, like parameters.flat; summed loss on the grid 2^-30).

    `examples` hold BOS and EOS. The whole batch is one forward and backward pass: its order changes no bit.
    """
    targets = torch.tensor([t for e in examples for t in e[1:]], dtype=torch.int64, device=base.device)
    bound = parameters.bind()
    gradient = torch.zeros_like(parameters.flat)
    views = parameters.views(gradient)
    hidden, tape = forward(base, bound, [e[:-1] for e in examples], save=True)
    loss = cross_entropy(head(base, hidden), targets, None)

    def visit(v: Visited) -> None:
        a, b = views[v.layer, v.group]
        da, db = contract(v.lora, v.x_block, v.h, v.dy_block, v.dh_scaled)
        a.copy_(da)
        b.copy_(db)

    backward(base, bound, tape, loss.gradient, visit)
    return divide_(gradient, float(targets.shape[0])), int(loss.tokens.sum())
