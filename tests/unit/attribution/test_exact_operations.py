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


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Moves, shapes and makes memory; no arithmetic.
MOVES = words(
    """_to_copy _unsafe_view alias arange as_strided cat clone constant_pad_nd copy_ detach empty empty_like
    empty_strided expand full full_like index index_put_ lift_fresh masked_fill_ ones permute scalar_tensor select
    slice t transpose tril_ unsqueeze view zeros zeros_like _local_scalar_dense"""
)
# IEEE operations rounded once, comparisons and bits.
ELEMENTWISE = words(
    """abs add add_ sub sub_ rsub mul mul_ div div_ neg neg_ reciprocal reciprocal_ round round_ clamp clamp_ maximum
    where eq ge gt le lt bitwise_and bitwise_not bitwise_or bitwise_left_shift bitwise_left_shift_
    bitwise_right_shift __and__ __rshift__ __lshift__ sqrt"""
)
# Over integers whose sums fit, or order-free.
REDUCTIONS = words("amax amin max min sum mm bmm _int_mm")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run, and the dtypes square roots ran in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        if name == "fused":
            # Kernels do that part; what torch still does is elementwise, and moves.
            assert seen.names & {"mm", "bmm", "_int_mm", "exp", "sqrt"} == set()
            continue
        assert {"mm", "bmm", "round_", "sqrt"} <= seen.names
        assert seen.roots == {torch.float64}
        assert seen.float32_sums == 0
        assert seen.scaled_additions == 0
