"""Nothing but operations that are exact, or rounded once, runs between the weights and the hashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attribution import exact
from attribution.adapter import adapter_to_bytes
from attribution.generation import generate
from attribution.gradients import Example, factors
from attribution.recipe import Recipe
from attribution.training import train
from tests.unit.attribution.model_cases import records, tiny_base

# Moves, shapes and makes memory; no arithmetic.
MOVES = set(
    [
        "_to_copy",
        "_unsafe_view",
        "alias",
        "arange",
        "as_strided",
        "cat",
        "clone",
        "constant_pad_nd",
        "copy_",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "eye",
        "expand",
        "fill",
        "fill_",
        "full",
        "full_like",
        "index",
        "index_put",
        "index_put_",
        "lift_fresh",
        "masked_fill_",
        "new_empty",
        "ones",
        "ones_like",
        "permute",
        "reshape",
        "select",
        "slice",
        "slice_scatter",
        "split",
        "squeeze",
        "stack",
        "t",
        "transpose",
        "unsqueeze",
        "view",
        "view_copy",
        "zero_",
        "zeros",
        "zeros_like",
        "tril_",
        "nonzero",
        "_local_scalar_dense",
        "item",
        "to",
        "repeat",
        "flip",
        "unbind",
    ]
)
# IEEE operations rounded once, comparisons and bits.
ELEMENTWISE = set(
    [
        "abs",
        "add",
        "add_",
        "sub",
        "sub_",
        "rsub",
        "mul",
        "mul_",
        "div",
        "div_",
        "neg",
        "neg_",
        "reciprocal",
        "reciprocal_",
        "round",
        "round_",
        "clamp",
        "clamp_",
        "maximum",
        "where",
        "eq",
        "gt",
        "le",
        "lt",
        "ge",
        "ne",
        "bitwise_and",
        "bitwise_and_",
        "bitwise_not",
        "bitwise_left_shift",
        "bitwise_left_shift_",
        "bitwise_right_shift",
        "__and__",
        "__rshift__",
        "__lshift__",
        "__or__",
        "bitwise_or",
        "sqrt",
        "isnan",
        "logical_not",
    ]
)
# Over integers whose sums fit, or order-free.
REDUCTIONS = {"amax", "amin", "max", "min", "sum", "any", "all", "mm", "bmm", "_int_mm"}


class Recorder(TorchDispatchMode):
    """Collects the names of the operations that run, and the dtypes square roots ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.roots: set[torch.dtype] = set()
        self.float32_sums = 0
        self.scaled_additions = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        self.names.add(name)
        if name == "sqrt":
            self.roots.add(args[0].dtype)
        if name == "sum" and args[0].dtype == torch.float32:
            self.float32_sums += 1
        if (kwargs or {}).get("alpha", 1) != 1:
            self.scaled_additions += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def backend(name: str) -> Iterator[None]:
    exact.set_backend(name)
    try:
        yield
    finally:
        exact.set_backend(None)


def test_only_permitted_operations_run() -> None:
    for name in exact.BACKENDS:
        base = tiny_base()
        with backend(name), Recorder() as seen:
            adapter = train(base, records()[:3], Recipe(rank=4, epochs=1, weight_decay_micro=1000))
            adapter_to_bytes(adapter)
            generate(base, adapter, records()[0], 3)
            factors(base, adapter, [Example((2, 3), (4, 5))])
        assert seen.names - MOVES - ELEMENTWISE - REDUCTIONS == set()
        assert {"mm", "bmm", "round_", "sqrt"} <= seen.names
        assert seen.roots == {torch.float64}
        assert seen.float32_sums == 0
        assert seen.scaled_additions == 0
