"""What a row of the index holds of a whitened gradient, and what is asked of it: a bit a coordinate, or a bit a sum of a sketch.

Which of the two is a pure function of the factors: rows of more than `COORDINATES_SIGNED_MAX` coordinates are sketched to `SUMS` sums, so no row has
more than 17 kB of signs, whatever the model. Both are scanned alike: signs, a scale for each of `row_shapes`, and a query of 14 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attribution.signs import Bytes, integer_query, integer_scales, mean_magnitudes, pack_signs
from attribution.sketch import WIDTH_WIDE, sketch_query, sketch_rows, sketch_scales, sketched
from attribution.whitening import FactorShape

COORDINATES_SIGNED_MAX = 1 << 17
"""Coordinates of all factors together, of which every one has a bit; more are sketched."""
SUMS = WIDTH_WIDE


def is_sketched(shapes: Sequence[FactorShape]) -> bool:
    """Whether rows of these factors are sketched."""
    return sum(s.coordinates for s in shapes) > COORDINATES_SIGNED_MAX


def row_shapes(shapes: Sequence[FactorShape]) -> tuple[FactorShape, ...]:
    """What a row has a scale and bits of: every factor; or the sums of the sketch, as one."""
    return (FactorShape("sketch", SUMS, 1),) if is_sketched(shapes) else tuple(shapes)


def row_parts(
    whitened: Sequence[Tensor], shapes: Sequence[FactorShape]
) -> tuple[npt.NDArray[np.uint32], Bytes]:
    """Scales (examples, row shapes) and sign bytes (examples, bytes) of whitened gradients, float32 (examples, wide, rank)."""
    if is_sketched(shapes):
        sums = sketched(whitened, SUMS)
        return sketch_scales(sums), sketch_rows(sums)
    scales = integer_scales(mean_magnitudes(whitened), shapes)
    return scales, np.concatenate([pack_signs(x) for x in whitened], axis=1)


def row_query(whitened: Sequence[Tensor], shapes: Sequence[FactorShape]) -> tuple[npt.NDArray[np.int32], int]:
    """One example's query, int32 (8 * sign bytes of a row), and its squared norm."""
    return sketch_query(sketched(whitened, SUMS)[0]) if is_sketched(shapes) else integer_query(whitened)
