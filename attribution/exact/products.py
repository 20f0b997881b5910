"""The product of two quantised matrices, in several exact ways that agree to the last bit.

`matmul(A, B) = (fl32(sum_k qa qb) * 2^ea) * 2^eb`: one rounding of the exact integer sum, then two IEEE
multiplications by powers of two (docs/exact-arithmetic.md, "Matmul").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from attribution.errors import ShapeMismatch
from attribution.exact.quantisation import to_grid

# |sum of products of 14-bit integers| <= K * 2^26, exact in binary64 up to K = 2^27.
FP64_K_MAX = 1 << 26
# Limbs are in [-64, 64]: a sum of two limb products is at most 2^13 * K, below 2^31 for K < 2^18.
INT8_K_MAX = 1 << 17
# A sum of two limb products in binary32 is exact up to 2^24 = 2^13 * 2^11; one product up to K = 2^12.
FP32_K_MAX = 1 << 12

IntegerProduct = Callable[[Tensor, Tensor], Tensor]


def limbs(q: Tensor) -> tuple[Tensor, Tensor]:
    """(h, l) with q = 128 h + l, both float32 integers, |h| <= 64 and |l| <= 64, for |q| <= 8192."""
    h = torch.mul(q, 0.0078125).round_()
    return h, q - h * 128.0


def product_fp64(qa: Tensor, qb: Tensor) -> Tensor:
    """Exact sums as float64 (M, N) of float32 integers (M, K), (K, N), K <= 2^26."""
    return torch.mm(qa.double(), qb.double())


def product_fp32(qa: Tensor, qb: Tensor) -> Tensor:
    """Exact sums as float64: limbs, contracted over at most 4096 entries at a time in binary32."""
    m, n = qa.shape[0], qb.shape[1]
    out = torch.zeros(m, n, dtype=torch.float64, device=qa.device)
    for start in range(0, qa.shape[1], FP32_K_MAX):
        left = torch.cat(limbs(qa[:, start : start + FP32_K_MAX]), 0)
        right = torch.cat(limbs(qb[start : start + FP32_K_MAX]), 1)
        out += combine(torch.mm(left, right).double(), m, n)
    return out


def product_int8(qa: Tensor, qb: Tensor) -> Tensor:
    """Exact sums as float64: int8 limbs in [-64, 64] with int32 accumulation.

    The limbs never use the full int8 range: without VNNI, x86 kernels add two int8 products in 16 bits with
    saturation.
    """
    m, n = qa.shape[0], qb.shape[1]
    out = torch.zeros(m, n, dtype=torch.float64, device=qa.device)
    for start in range(0, qa.shape[1], INT8_K_MAX):
        left = torch.cat(limbs(qa[:, start : start + INT8_K_MAX]), 0).to(torch.int8)
        right = torch.cat(limbs(qb[start : start + INT8_K_MAX].t()), 0).to(torch.int8)
        out += combine(int8_mm(left, right).double(), m, n)
    return out


def int8_mm(left: Tensor, right: Tensor) -> Tensor:
    """Exact int32 (M, N) of left (M, K) times the transpose of right (N, K), both int8 limbs, K < 2^19.

    Zeros pad the shapes to what CUDA takes: torch wants M > 16 and K and N multiples of 8, cuBLAS leading dimensions that
    are multiples of 4 and better of 16; its integer kernels all know the layout where both operands run along K, which is
    the faster one on a CPU, too.
    """
    (m, k), n = left.shape, right.shape[0]
    left = functional.pad(left, (0, -k % 16, 0, max(32 - m, -m % 16)))
    right = functional.pad(right, (0, -k % 16, 0, -n % 16))
    return torch._int_mm(left, right.t())[:m, :n]


def product_fused(qa: Tensor, qb: Tensor) -> Tensor:
    """Exact sums as float64: 16-bit operands, int32 sums of at most 30 products added up in binary64 by a kernel."""
    from attribution.exact.fused.layers import integer_product

    return integer_product(qa, qb)


def combine(r: Tensor, m: int, n: int) -> Tensor:
    """16384 HH + 128 (HL + LH) + LL from the (2M, 2N) float64 products of [h; l] and [h | l]; exact."""
    mixed = r[:m, n : 2 * n] + r[m : 2 * m, :n]
    return (r[:m, :n] * 16384.0).add_(mixed.mul_(128.0)).add_(r[m : 2 * m, n : 2 * n])


PRODUCTS: dict[str, tuple[str, IntegerProduct]] = {
    "fp64": ("cpu", product_fp64),
    "fp32": ("cpu", product_fp32),
    "int8": ("cpu", product_int8),
    "fused": ("cpu", product_fused),
    "cuda-int8": ("cuda", product_int8),
    "cuda-fp64": ("cuda", product_fp64),
}


def matmul_with(name: str, a: Tensor, b: Tensor) -> Tensor:
    """`matmul` through one named way, whether or not it passed its check."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ShapeMismatch(f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        raise ShapeMismatch("matmul takes float32 tensors")
    device, product = PRODUCTS[name]
    home = a.device
    if a.device.type != device:
        a = a.to(device)
    if b.device != a.device:
        b = b.to(a.device)
    (qa, scale_a), (qb, scale_b) = to_grid(a, 1), to_grid(b, 0)
    if a.shape[1] > FP64_K_MAX:
        s = _long_sum(product, qa, qb)
    elif 0 in (*a.shape, *b.shape):
        s = torch.zeros(a.shape[0], b.shape[1], device=a.device)
    else:
        s = product(qa, qb).float()
    return s.mul_(scale_a).mul_(scale_b).add_(0.0).to(home)


def _long_sum(product: IntegerProduct, qa: Tensor, qb: Tensor) -> Tensor:
    """fl32 of the exact sum for K above 2^26: int64 over chunks, rounded once by an int64 -> float32 cast.

    The cast goes through numpy, whose C conversion is correctly rounded; a tensor cast may go through binary64.
    """
    total = torch.zeros(qa.shape[0], qb.shape[1], dtype=torch.int64, device=qa.device)
    for start in range(0, qa.shape[1], FP64_K_MAX):
        stop = start + FP64_K_MAX
        total += product(qa[:, start:stop], qb[start:stop]).to(torch.int64)
    return torch.from_numpy(total.cpu().numpy().astype("float32")).to(qa.device)
