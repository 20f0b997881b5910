"""An accelerator that does not exist: real numbers on a device of their own, under CUDA's documented rules.

Tensors on the device `DEVICE` hold their numbers on the CPU, but an operation that meets a CPU tensor among them is
refused, as CUDA refuses it (a CPU tensor without dimensions is a number and is taken). What CUDA does differently from a
CPU is done differently here, on purpose:

* division by a number, or by a CPU tensor without dimensions, multiplies by its reciprocal;
* `_int_mm` wants more than 16 rows, and inner and outer widths that are multiples of 8;
* binary32 products read 10 bits of each mantissa, as with TF32;
* floating sums run in another order.

So code that gives the golden hashes here needs neither the CPU's place nor its habits. It cannot show that a GPU's kernels
are right: `python -m tests.machines --device cuda` does that where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
"""A device that every build of torch knows and whose tensors hold nothing: whatever leaks out of the mode has no numbers."""

# Moving numbers is what these are for.
_COPIES = ("_to_copy", "copy_")
# Library functions that differ between devices, ties and orders that no device promises.
_REFUSED = frozenset(
    [
        "exp",
        "exp_",
        "exp2",
        "log",
        "log2",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "silu",
        "softmax",
        "_softmax",
        "rsqrt",
        "rsqrt_",
        "pow",
        "mean",
        "cumsum",
        "argmax",
        "topk",
        "sort",
        "addcmul",
        "addcdiv",
        "lerp",
        "addmm",
        "baddbmm",
        "matmul",
        "randn",
        "rand",
    ]
)


class WrongPlace(Exception):
    """An operation that CUDA would refuse, or that no exact computation may use on it."""


class Held(Tensor):
    """A tensor on the device; `numbers` is the CPU tensor that stands for its memory."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Held:
        made: Held = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(DEVICE),
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise WrongPlace(f"{func} on a tensor of the accelerator, outside its mode")


class Accelerator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, `DEVICE` computes; `operations` counts what ran there, `reciprocals` divisions by a number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.reciprocals = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        held = [x for x in tensors if isinstance(x, Held)]
        wanted = kwargs.get("device")
        there = wanted is not None and torch.device(wanted).type == DEVICE
        if not held and not there:
            return func(*args, **kwargs)
        self.operations += 1
        if name not in _COPIES:
            _require_one_place(name, tensors)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        by_memory = {id(x.numbers): x for x in held}
        plain_args, plain_kwargs = tree_map(_numbers, args), tree_map(_numbers, kwargs)
        if name in ("div", "div_") and _is_number(args[1]):
            self.reciprocals += 1
            out = _times_reciprocal(name, *plain_args)
        else:
            out = _as_cuda(name, func, plain_args, plain_kwargs)
        if name in _COPIES and (there is False and wanted is not None):
            return out

        def held_again(x: Any) -> Any:
            # In place and with `out=`, an operation returns the very tensor that it was given.
            return (by_memory[id(x)] if id(x) in by_memory else Held(x)) if isinstance(x, Tensor) else x

        return tree_map(held_again, out)


class Uploads(TorchFunctionMode):
    """`torch.tensor(values, device=DEVICE)` makes its tensor before any operation is dispatched; here it is moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and "device" in kwargs:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """The mode, without gradients, which the engine has no use for."""
    with torch.no_grad(), Uploads(), Accelerator() as mode:
        yield mode


def _numbers(x: Any) -> Any:
    return x.numbers if isinstance(x, Held) else x


def _require_one_place(name: str, tensors: list[Tensor]) -> None:
    if name in _REFUSED:
        raise WrongPlace(f"{name} on the accelerator")
    strays = [x for x in tensors if not isinstance(x, Held) and x.dim() > 0]
    # Indices may come from the CPU, as on CUDA; they are copied over.
    if strays and name not in ("index", "index_put_"):
        raise WrongPlace(
            f"{name} of tensors on the accelerator and on the CPU {[tuple(x.shape) for x in strays]}"
        )


def _as_cuda(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation as CUDA's documentation has it, on the CPU's numbers."""
    if name == "_int_mm":
        (rows, inner), columns = args[0].shape, args[1].shape[1]
        if rows <= 16 or inner % 8 or columns % 8:
            raise RuntimeError(f"_int_mm of ({rows}, {inner}) by ({inner}, {columns}) on CUDA")
    if name in ("mm", "bmm") and args[0].dtype == torch.float32:
        return func(*(_tf32(x) for x in args), **kwargs)
    if name == "sum" and args[0].dtype.is_floating_point and len(args) > 1:
        return func(args[0].flip(args[1]), *args[1:], **kwargs)
    return func(*args, **kwargs)


def _times_reciprocal(name: str, x: Tensor, divisor: Any) -> Tensor:
    inverse = torch.tensor(1.0, dtype=x.dtype) / divisor
    multiply = torch.ops.aten.mul_.Tensor if name == "div_" else torch.ops.aten.mul.Tensor
    out: Tensor = multiply(x, inverse)
    return out


def _is_number(x: Any) -> bool:
    return not isinstance(x, Tensor) or (x.dim() == 0 and not isinstance(x, Held))


def _tf32(x: Tensor) -> Tensor:
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
