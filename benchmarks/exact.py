"""An exact layer's time beside a floating-point product of the same shape, one thread, least of several runs in turn, each after one of its own.

python -m benchmarks.exact [--device cuda] [--quick] [--json]

The layer has 7-bit weights (width by width) and quantises its input (M rows) to 14 bits in the measured time; every backend that passed
the start-up check is measured. On a CPU it is held against binary32 torch: at most 0.6 of its time at widths 576 and 2048 and
1.0 at 128, where the processor multiplies int8 numbers in hardware; elsewhere `target_applies` is false and the figures are told all
the same. On a GPU: at most twice the time of bf16. `fused` takes part where its kernels are compiled: python -m attribution.exact.fused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from attribution import exact
from attribution.decoder import linear
from attribution.exact.backends import chosen_backend, family_for
from attribution.exact.products import PRODUCTS
from attribution.exact.quantisation import Block
from attribution.exact.random import uniform_floats
from attribution.linear import Frozen
from attribution.model import quantise_weight
from benchmarks.measuring import least, machine, no_device, set_up

ROWS = 512
TARGETS = {128: 1.0, 576: 0.6, 2048: 0.6}
"""Width -> time over that of binary32, at most, on a processor with int8 units."""
TARGET_CUDA = 2.0
"""Time over that of bf16, at most, on a GPU."""
QUICK_ROWS = 32
QUICK_WIDTHS = (128,)


def drawn(label: str, rows: int, columns: int) -> Tensor:
    """Floats in (-1, 1) from a stream of their own."""
    return torch.from_numpy(uniform_floats(0, f"benchmark {label}", rows * columns)).view(rows, columns)


def measure(device: str, quick: bool = False) -> dict[str, object]:
    """One row for each width, and whether the targets are for this machine and reached."""
    rows = QUICK_ROWS if quick else ROWS
    widths = QUICK_WIDTHS if quick else tuple(TARGETS)
    facts = machine(device)
    table = [_width(width, rows, device, 0.05 if quick else 4.0) for width in widths]
    applies = not quick and (device == "cuda" or bool(facts["int8_units"]))
    reached = all(bool(row["reached"]) for row in table)
    return {
        "machine": facts,
        "rows": rows,
        "backends": list(backends(device)),
        "target_applies": applies,
        "target_reached": reached if applies else None,
        "widths": table,
    }


def backends(device: str) -> tuple[str, ...]:
    """Backends of a device that passed the start-up check."""
    return tuple(name for name in exact.BACKENDS if PRODUCTS[name][0] == device)


def _width(width: int, rows: int, device: str, seconds: float) -> dict[str, object]:
    x, w = drawn("x", rows, width).to(device), drawn("w", width, width).to(device)
    q, e = quantise_weight(w)
    frozen = Frozen(q, e.to(torch.int32))
    runs: dict[str, Callable[[], Tensor]] = {"fp32": partial(torch.mm, x, w.t())}
    if device == "cuda":
        runs["bf16"] = partial(torch.mm, x.bfloat16(), w.bfloat16().t())
    for name in backends(device):
        runs[f"exact {name}"] = partial(_layer, name, frozen, x)
    results = [run().cpu() for name, run in runs.items() if name.startswith("exact")]
    # A GPU's bits are the CPU's.
    results.append(Frozen(q.cpu(), e.cpu().to(torch.int32)).forward(Block.of(x.cpu())))
    took = least(runs, device, seconds, warm=True)
    beside = took["bf16"] if device == "cuda" else took["fp32"]
    target = TARGET_CUDA if device == "cuda" else TARGETS[width]
    ratios = {name: round(took[f"exact {name}"] / beside, 3) for name in backends(device)}
    best = min(ratios, key=ratios.__getitem__)
    return {
        "width": width,
        "microseconds": {name: round(1e6 * s, 1) for name, s in took.items()},
        "beside": "bf16" if device == "cuda" else "fp32",
        "ratios": ratios,
        "best": best,
        "ratio": ratios[best],
        "in_force": family_for(torch.device(device)),
        "target": target,
        "reached": ratios[best] <= target,
        "same_bits": all(torch.equal(results[0], other) for other in results),
    }


def _layer(backend: str, frozen: Frozen, x: Tensor) -> Tensor:
    before = chosen_backend()
    exact.set_backend(backend)
    try:
        return linear(frozen, None, x, None)
    finally:
        exact.set_backend(before)


def show(document: dict[str, object]) -> None:
    """The same for people."""
    facts, table = document["machine"], document["widths"]
    if not isinstance(facts, dict) or not isinstance(table, list):
        raise TypeError("the document is not one that `measure` made")
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        print(f"{name:20} {shown}")
    print(f"{'rows':20} {document['rows']}\n")
    print(f"{'width':>6} {'run':18} {'us':>10} {'ratio':>7}")
    for row in table:
        for name, us in row["microseconds"].items():
            ratio = row["ratios"].get(name.removeprefix("exact "), "") if name.startswith("exact") else ""
            print(f"{row['width']:>6} {name:18} {us:>10} {ratio:>7}")
        applies = "" if document["target_applies"] else " (not for this machine: no int8 units)"
        print(
            f"{'':6} best {row['best']}: {row['ratio']} of {row['beside']}, target {row['target']}{applies}"
        )


def main(arguments: Sequence[str]) -> int:
    """Print the figures; 1 where backends differ in a bit, or a target that is for this machine is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="one narrow layer, to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if reason := no_device(options.device):
        print(json.dumps({"skipped": reason}) if options.json else reason)
        return 0
    set_up(options.device)
    document = measure(options.device, options.quick)
    print(json.dumps(document)) if options.json else show(document)
    table = document["widths"]
    same = isinstance(table, list) and all(row["same_bits"] for row in table)
    return 0 if same and document["target_reached"] is not False else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
