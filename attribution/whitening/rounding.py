"""Integers to binary64."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(integers: Tensor) -> Tensor:
    """Int64 to binary64, rounded once: numpy's conversion is C's; a tensor's cast need not be that."""
    return torch.from_numpy(integers.cpu().numpy().astype("float64")).to(integers.device)
