"""Per-example gradients of the adapter, in factored form: what attribution is made of.

For y = W x + B (s (A x)), s = alpha / rank, and loss L summed over an example's counted tokens:
    G_B = dL/dB = s * dz^T u,   G_A = dL/dA = s * dh^T x,   u = A x,   dz = dL/dy,   dh = B^T dz.
THE SCALE s IS NOT INSIDE any of x, u, dz, dh: multiply once by `FactorBatch.scale` where it matters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def factors(
    base: Base, adapter: Adapter, examples: Sequence[Example], left_out: Collection[str] = ()
) -> FactorBatch:
    """Factors of each example, bit for bit the same whatever it is batched with. Runs on the base's device.

    Those of the projections in ``left_out`` are not kept.
    Raises BadTokens (ids outside the vocabulary, an example without a counted token, no examples),
    ContextTooLong, BadAdapter, NotRepresentable.
    """
    keep_heap()
    bound = adapter.bound_to(base)
    inputs = [_tokens(base, e)[:-1] for e in examples]
    check_ids(base, inputs)
    spans, row = [], 0
    for ids in inputs:
        spans.append((row, row + len(ids)))
        row += len(ids)
    gathered, found = _Gathered(base, row, left_out), list[int]()
    start = 0
    while start < len(examples):
        stop, rows = start + 1, len(inputs[start])
        while stop < len(examples) and rows + len(inputs[stop]) <= ROWS_MAX:
            rows += len(inputs[stop])
            stop += 1
        gathered.begin(spans[start][0], spans[stop - 1][1])
        found += _run(base, bound, examples[start:stop], gathered)
        start = stop
    return FactorBatch(gathered.modules(), tuple(spans), tuple(found), adapter.scale)


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


def _run(base: Base, bound: Bound, examples: Sequence[Example], gathered: _Gathered) -> list[int]:
    """The examples' losses; their factors go to `gathered`."""
    inputs, targets, weights = _prepare(base, examples)
    hidden, tape = forward(base, bound, inputs, save=True)
    loss = cross_entropy(head(base, hidden), targets, weights)
    backward(base, bound, tape, loss.gradient, gathered.take)
    per_example, row = [], 0
    for ids in inputs:
        per_example.append(int(loss.tokens[row : row + len(ids)].sum()))
        row += len(ids)
    return per_example


class _Gathered:
    """The factors of all modules over all rows, written piece by piece where they stay; modules that read one input share it."""

    def __init__(self, base: Base, rows: int, left_out: Collection[str]) -> None:
        self._base, self._rows, self._left_out = base, rows, left_out
        self._first, self._last = 0, 0
        self._inputs: dict[tuple[int, int], Tensor] = {}
        self._modules: dict[str, ModuleFactors] = {}

    def begin(self, first: int, last: int) -> None:
        """What is taken next belongs to these rows."""
        self._first, self._last = first, last

    def take(self, v: Visited) -> None:
        """Keep one group's factors of the current rows."""
        outs = {span: j for j, span in enumerate(v.lora.spans)}
        start, rank, x = 0, v.lora.rank, None
        for p in GROUPS[v.group]:
            stop = start + projection_shape(self._base.config, p)[0]
            if (start, stop) in outs and p not in self._left_out:
                x = self._input(v) if x is None else x
                name, c = (
                    module_name(v.layer, p),
                    slice(outs[start, stop] * rank, (outs[start, stop] + 1) * rank),
                )
                module = self._modules.get(name)
                if module is None:
                    u, dz, dh = (self._room(width) for width in (rank, stop - start, rank))
                    module = self._modules[name] = ModuleFactors(name, x, u, dz, dh)
                self._write(module.u, v.u[c].t())
                self._write(module.dz, v.dy[:, start:stop])
                self._write(module.dh, v.dh[c].t())
            start = stop

    def _input(self, v: Visited) -> Tensor:
        """What the group reads, with the current rows."""
        x = self._inputs.get((v.layer, v.group))
        if x is None:
            x = self._inputs[v.layer, v.group] = self._room(v.x.shape[1])
        self._write(x, v.x)
        return x

    def modules(self) -> tuple[ModuleFactors, ...]:
        """In the model's order."""
        order = [module_name(i, p) for i in range(self._base.config.num_hidden_layers) for p in PROJECTIONS]
        return tuple(self._modules[name] for name in order if name in self._modules)

    def _room(self, width: int) -> Tensor:
        return torch.empty(self._rows, width, device=self._base.device)

    def _write(self, kept: Tensor, piece: Tensor) -> None:
        """Without negative zeros."""
        torch.add(piece, 0.0, out=kept[self._first : self._last])
