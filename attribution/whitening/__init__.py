"""Reproducible whitening of LoRA gradients: bases and weights as a pure function of base, adapter and records.

This is eigenvalue-corrected Kronecker factoring (EK-FAC: George et al. 2018, arXiv 1806.03884; for influence: Grosse
et al. 2023, arXiv 2308.03296) on LoRA's own factors (`gradients`), in exact arithmetic. Both sides of a factor are turned (`bases`):
the narrow one by eigenvectors of its second moment over the records, found by Jacobi sweeps (`narrow`), the wide one nearly so, by two steps
of a Cholesky iteration (`wide`); then every coordinate is divided by the root of its own mean square over the records (`weights`).

Nothing depends on order, shards or devices: sums over tokens, coordinates and records are integer sums, the rest is
elementwise arithmetic rounded once (docs/attribution.md, "Whitening", states every grid and bound).
"""

from attribution.whitening.bases import (
    MOMENT_EXAMPLES_MAX,
    Bases,
    Turning,
    bases_count,
    bases_of,
    flat_bases,
    moments,
    split_bases,
)
from attribution.whitening.gradients import (
    RANK_MAX,
    RECORDS_MAX,
    WIDE_MAX,
    FactorShape,
    example_gradients,
    factor_gradients,
    factor_shapes,
    normalised,
)
from attribution.whitening.weights import squares, weights

__all__ = [
    "MOMENT_EXAMPLES_MAX",
    "RANK_MAX",
    "RECORDS_MAX",
    "WIDE_MAX",
    "Bases",
    "FactorShape",
    "Turning",
    "bases_count",
    "bases_of",
    "example_gradients",
    "factor_gradients",
    "factor_shapes",
    "flat_bases",
    "moments",
    "normalised",
    "split_bases",
    "squares",
    "weights",
]
