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

from attribution.adapter import Adapter, LoraModule, bind_factors
from attribution.decoder import Bound, Visited, backward, check_ids, cross_entropy, forward, head
from attribution.errors import BadTokens, ContextTooLong
from attribution.exact.bits import exponent_of, row_power
from attribution.exact.elementary import sqrt
from attribution.exact.random import permutation, uniform_floats
from attribution.exact.reductions import SQUARE_BITS, round_to
from attribution.linear import Contraction
from attribution.model import GROUPS, PROJECTIONS, Base, module_name, projection_shape
from attribution.recipe import MICRO, Recipe

# 2^12 squares of 20-bit integers stay below 2^53.
_SQUARES_PER_ROW = 4096
_EXAMPLE_LIMIT = 2.0**40
# Rows run together: enough to hide the cost of calls, few enough for activations to stay in the cache. No bit changes.
ROWS_MAX = 192


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimiser step: counted from 1; `loss` is the batch's summed loss on the grid 2^-30 over `tokens`."""

    step: int
    steps: int
    loss: int
    tokens: int


class Parameters:
    """All factors of an adapter in one flat float32 vector, in model order: a (r, in), then b transposed (r, out)."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.shapes: dict[str, tuple[int, int]] = {}
        for i in range(base.config.num_hidden_layers):
            for p in PROJECTIONS:
                if p in recipe.target_modules:
                    self.shapes[module_name(i, p)] = projection_shape(base.config, p)
        self.recipe = recipe
        self.flat = torch.zeros(recipe.rank * sum(map(sum, self.shapes.values())), device=base.device)

    def views(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(a, b transposed) of each module as views of a vector laid out like `flat`."""
        r, at = self.recipe.rank, 0
        out = {}
        for name, (rows, columns) in self.shapes.items():
            middle, end = at + r * columns, at + r * (columns + rows)
            out[name] = (flat[at:middle].view(r, columns), flat[middle:end].view(r, rows))
            at = end
        return out

    def adapter(self) -> Adapter:
        """A copy of the parameters as an adapter."""
        pairs = self.views(self.flat).items()
        modules = tuple(LoraModule(name, a + 0.0, b.t().contiguous() + 0.0) for name, (a, b) in pairs)
        return Adapter(self.recipe.rank, self.recipe.alpha, modules)

    def initialise(self) -> None:
        """A uniform in (-1, 1) / sqrt(in) from the seed's stream named after the module; B zero."""
        for name, (a, _) in self.views(self.flat).items():
            bound = 1.0 / math.sqrt(a.shape[1])
            draws = uniform_floats(self.recipe.seed, f"adapter init {name}", a.numel())
            a.copy_(torch.from_numpy(draws).view(a.shape).to(a.device) * bound)


class Accumulator:
    """A sum of per-example gradients as integers on the recipe's grid 2^-bits: any order, any split, one result.

    The integers are kept in binary64, exactly: one example's are clamped to +-2^40, and a batch has at most 2^12.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.bits = parameters.recipe.gradient_bits
        self.total = torch.zeros(parameters.flat.shape, dtype=torch.float64, device=parameters.flat.device)
        self.places = parameters.views(self.total)

    def add(self, v: Visited, names: list[str], rows: slice) -> None:
        """Add one example's gradient of one group, whose adapted modules are `names`."""
        c = Contraction(v.lora, v.x_block, v.h, v.dy_block, v.dh_scaled, rows, self.bits)
        da = c.a().round_().clamp_(-_EXAMPLE_LIMIT, _EXAMPLE_LIMIT)
        for j, name in enumerate(names):
            a, b = self.places[name]
            a.add_(da[j * v.lora.rank : (j + 1) * v.lora.rank])
            b.add_(c.b(j).round_().clamp_(-_EXAMPLE_LIMIT, _EXAMPLE_LIMIT))

    def mean(self, tokens: int) -> Tensor:
        """The gradient of the mean token loss, float32: fl32(total * 2^-bits) / tokens."""
        return (self.total * 2.0**-self.bits).float().div_(float(tokens))


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
    grid = row_power(gradient).mul_(2.0 ** (1 - SQUARE_BITS))
    q = round_to(gradient, grid)
    total = sum(int(row.mul(row).sum()) for row in q.split(_SQUARES_PER_ROW))
    unit = int(exponent_of(grid))
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
    schedule = batches(recipe, len(examples))
    for step, batch in enumerate(schedule):
        chosen = [examples[i] for i in batch]
        gradient, loss = batch_gradient(base, parameters, chosen)
        clip(gradient, recipe.grad_clip_micro)
        optimiser.step(parameters.flat, gradient, learning_rate(recipe, step, len(schedule)))
        if progress is not None:
            progress(Progress(step + 1, len(schedule), loss, sum(len(tokens) - 1 for tokens in chosen)))
    return parameters.adapter()


def batch_gradient(base: Base, parameters: Parameters, examples: Sequence[Sequence[int]]) -> tuple[Tensor, int]:
    """(gradient of the mean token loss, like parameters.flat; summed loss on the grid 2^-30)."""
    recipe = parameters.recipe
    bound = bind_factors(parameters.views(parameters.flat), recipe.alpha / recipe.rank, base)
    total = Accumulator(parameters)
    loss = tokens = 0
    for part in _parts(examples):
        loss += _accumulate(base, bound, total, recipe, part)
        tokens += sum(len(e) - 1 for e in part)
    return total.mean(tokens), loss


def _parts(examples: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    part: list[Sequence[int]] = []
    for e in examples:
        if part and sum(map(len, part)) + len(e) > ROWS_MAX:
            yield part
            part = []
        part.append(e)
    if part:
        yield part


def _accumulate(
    base: Base, bound: Bound, total: Accumulator, recipe: Recipe, examples: Sequence[Sequence[int]]
) -> int:
    targets = torch.tensor([t for e in examples for t in e[1:]], dtype=torch.int64, device=base.device)
    hidden, tape = forward(base, bound, [e[:-1] for e in examples], save=True)
    loss = cross_entropy(head(base, hidden), targets, None)

    def visit(v: Visited) -> None:
        names = [module_name(v.layer, p) for p in GROUPS[v.group] if p in recipe.target_modules]
        for start, stop in tape.spans:
            total.add(v, names, slice(start, stop))

    backward(base, bound, tape, loss.gradient, visit)
    return int(loss.tokens.sum())
