"""Exact arithmetic: the same bits on every device, thread count, batch size and instruction set.

Reductions happen over integers only; everything else is an elementwise IEEE-754 operation rounded once.
docs/exact-arithmetic.md is the specification; this package is one way to compute it.
"""

from attribution.errors import BackendRefused, ExactError, NotRepresentable, ShapeMismatch, UnknownBackend
from attribution.exact.backends import (
    BACKENDS,
    BackendReport,
    backend_for,
    matmul,
    selfcheck,
    set_backend,
)
from attribution.exact.elementary import argmax, cos_sin, exp, log, sigmoid, sqrt
from attribution.exact.oracle import oracle_matmul
from attribution.exact.quantisation import Block, quantise
from attribution.exact.random import permutation, stream, uniform_floats, uniform_integers, uniform_words
from attribution.exact.reductions import fsum, sum_of_squares

__all__ = [
    "BACKENDS",
    "BackendRefused",
    "BackendReport",
    "Block",
    "ExactError",
    "NotRepresentable",
    "ShapeMismatch",
    "UnknownBackend",
    "argmax",
    "backend_for",
    "cos_sin",
    "exp",
    "fsum",
    "log",
    "matmul",
    "oracle_matmul",
    "permutation",
    "quantise",
    "selfcheck",
    "set_backend",
    "sigmoid",
    "sqrt",
    "stream",
    "sum_of_squares",
    "uniform_floats",
    "uniform_integers",
    "uniform_words",
]
