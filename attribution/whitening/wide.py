"""The wide side's basis: two steps of Rutishauser's LR iteration, which is Cholesky's, in elementwise binary64.

With C = L1 L1^T and L1^T L1 = L2 L2^T the rows of ``L2^T L1^-1`` are orthonormal, and turn C into L2^T L2: large and small eigenvalues
are apart already, largest first. That is what whitening needs; eigenvectors themselves would cost a hundred times as much.
(Rutishauser 1958, *Solution of eigenvalue problems with the LR-transformation*; Golub and Van Loan, 8.2.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attribution import exact

WIDE_TURNED_MAX = 512
"""Above this width the wide side is not turned, only whitened coordinate by coordinate."""
JITTER_EXPONENT = -10
"""Of the mean of the diagonal that is added to it, as a power of two."""
PIVOT_MIN = 2.0**-20
_ENTRIES_AT_ONCE = 1 << 18
"""Of one call's matrices together: about 16 MiB for the work on them."""


def wide_bases(moments: Tensor) -> Tensor:
    """Nearly the eigenvectors, as rows, of symmetric matrices of integers in float64: float32 (..., wide, wide).

    Coordinates in descending order of the diagonal (ties by place), scaled by the power of two that brings the largest
    entry into [1/2, 1), plus 2^-10 of the mean of the diagonal (summed in order) on the diagonal; then as above, columns back in
    their places. Only elementwise operations, each rounded once, in a written order: no library's factorisation or product of floats.
    """
    width = moments.shape[-1]
    flat = moments.reshape(-1, width, width)
    at_once = max(1, _ENTRIES_AT_ONCE // (width * width))
    return torch.cat([_turn(part) for part in torch.split(flat, at_once)]).view(moments.shape)


def _turn(moments: Tensor) -> Tensor:
    diagonal = torch.diagonal(moments, dim1=-2, dim2=-1)
    # Places are found on the CPU: no device promises how it sorts.
    order = torch.argsort(diagonal.cpu(), dim=-1, descending=True, stable=True)
    back = torch.argsort(order, dim=-1, stable=True).to(moments.device)
    order = order.to(moments.device)
    c = torch.gather(moments, -2, order[..., :, None].expand_as(moments))
    c = torch.gather(c, -1, order[..., None, :].expand_as(moments))
    c = _scaled(c)
    first = cholesky(c)
    second = cholesky(_transposed_product(first, first))
    turned = _transposed_product(second, _inverse(first))
    # Columns back in place: gather, no arithmetic.
    return torch.gather(turned, -1, back[..., None, :].expand_as(turned)).float() + 0.0


def _scaled(c: Tensor) -> Tensor:
    """Matrices whose largest entry, c[0, 0], is brought into [1/2, 1), with something on the diagonal."""
    width, largest = c.shape[-1], c[..., 0, 0]
    exponent = np.frexp(torch.where(largest > 0, largest, 1.0).cpu().numpy())[1]
    c = c * torch.from_numpy(np.ldexp(1.0, -exponent)).to(c.device)[..., None, None]
    total = torch.zeros_like(largest)
    for j in range(width):
        total = total + c[..., j, j]
    # A tensor divides; a number might be multiplied by as its reciprocal.
    jitter = total * 2.0**JITTER_EXPONENT / torch.full_like(total, width)
    return c + torch.eye(width, dtype=torch.float64, device=c.device) * jitter[..., None, None]


def cholesky(a: Tensor) -> Tensor:
    """Lower factors, float64 (..., n, n), of positive matrices: right-looking.

    Column j is divided by s = sqrt32(fl32(a_jj)); then a_ik <- a_ik - l_ij l_kj, product and difference rounded once each. A
    pivot below `PIVOT_MIN` is taken as that.
    """
    a = a.clone()
    lower = torch.zeros_like(a)
    for j in range(a.shape[-1]):
        root = exact.sqrt(a[..., j, j].clamp_min(PIVOT_MIN).float()).double()
        column = a[..., j:, j] / root[..., None]
        column[..., 0] = root
        lower[..., j:, j] = column
        a[..., j:, j:] -= column[..., :, None] * column[..., None, :]
    return lower


def _inverse(lower: Tensor) -> Tensor:
    """Inverses of lower triangular matrices by forward substitution."""
    n = lower.shape[-1]
    out = torch.eye(n, dtype=torch.float64, device=lower.device).expand_as(lower).clone()
    for j in range(n):
        out[..., j, : j + 1] = out[..., j, : j + 1] / lower[..., j, j, None]
        out[..., j + 1 :, : j + 1] -= lower[..., j + 1 :, j, None] * out[..., j, None, : j + 1]
    return out


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b of lower triangular matrices: outer products of their rows, added in order."""
    total = torch.zeros_like(a)
    for j in range(a.shape[-1]):
        total[..., : j + 1, : j + 1] += a[..., j, : j + 1, None] * b[..., j, None, : j + 1]
    return total
