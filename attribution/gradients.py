"""Per-example gradients of the adapter, in factored form: what attribution is made of.

For y = W x + B (s (A x)), s = alpha / rank, and loss L summed over an example's counted tokens:
    G_B = dL/dB = s * dz^T u,   G_A = dL/dA = s * dh^T x,   u = A x,   dz = dL/dy,   dh = B^T dz.
THE SCALE s IS NOT INSIDE any of x, u, dz, dh: multiply once by `FactorBatch.scale` where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.decoder import Visited, backward, check_ids, cross_entropy, forward, head, no_adapter
from attribution.errors import BadTokens
from attribution.heap import keep_heap
from attribution.linear import Bound
from attribution.model import GROUPS, PROJECTIONS, Base, module_name, projection_shape

# Rows run together; bounds memory, changes no bit.
ROWS_MAX = 768


@dataclass(frozen=True, slots=True)
class Example:
    """Loss of `completion_ids` (and EOS after them if `ends`) given BOS and `prompt_ids`.

    A whole record is Example((), record): prompt empty. Token ids hold no BOS and no EOS.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    ends: bool = True


@dataclass(frozen=True, slots=True)
class ModuleFactors:
    """One module's factors over all rows: x (rows, in), u (rows, r), dz (rows, out), dh (rows, r), float32.

    No negative zeros. `rows` counts the positions of all examples, prompt positions too: attention carries
    gradient to them.
    """

    name: str
    x: Tensor
    u: Tensor
    dz: Tensor
    dh: Tensor


@dataclass(frozen=True, slots=True)
class FactorBatch:
    """Factors of several examples: modules in model order; example i owns rows spans[i] = (start, stop).

    `losses[i]` is the example's summed loss in nats as an integer on the grid 2^-30. `scale` = alpha / rank.
    """

    modules: tuple[ModuleFactors, ...]
    spans: tuple[tuple[int, int], ...]
    losses: tuple[int, ...]
    scale: float


def factors(base: Base, adapter: Adapter, examples: Sequence[Example]) -> FactorBatch:
    """Factors of each example, bit for bit the same whatever it is batched with. Runs on the base's device.

    Raises BadTokens (ids outside the vocabulary, an example without a counted token, no examples),
    ContextTooLong, BadAdapter, NotRepresentable.
    """
    keep_heap()
    bound = adapter.bound_to(base)
    pieces = []
    start = 0
    inputs = [_tokens(base, e)[:-1] for e in examples]
    check_ids(base, inputs)
    while start < len(examples):
        stop, rows = start + 1, len(inputs[start])
        while stop < len(examples) and rows + len(inputs[stop]) <= ROWS_MAX:
            rows += len(inputs[stop])
            stop += 1
        pieces.append(_run(base, bound, examples[start:stop]))
        start = stop
    names = [m.name for m in pieces[0][0]]
    modules = tuple(
        ModuleFactors(
            name, *(_join([getattr(p[0][i], part) for p in pieces]) for part in ("x", "u", "dz", "dh"))
        )
        for i, name in enumerate(names)
    )
    spans, row = [], 0
    for ids in inputs:
        spans.append((row, row + len(ids)))
        row += len(ids)
    return FactorBatch(modules, tuple(spans), tuple(n for p in pieces for n in p[1]), adapter.scale)


def losses(base: Base, adapter: Adapter | None, examples: Sequence[Example]) -> tuple[int, ...]:
    """Only the summed losses of `factors`, on the grid 2^-30, without a backward pass."""
    bound = adapter.bound_to(base) if adapter is not None else no_adapter(base)
    out: list[int] = []
    for e in examples:
        inputs, targets, weights = _prepare(base, [e])
        hidden, _ = forward(base, bound, inputs, save=False)
        loss = cross_entropy(head(base, hidden), targets, weights)
        out.append(int(loss.tokens.sum()))
    return tuple(out)


def _tokens(base: Base, e: Example) -> list[int]:
    end = [base.config.eos_token_id] if e.ends else []
    if not e.completion_ids and not e.ends:
        raise BadTokens("an example without a counted token")
    return [base.config.bos_token_id, *e.prompt_ids, *e.completion_ids, *end]


def _prepare(base: Base, examples: Sequence[Example]) -> tuple[list[list[int]], Tensor, Tensor]:
    inputs, targets, weights = [], [], []
    for e in examples:
        tokens = _tokens(base, e)
        check_ids(base, [tokens[:-1]])
        check_ids(base, [tokens[1:]])
        inputs.append(tokens[:-1])
        targets.extend(tokens[1:])
        weights.extend([0.0] * len(e.prompt_ids) + [1.0] * (len(tokens) - 1 - len(e.prompt_ids)))
    return (
        inputs,
        torch.tensor(targets, dtype=torch.int64, device=base.device),
        torch.tensor(weights, dtype=torch.float32, device=base.device),
    )


def _run(base: Base, bound: Bound, examples: Sequence[Example]) -> tuple[list[ModuleFactors], list[int]]:
    inputs, targets, weights = _prepare(base, examples)
    hidden, tape = forward(base, bound, inputs, save=True)
    loss = cross_entropy(head(base, hidden), targets, weights)
    found: dict[str, ModuleFactors] = {}

    def visit(v: Visited) -> None:
        x, u, dh = v.x + 0.0, _rows(v.u), _rows(v.dh)
        outs = {span: j for j, span in enumerate(v.lora.spans)}
        start = 0
        for p in GROUPS[v.group]:
            name = module_name(v.layer, p)
            stop = start + projection_shape(base.config, p)[0]
            if (start, stop) in outs:
                c = slice(outs[start, stop] * v.lora.rank, (outs[start, stop] + 1) * v.lora.rank)
                dz = v.dy[:, start:stop] + 0.0
                found[name] = ModuleFactors(name, x, u[:, c].contiguous(), dz, dh[:, c].contiguous())
            start = stop

    backward(base, bound, tape, loss.gradient, visit)
    order = [module_name(i, p) for i in range(base.config.num_hidden_layers) for p in PROJECTIONS]
    per_example, row = [], 0
    for ids in inputs:
        per_example.append(int(loss.tokens[row : row + len(ids)].sum()))
        row += len(ids)
    return [found[n] for n in order if n in found], per_example


def _rows(x: Tensor) -> Tensor:
    """(r, rows) to contiguous (rows, r) without negative zeros."""
    return x.t().contiguous().add_(0.0)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
