"""Vectors of the places where an implementation is easily wrong and a usual text does not show it: limits, ties, zeros, extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution import exact
from attribution.attention import attention, attention_backward
from attribution.decoder import cross_entropy, rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward
from attribution.duplicates import leaders
from attribution.exact.elementary import exp64
from attribution.exact.random import uniform_floats
from attribution.index import Index, IndexHeader
from attribution.shares import ScoredRows, Scores, attribute
from attribution.signs import integer_scales, pack_signs
from attribution.sketch import sketch_query, sketch_scales
from attribution.spans import SpanIndex
from attribution.whitening import FactorShape, Turning, bases_of, moments, normalised, squares, weights
from attribution.whitening.narrow import eigenvectors
from attribution.whitening.rounding import rounded
from attribution.whitening.wide import wide_bases
from tests.vectors.notation import Json, VectorMismatch

Step = tuple[str, str, Json]

TINY, HUGE = 2.0**-149, 2.0**100
ROWS = (
    (0.0, -0.0, 0.0, 0.0),
    (TINY, -TINY, 5 * TINY, 2.0**-126),
    (HUGE * 1.5, -HUGE, 1.0, TINY),
    (8191.5, 8190.5, -8189.5, 0.5),  # ties on the grid 1
    (8192.0, 8191.0, 4096.0, 1.0),  # a power of two takes the next exponent
    (1.0, 2.0**-14, 3 * 2.0**-15, 2.0**-20),
    (1 / 3, -1 / 7, 3.0e-5, 1e-9),
    (2.0**-99, 2.0**-100, 2.0**-112, 2.0**-113),
)
LEFT = ((1.5, -2.25, 3e-5, 8191.0), (0.0, 0.0, 0.0, 0.0), (2.0**-70, 2.0**-75, 3 * 2.0**-80, 2.0**-71))
RIGHT = ((0.1, 2.0**-72), (-7.0, 2.0**-73), (1e9, 2.0**-70), (33.0, -(2.0**-78)))
EXPONENTS = (0.0, 1.0, -1.0, 0.34657359, -0.34657359, 79.9, -79.9, 80.0, -80.0, 1000.0, -1000.0, 1e-9)
ROOTS = (0.0, TINY, 2.0**-126, 0.1, 2.0, 3.0, 16777215.0, 2.0**100)
LOGARITHMS = (1.0, 1.4142135623730951, 1.4142135623730954, 2.0, 0.1, 1e300, 1e-300, 10000.0)
ANGLES = (0.0, 0.7853981633974483, 1.5707963267948966, 2.5, 4.0, 5.5, -1.0, 100000.25, 1048575.0)
DRAWN = 48
"""Arguments of each function beside those above, so that every coefficient shows."""
EXPONENTS_64 = (0.0, 1.0, -9.210340371976184, 0.5, -700.0, 700.0)
MOMENTS = (
    ((0, 0), (0, 0)),
    ((7,),),
    ((3, 1, 1), (1, 3, 1), (1, 1, 3)),  # two equal eigenvalues
    ((4, 2, 0, 0), (2, 4, 0, 0), (0, 0, 9, 0), (0, 0, 0, 9)),  # ties on the diagonal
    ((2**52 + 1, 2**40, 5), (2**40, 2**30, 1), (5, 1, 2)),
    ((2**57 + 3, 0), (0, 1)),  # more than 53 bits; a pivot near the least one
    ((1, 2, 3, 4, 5), (2, 4, 6, 8, 10), (3, 6, 9, 12, 15), (4, 8, 12, 16, 20), (5, 10, 15, 20, 25)),
)
PART_ROWS, PART_WIDTH = 10, 10
HEADS, KEY_HEADS, POSITIONS, HEAD_WIDTH = 4, 2, 14, 6
EPS, THETA = 1e-5, 10000.0
NARROW_UNTURNED, WIDE_UNTURNED = 65, 513
TURNED = (
    ((32.0, -32.0), (31.999996, 0.0), (2.0**-19, 0.0)),
    ((100.0, 1.0), (-33.0, 0.0), (3 * 2.0**-19, 0.0)),
    ((0.1, -0.25), (5.0, 0.0), (5 * 2.0**-19, 0.0)),
)
SHAPES = ((4, 2), (3, 2), (129, 1))
MAGNITUDES = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (TINY, 0.0, TINY), (3e-5, 0.7, 2e10))
MAGNITUDES_DRAWN = 24
"""More of them, of usual sizes, so that every rounding shows."""
COORDINATES = (0.0, -0.0, TINY, -TINY, 1.0, -1.0, 0.0, 3.0, -0.0, -2.0, 5.0)
ZERO_BYTES = (1 << 16, (1 << 16) + 4)
"""Of ``bases.bin`` and ``weights.bin``: one chunk, and one that is a little more than that."""
TEXTS = (
    tuple(range(11)),
    tuple(range(14)),  # 7 of 10 shingles in common: led
    tuple(range(15)),  # 7 of 11: not
    (),
    (0,),
    (0, 0),
    (),
    (2**32 - 1, 0, 2**31, 5, 6),
    (2**32 - 1, 0, 2**31, 5, 6),
    (5, 5, 5, 5, 5, 5, 5, 5),
    (5, 5, 5, 5, 5),  # the same one shingle
)
SUMS = (
    (7, -8, 0, 3),
    (16, 8, 24, -8),
    (40, 20, 12, -12, 36, -20),
    (0, 0),
)
SUM_BITS = 4
SKETCHED_SHAPES = (((512, 128), (512, 128)), ((512, 128), (512, 128), (1, 1)))
"""Factors of as many coordinates as have a bit each, and of one more."""
SHARED: tuple[dict[str, Any], ...] = (
    {"scores": [3, 3, 3], "norms": [9, 9, 9], "owners": "cba", "leaders": [0, 1, 2], "floor_ppm": 0},
    {"scores": [1, 2, -5], "norms": [10**14, 9, 4], "owners": "aab", "leaders": [0, 1, 2], "floor_ppm": 0},
    {"scores": [3, 3, 4], "norms": [9, 9, 16], "owners": "abc", "leaders": [0, 0, 2], "floor_ppm": 10**6},
    {"scores": [3, 3, 2], "norms": [10, 25, 9], "owners": "abb", "leaders": [0, 1, 2], "floor_ppm": 600_000},
    {"scores": [1, 1], "norms": [10**12, 10**12], "owners": "ab", "leaders": [0, 1], "floor_ppm": 0},
    {"scores": [0, 7], "norms": [0, 10**18], "owners": "ab", "leaders": [0, 1], "floor_ppm": 1},
)
SPAN_RECORDS = (*([[5, 6, 7]] * 9), [5, 6, 5, 6, 7, 5, 6], [9, 9, 9, 9], [5, 7, 300, 6])
SPAN_OUTPUT = (5, 6, 7, 5, 6, 9, 9, 9, 4, 6, 4, 6, 7, 300)


def array(values: Tensor | npt.NDArray[Any], dtype: str | None = None, *, zeros_signed: bool = False) -> Json:
    """Numbers as their little-endian bytes in row-major order, with what they are; zeros are positive if not said otherwise."""
    plain = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    name = dtype or plain.dtype.name
    plain = plain if zeros_signed else plain + plain.dtype.type(0)
    data = np.ascontiguousarray(plain.astype(np.dtype(name).newbyteorder("<")))
    return {"dtype": name, "shape": list(plain.shape), "data": data.tobytes().hex()}


def inputs() -> Json:
    """What the cases are about."""
    return {
        "rows": array(_single(ROWS), zeros_signed=True),
        "left": array(_single(LEFT)),
        "right": array(_single(RIGHT)),
        **{name: array(arguments) for name, arguments in _arguments().items()},
        "parts": _part_inputs(),
        "moments": [array(np.array(moment, np.int64)) for moment in MOMENTS],
        "rank_that_is_not_turned": NARROW_UNTURNED,
        "factor_that_is_wide": array(_wide_factor()),
        "turned": array(_single(TURNED)),
        "shapes": [list(shape) for shape in SHAPES],
        "magnitudes": array(_magnitudes()),
        "coordinates": array(_single(COORDINATES), zeros_signed=True),
        "long_files": {"header": _header().encode().hex(), "zero_bytes": list(ZERO_BYTES), "row": "00"},
        "texts": [list(text) for text in TEXTS],
        "sums": [list(sums) for sums in SUMS],
        "sum_bits": SUM_BITS,
        "sketched_shapes": [[list(shape) for shape in shapes] for shapes in SKETCHED_SHAPES],
        "shares": [{**case, "query_norm": 1, "owners": _ids(case)} for case in SHARED],
        "span_records": [list(record) for record in SPAN_RECORDS],
        "span_output": list(SPAN_OUTPUT),
    }


def steps() -> list[Step]:
    """What the code under test makes of them."""
    return [*_numbers(), *_functions(), *_parts(), *_whitening(), *_rest()]


def _single(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _wide_factor() -> Tensor:
    return ((torch.arange(WIDE_UNTURNED) % 17 - 8).float() / 3).view(1, WIDE_UNTURNED, 1)


def _magnitudes() -> Tensor:
    """Those above, then products of drawn numbers."""
    count = MAGNITUDES_DRAWN * len(SHAPES)
    one, other = (torch.from_numpy(uniform_floats(seed, "magnitudes", count)) for seed in (1, 2))
    return torch.cat([_single(MAGNITUDES), (one * other).abs().view(MAGNITUDES_DRAWN, len(SHAPES))])


def _header() -> IndexHeader:
    return IndexHeader(bytes(32), bytes(32), 1, (FactorShape("a.B", 1, 1),))


def _sketched_header(shapes: Sequence[tuple[int, int]]) -> IndexHeader:
    named = tuple(FactorShape(str(number), *shape) for number, shape in enumerate(shapes))
    return IndexHeader(bytes(32), bytes(32), 3, named)


def _long_files() -> Index:
    bases, weights_ = (np.zeros(size // 4, np.float32) for size in ZERO_BYTES)
    return Index(_header(), bases, weights_, np.zeros((1, 1), np.uint8))


def _ids(case: dict[str, Any]) -> list[str]:
    return [owner.encode().hex() for owner in case["owners"]]


def _numbers() -> list[Step]:
    q, e = exact.quantise(_single(ROWS))
    rows = _single(ROWS)
    return [
        (
            "case_quantised",
            "integers and exponent of each of `rows`",
            {"integers": array(q, "int16"), "exponents": e.flatten().tolist()},
        ),
        ("case_fsum", "of each of `rows`", array(exact.fsum(rows)[:, 0])),
        ("case_squares", "sum of squares of each of `rows`", array(exact.sum_of_squares(rows)[:, 0])),
        ("case_matmul", "`left` times `right`", array(exact.matmul(_single(LEFT), _single(RIGHT)))),
    ]


def _arguments() -> dict[str, Tensor]:
    """Of functions: the places above, then drawn ones."""
    drawn = torch.from_numpy(uniform_floats(0, "arguments", DRAWN))
    wide = drawn.double()
    wide = wide + wide.flip(0) * 2.0**-30  # numbers of more than 24 bits
    return {
        "exponents": torch.cat([_single(EXPONENTS), drawn * 3, drawn * 60]),
        "roots": torch.cat([_single(ROOTS), drawn.abs()]),
        "logarithms": torch.cat([torch.tensor(LOGARITHMS, dtype=torch.float64), wide.abs()]),
        "angles": torch.cat([torch.tensor(ANGLES, dtype=torch.float64), wide * 50.0]),
        "exponents_64": torch.cat([torch.tensor(EXPONENTS_64, dtype=torch.float64), wide * 10.0]),
    }


def _functions() -> list[Step]:
    given = _arguments()
    return [
        ("case_exp", "of `exponents`, binary32", array(exact.exp(given["exponents"]))),
        ("case_sigmoid", "of `exponents`, binary32", array(exact.sigmoid(given["exponents"]))),
        ("case_sqrt", "of `roots`, binary32", array(exact.sqrt(given["roots"]))),
        ("case_log", "of `logarithms`, binary64", array(exact.log(given["logarithms"]))),
        ("case_exp64", "of `exponents_64`", array(exp64(given["exponents_64"]))),
        ("case_cos_sin", "of `angles`, binary64", array(torch.stack(exact.cos_sin(given["angles"]), 1))),
    ]


def _drawn(label: str, *shape: int) -> Tensor:
    """Numbers in (-4, 4)."""
    return torch.from_numpy(uniform_floats(0, label, math.prod(shape)) * np.float32(4)).view(shape)


def _part_tensors() -> dict[str, Tensor]:
    """Rows, their gradients, a norm's weight; queries, keys and values (heads, positions, width)."""
    return {
        "x": _drawn("x", PART_ROWS, PART_WIDTH),
        "slope": _drawn("slope", PART_ROWS, PART_WIDTH),
        "weight": _drawn("weight", PART_WIDTH),
        "q": _drawn("q", HEADS, POSITIONS, HEAD_WIDTH),
        "k": _drawn("k", KEY_HEADS, POSITIONS, HEAD_WIDTH),
        "v": _drawn("v", KEY_HEADS, POSITIONS, HEAD_WIDTH),
        "slope_of_o": _drawn("slope of o", HEADS, POSITIONS, HEAD_WIDTH),
    }


def _part_inputs() -> Json:
    return {name: array(tensor) for name, tensor in _part_tensors().items()} | {
        "targets": list(range(PART_ROWS)),
        "eps": EPS,
        "positions": POSITIONS,
        "rotation": {"head_dim": PART_WIDTH, "rope_theta": str(THETA)},
    }


def _parts() -> list[Step]:
    """A layer's parts by themselves, whose roundings would be lost in the next grid."""
    given, half = _part_tensors(), PART_WIDTH // 2
    x, slope = given["x"], given["slope"]
    y, kept = rms_norm(x, given["weight"], EPS)
    mixed, sigmoids = swiglu(x)
    tokens = cross_entropy(x, torch.arange(PART_ROWS), None)
    frequencies = exp64(exact.log(torch.tensor(THETA, dtype=torch.float64)) * _powers())
    angles = torch.arange(POSITIONS, dtype=torch.float64)[:, None] * frequencies
    cos, sin = (part.float() for part in exact.cos_sin(angles))
    turned_ = rotate(x[:, None], cos[:PART_ROWS, None], sin[:PART_ROWS, None])[:, 0]
    heads = torch.cat([given["q"], given["k"], given["v"]]).transpose(0, 1).contiguous()
    o, saved = attention(heads, HEADS, [(0, POSITIONS)], True)
    if saved is None:
        raise VectorMismatch("attention kept nothing")
    back = attention_backward(given["slope_of_o"].transpose(0, 1).contiguous(), saved).transpose(0, 1)
    sides = torch.split(back, [HEADS, KEY_HEADS, KEY_HEADS])
    return [
        ("case_norm", "of `x` with `weight` and `eps`", array(y)),
        ("case_norm_back", "of `slope`", array(rms_norm_backward(slope, given["weight"], kept))),
        ("case_gated", "of rows of `x`, gates first", array(mixed)),
        (
            "case_gated_back",
            "of the first half of rows of `slope`",
            array(swiglu_backward(slope[:, :half].contiguous(), x, sigmoids)),
        ),
        ("case_token_losses", "of `x` as logits of `targets`", tokens.tokens.tolist()),
        ("case_token_slopes", "their gradients", array(tokens.gradient)),
        ("case_rotations", "positions x (cos, sin) x half a head", array(torch.stack([cos, sin], 1))),
        ("case_rotated", "rows of `x` at their positions", array(turned_)),
        ("case_attention", "o of `q`, `k`, `v`", array(o.transpose(0, 1))),
        (
            "case_attention_back",
            "of `slope_of_o`",
            {name: array(part) for name, part in zip("qkv", sides, strict=True)},
        ),
    ]


def _powers() -> Tensor:
    half = torch.arange(PART_WIDTH // 2, dtype=torch.float64)
    return half * -2.0 / torch.full((1,), float(PART_WIDTH), dtype=torch.float64)


def _whitening() -> list[Step]:
    found = [rounded(torch.tensor(moment)) for moment in MOMENTS]
    identity = eigenvectors(torch.ones(NARROW_UNTURNED, NARROW_UNTURNED, dtype=torch.float64))
    gradient, shape = _wide_factor(), FactorShape("wide.B", WIDE_UNTURNED, 1)
    total = moments(gradient)
    (bases,) = bases_of([total], [shape])
    summed = squares(_single(TURNED))
    return [
        ("case_narrow_bases", "of `moments`", [array(eigenvectors(moment)) for moment in found]),
        ("case_wide_bases", "of `moments`", [array(wide_bases(moment)) for moment in found]),
        (
            "case_narrow_basis_not_turned",
            "first row of the basis of ones, `rank_that_is_not_turned` of them in rows and columns",
            array(identity[0]),
        ),
        (
            "case_wide_factor",
            "moments, bases and turned coordinates where `factor_that_is_wide` is all there is",
            {
                "moments": {"narrow": array(total.view(1, 1))},
                "bases": {"narrow": array(bases.narrow)},
                "turned": array(Turning([bases], [shape]).turned(normalised([gradient]))[0]),
            },
        ),
        ("case_squared", "sums over the examples of `turned`", array(summed)),
        ("case_weights", "of those", array(weights(summed))),
    ]


def _rest() -> list[Step]:
    shapes = [FactorShape(str(number), *shape) for number, shape in enumerate(SHAPES)]
    shares = []
    for case in SHARED:
        scores = Scores(tuple(case["scores"]), ScoredRows(tuple(case["norms"]), tuple(case["leaders"])), 1)
        found = attribute(scores, [bytes.fromhex(owner) for owner in _ids(case)], case["floor_ppm"])
        parts = {b"": found.unattributed} | dict(found.by_owner)
        shares.append({owner.hex(): part for owner, part in parts.items() if part})
    with TemporaryDirectory() as name:
        index = SpanIndex.create(Path(name), 2)
        index.add(SPAN_RECORDS)
        spans = [asdict(span) for span in index.spans(SPAN_OUTPUT)]
    for span in spans:
        span["places"] = [[place["record"], place["offset"]] for place in span["places"]]
    return [
        (
            "case_scales",
            "S_f of `magnitudes`, of factors of `shapes`",
            array(integer_scales(_magnitudes(), shapes)),
        ),
        (
            "case_signs",
            "bits of `coordinates`, one factor's",
            pack_signs(_single(COORDINATES)[None])[0].tobytes().hex(),
        ),
        (
            "case_root_of_long_files",
            "of `header`, as many zero bytes of bases and of weights, and `row`",
            _long_files().root.hex(),
        ),
        ("case_leaders", "of `texts`", list(leaders(TEXTS))),
        (
            "case_sketch_integers",
            "queries of `sum_bits` bits of `sums`",
            [sketch_query(np.array(sums), SUM_BITS)[0].tolist() for sums in SUMS],
        ),
        (
            "case_sketch_scales",
            "of `sums` and of as many zeros as the first has",
            [int(sketch_scales(np.array([sums]))[0, 0]) for sums in (*SUMS, (0,) * len(SUMS[0]))],
        ),
        (
            "case_sketched_headers",
            "header.bin of 3 records and hashes of zeros, factors of each of `sketched_shapes` named by their number",
            [_sketched_header(shapes).encode().hex() for shapes in SKETCHED_SHAPES],
        ),
        ("case_shares", "of `shares`; owners without a part left out, nobody's id empty", shares),
        ("case_spans", "of `span_output` in `span_records`, of one token and more", spans),
    ]
