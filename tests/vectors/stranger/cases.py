"""The cases of ``attribution.json`` that stand by themselves: limits, ties, zeros, extremes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests.vectors.stranger import attention, copies, functions, index, model, scoring, sketch, whitening
from tests.vectors.stranger.arithmetic import fsum, matmul, quantise, sqrt32
from tests.vectors.stranger.arrays import array, flat, nested, sides
from tests.vectors.stranger.spans import spans

Json = Any


def cases(inputs: Mapping[str, Json]) -> dict[str, Json]:
    """Values of the steps by name."""
    rows, moments = nested(inputs["rows"]), [nested(moment) for moment in inputs["moments"]]
    grids = [quantise(row) for row in rows]
    ones = [[1] * inputs["rank_that_is_not_turned"]] * inputs["rank_that_is_not_turned"]
    squared = whitening.squares(nested(inputs["turned"]))
    return {
        "case_quantised": {
            "integers": array("int16", [q for q, _ in grids]),
            "exponents": [e for _, e in grids],
        },
        "case_fsum": array("float64", [fsum(row) for row in rows]),
        "case_squares": array("float64", [functions.squares(row) for row in rows]),
        "case_matmul": array("float32", matmul(nested(inputs["left"]), nested(inputs["right"]))),
        "case_exp": array("float32", [functions.exp(x) for x in flat(inputs["exponents"])]),
        "case_sigmoid": array("float32", [functions.sigmoid(x) for x in flat(inputs["exponents"])]),
        "case_sqrt": array("float32", [sqrt32(x) for x in flat(inputs["roots"])]),
        "case_log": array("float64", [functions.log(x) for x in flat(inputs["logarithms"])]),
        "case_exp64": array("float64", [functions.exp64(x) for x in flat(inputs["exponents_64"])]),
        "case_cos_sin": array("float64", [functions.cos_sin(x) for x in flat(inputs["angles"])]),
        **_parts(inputs["parts"]),
        "case_narrow_bases": [array("float32", whitening.narrow_basis(moment)) for moment in moments],
        "case_wide_bases": [array("float32", whitening.wide_basis(moment)) for moment in moments],
        "case_narrow_basis_not_turned": array("float32", whitening.narrow_basis(ones)[0]),
        "case_wide_factor": _wide_factor(nested(inputs["factor_that_is_wide"])),
        "case_squared": array("int64", squared),
        "case_weights": array("float32", whitening.weights(squared)),
        "case_scales": _scales(inputs),
        "case_signs": index.signs([flat(inputs["coordinates"])]).hex(),
        "case_root_of_long_files": _root(inputs["long_files"]),
        "case_leaders": copies.leaders(inputs["texts"]),
        "case_sketch_integers": [sketch.integers(sums, inputs["sum_bits"]) for sums in inputs["sums"]],
        "case_sketch_scales": [
            sketch.scale(sums) for sums in (*inputs["sums"], [0] * len(inputs["sums"][0]))
        ],
        "case_sketched_headers": [_header(shapes) for shapes in inputs["sketched_shapes"]],
        "case_shares": [_shares(case) for case in inputs["shares"]],
        "case_spans": [asdict(span) for span in spans(inputs["span_records"], inputs["span_output"], 1)],
    }


def _parts(given: Mapping[str, Json]) -> dict[str, Json]:
    """Parts of a layer, forward and backward."""
    x, weight, slope = nested(given["x"]), flat(given["weight"]), nested(given["slope"])
    norms = [model.normed(row, weight, given["eps"]) for row in x]
    back = [model.normed_back(d, weight, *kept[1:]) for d, kept in zip(slope, norms, strict=True)]
    gated = [model.swiglu(row) for row in x]
    half = len(x[0]) // 2
    gates_back = [model.swiglu_back(d[:half], row, s) for d, row, (_, s) in zip(slope, x, gated, strict=True)]
    losses = [model.token_loss(*row) for row in zip(x, given["targets"], strict=True)]
    turns = attention.rotations(given["rotation"], given["positions"])
    turned = [attention.rotated(row, *turn) for row, turn in zip(x, turns, strict=False)]
    q, k, v = (nested(given[name]) for name in "qkv")
    attended = attention.attended(q, k, v)
    d_heads = attention.attended_back(nested(given["slope_of_o"]), attended)
    return {
        "case_norm": array("float32", [y for y, _, _ in norms]),
        "case_norm_back": array("float32", back),
        "case_gated": array("float32", [y for y, _ in gated]),
        "case_gated_back": array("float32", gates_back),
        "case_token_losses": [loss for loss, _ in losses],
        "case_token_slopes": array("float32", [row for _, row in losses]),
        "case_rotations": array("float32", turns),
        "case_rotated": array("float32", [[x + 0.0 for x in row] for row in turned]),
        "case_attention": array("float32", attended.o),
        "case_attention_back": {
            name: array("float32", heads) for name, heads in zip("qkv", d_heads, strict=True)
        },
    }


def _wide_factor(examples: Json) -> Json:
    narrow, wide = whitening.moments(examples)
    bases = whitening.narrow_basis(narrow), None if wide is None else whitening.wide_basis(wide)
    turned = [whitening.turned(whitening.normalised([factor])[0], *bases) for factor in examples]
    return {
        "moments": sides("int64", narrow, wide),
        "bases": sides("float32", *bases),
        "turned": array("float32", turned),
    }


def _scales(inputs: Mapping[str, Json]) -> Json:
    shapes = [index.Shape(str(number), *shape) for number, shape in enumerate(inputs["shapes"])]
    return array("uint32", [index.scales(means, shapes) for means in nested(inputs["magnitudes"])])


def _header(shapes: Json) -> str:
    named = [index.Shape(str(number), *shape) for number, shape in enumerate(shapes)]
    return index.header(bytes(32), bytes(32), 3, named).hex()


def _root(files: Mapping[str, Json]) -> str:
    header, row = (bytes.fromhex(files[name]) for name in ("header", "row"))
    bases, weights = map(bytes, files["zero_bytes"])
    return index.root(index.leaf_hashes(header, bases, weights, [row], {})).hex()


def _shares(case: Mapping[str, Json]) -> Json:
    squared = [
        scoring.cosine_squared(score, norm, case["query_norm"])
        for score, norm in zip(case["scores"], case["norms"], strict=True)
    ]
    owners = [bytes.fromhex(owner) for owner in case["owners"]]
    parts = scoring.shares(squared, case["leaders"], owners, case["floor_ppm"])
    return {owner.hex(): part for owner, part in parts.items()}
