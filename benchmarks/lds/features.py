"""Per-example gradients of the adapter in binary32, and the second moments that float methods whiten with.

A factor is what docs/attribution.md calls one: per module "B" (outputs x rank), then "A" (inputs x rank), in model order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.lds.network import Network, State, padded, token_losses
from benchmarks.lds.work import Work

EXAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class Sides:
    """Token second moments of a factor's sides over the records' counted tokens: wide (w, w), narrow (r, r), means."""

    wide: Tensor
    narrow: Tensor


@dataclass(frozen=True)
class Features:
    """Gradients of all records and everything asked, at one state of the adapter.

    `gradients[f]` is float32 (records + asked, wide, rank), summed over the example's tokens; `sides[f]` the token moments.
    `layers[f]` is the layer of factor f. `seconds` is the CPU time of all of it, `examples` how many that were.
    """

    records: int
    names: tuple[str, ...]
    layers: tuple[int, ...]
    gradients: tuple[Tensor, ...]
    sides: tuple[Sides, ...]
    seconds: float

    @property
    def examples(self) -> int:
        """Records and asked together."""
        return len(self.gradients[0])

    def of_records(self) -> list[Tensor]:
        """Gradients of the records alone, as views."""
        return [g[: self.records] for g in self.gradients]


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass
class _Seen:
    """What a module's hooks kept of one batch."""

    x: Tensor
    u: Tensor
    out: Tensor


class _Tape:
    """Hooks on every adapted module for as long as it is entered."""

    def __init__(self, network: Network) -> None:
        self.network, self.seen = network, dict[str, _Seen]()
        self.handles = list[torch.utils.hooks.RemovableHandle]()

    def __enter__(self) -> _Tape:
        for name, module in self.network.adapted():
            self.handles.append(module.lora_A.register_forward_hook(self._first(name)))
            self.handles.append(module.lora_B.register_forward_hook(self._second(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _first(self, name: str) -> Hook:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name] = _Seen(inputs[0].detach(), output.detach(), output)

        return hook

    def _second(self, name: str) -> Hook:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name].out = output

        return hook


def captured(
    network: Network, sequences: Sequence[Sequence[int]]
) -> Iterator[tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]]]:
    """Per batch: mask (batch, length) of counted tokens, and per module x, u, dz, dh (batch, length, width).

    The loss is the summed one of every sequence and its EOS. Padded positions have dz = dh = 0.
    """
    for at in range(0, len(sequences), EXAMPLES_AT_ONCE):
        inputs, targets = padded(sequences[at : at + EXAMPLES_AT_ONCE])
        with _Tape(network) as tape, torch.enable_grad():
            loss = token_losses(network(inputs), targets).sum()
            gradients = torch.autograd.grad(loss, [seen.out for seen in tape.seen.values()])
        found = {}
        for (name, module), (key, seen), scaled in zip(
            network.adapted(), tape.seen.items(), gradients, strict=True
        ):
            if key != name:
                raise RuntimeError("modules ran in another order than the model's")
            dz = scaled / module.scale
            found[name] = (seen.x, seen.u, dz, dz @ module.lora_B.weight.detach())
        yield targets >= 0, found


def extract(work: Work, state: State, sides: bool = False) -> Features:
    """Features of the work's records and of all that is asked, at the adapter `state`; the network gets its own back.

    Token moments of the sides are made only if `sides`; otherwise `Features.sides` is empty.
    """
    started = time.process_time()
    network = work.network.load(state)
    sequences = (*work.records, *work.asked)
    # Neighbours of like length, so that little is padded; records and the rest apart.
    order = sorted(range(len(sequences)), key=lambda i: (i >= len(work.records), len(sequences[i])))
    names, layers = list[str](), list[int]()
    for name, _ in network.adapted():
        names += [f"{name}.B", f"{name}.A"]
        layers += [int(name.split(".")[2])] * 2
    parts: list[list[Tensor]] = [[] for _ in names]
    wide = [torch.zeros(0) for _ in names]
    narrow = [torch.zeros(0) for _ in names]
    at = 0
    for mask, modules in captured(network, [sequences[i] for i in order]):
        own = min(max(len(work.records) - at, 0), len(mask)) if sides else 0
        for k, (x, u, dz, dh) in enumerate(modules.values()):
            for f, a, b in ((2 * k, dz, u), (2 * k + 1, x, dh)):
                parts[f].append(torch.bmm(a.transpose(1, 2), b))
                if own:
                    rows = mask[:own].flatten()
                    for sums, side in ((wide, a), (narrow, b)):
                        tokens = side[:own].flatten(0, 1)[rows]
                        product = tokens.T @ tokens
                        sums[f] = sums[f] + product if sums[f].numel() else product
        at += len(mask)
    network.load(work.checkpoints[-1].state)
    back = torch.tensor(order).argsort()
    return Features(
        len(work.records),
        tuple(names),
        tuple(layers),
        tuple(torch.cat(p)[back] for p in parts),
        tuple(Sides(a, b) for a, b in zip(wide, narrow, strict=True)) if sides else (),
        time.process_time() - started,
    )
