"""Every step of ``attribution.json``, out of its inputs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.vectors.stranger import copies, index, scoring, sketch, whitening
from tests.vectors.stranger.arithmetic import Matrix, exponent
from tests.vectors.stranger.arrays import array, sides
from tests.vectors.stranger.cases import cases
from tests.vectors.stranger.index import Shape
from tests.vectors.stranger.linear import PREFIX
from tests.vectors.stranger.model import GROUPS, Factors, Model, loss_and_factors
from tests.vectors.stranger.spans import spans
from tests.vectors.stranger.whitening import Gradient

Json = Any
Steps = dict[str, Json]

LEFT_OUT = ("q_proj", "k_proj")


@dataclass(frozen=True, slots=True)
class Built:
    """An index: every factor's bases and weights, the bytes under its root, and who leads each record."""

    shapes: list[Shape]
    bases: list[tuple[Matrix, Matrix | None]]
    weights: list[Matrix]
    files: tuple[bytes, bytes, bytes]
    rows: list[bytes]
    leaders: list[int]

    def hashes(self, erased: Mapping[int, bytes]) -> list[bytes]:
        """Leaves' hashes."""
        return index.leaf_hashes(*self.files, self.rows, erased)

    def turned(self, example: Gradient) -> Gradient:
        """An example's turned coordinates."""
        factors = zip(whitening.normalised(example), self.bases, strict=True)
        return [whitening.turned(factor, *bases) for factor, bases in factors]

    def whitened(self, example: Gradient) -> Gradient:
        """An example's whitened coordinates."""
        return [whitening.whitened(*pair) for pair in zip(self.turned(example), self.weights, strict=True)]


def computed(inputs: Mapping[str, Json]) -> Steps:
    """Values of the steps by name."""
    model, shapes = Model.of(inputs), factor_shapes(inputs)
    runs = [loss_and_factors(model, (), ids, ends=True) for ids in inputs["records"]]
    answers = [(query["prompt"], query["output"]) for query in inputs["queries"]]
    asked = [loss_and_factors(model, prompt, ids, ends=not ids) for prompt, ids in answers]
    records = [gradient_of(factors, shapes) for _, factors in runs]
    questions = [gradient_of(factors, shapes) for _, factors in asked]
    built, steps = _build(inputs, shapes, records)
    queries = [built.whitened(example) for example in questions]
    return {
        "losses": [loss for loss, _ in runs + asked],
        "record_factors": _arrays(runs[inputs["factors_of_record"]][1]),
        "query_factors": _arrays(asked[inputs["factors_of_query"]][1]),
        "gradients": _by_factor(records, shapes),
        "query_gradients": _by_factor(questions, shapes),
        **steps,
        "query_turned": _by_factor([built.turned(example) for example in questions], shapes),
        "query_whitened": _by_factor(queries, shapes),
        **_score(inputs, built, [scoring.query(example) for example in queries]),
        **_sketch(inputs, [built.whitened(example) for example in records], queries),
        "spans": [
            [asdict(span) for span in spans(inputs["records"], ids, inputs["span_tokens_min"])]
            for _, ids in answers
        ],
        **cases(inputs["cases"]),
    }


def factor_shapes(inputs: Mapping[str, Json]) -> list[Shape]:
    """Factors by module in the model's order, "B" before "A"; without queries and keys where there is anything else."""
    adapter, rank, layers = inputs["adapter"], inputs["rank"], range(inputs["config"]["num_hidden_layers"])
    names = [f"model.layers.{layer}.{part}" for layer in layers for parts in GROUPS for part in parts]
    there = [name for name in names if f"{PREFIX}{name}.lora_A.weight" in adapter]
    counted = [name for name in there if name.rpartition(".")[2] not in LEFT_OUT] or there
    found = []
    for name in counted:
        found.append(Shape(f"{name}.B", adapter[f"{PREFIX}{name}.lora_B.weight"]["shape"][0], rank))
        found.append(Shape(f"{name}.A", adapter[f"{PREFIX}{name}.lora_A.weight"]["shape"][1], rank))
    return found


def gradient_of(factors: Factors, shapes: Sequence[Shape]) -> Gradient:
    """One text's gradient from its modules' factors."""
    sides, found = {"B": ("dz", "u"), "A": ("x", "dh")}, []
    for shape in shapes:
        module, _, side = shape.name.rpartition(".")
        wide, narrow = (factors[module][part] for part in sides[side])
        found.append(whitening.gradient(wide, narrow))
    return found


def _arrays(factors: Factors) -> Json:
    return {
        name: {part: array("float32", rows) for part, rows in parts.items()}
        for name, parts in factors.items()
    }


def _by_factor(examples: Sequence[Gradient], shapes: Sequence[Shape]) -> Json:
    return {
        shape.name: array("float32", [example[f] for example in examples]) for f, shape in enumerate(shapes)
    }


def _build(inputs: Mapping[str, Json], shapes: list[Shape], records: list[Gradient]) -> tuple[Built, Steps]:
    """Leaders, bases and weights over leaders, rows of all."""
    ids = inputs["records"]
    minima, leaders = [copies.minima(record) for record in ids], copies.leaders(ids)
    led = [example for example, leader in enumerate(leaders) if leader == example]
    names = [shape.name for shape in shapes]

    sums = [whitening.moments([records[i][f] for i in led]) for f in range(len(shapes))]
    bases = [
        (whitening.narrow_basis(narrow), None if wide is None else whitening.wide_basis(wide))
        for narrow, wide in sums
    ]
    built = Built(shapes, bases, [], (b"", b"", b""), [], leaders)
    turned = [built.turned(example) for example in records]
    squares = [whitening.squares([turned[i][f] for i in led]) for f in range(len(shapes))]
    weights = [whitening.weights(total) for total in squares]
    whitened = [
        [whitening.whitened(*pair) for pair in zip(example, weights, strict=True)] for example in turned
    ]

    magnitudes = [index.magnitudes(example) for example in whitened]
    scales = [index.scales(means, shapes) for means in magnitudes]
    rows = [index.row(*parts) for parts in zip(ids, scales, whitened, strict=True)]
    files = (
        index.header(
            bytes.fromhex(inputs["base_hash"]), bytes.fromhex(inputs["adapter_hash"]), len(ids), shapes
        ),
        index.floats([matrix for pair in bases for matrix in pair if matrix is not None]),
        index.floats(weights),
    )
    built = Built(shapes, bases, weights, files, rows, leaders)
    hashes = built.hashes({})
    proven = len(hashes) - len(rows) + inputs["proven_record"]
    return built, {
        "minima": array("uint64", minima),
        "bands": array("uint64", [copies.bands(least) for least in minima]),
        "leaders": leaders,
        "exponents": [exponent(x for f in example for row in f for x in row) for example in records],
        "moments": dict(zip(names, (sides("int64", *pair) for pair in sums), strict=True)),
        "bases": dict(zip(names, (sides("float32", *pair) for pair in bases), strict=True)),
        "turned": _by_factor(turned, shapes),
        "squares": {name: array("int64", total) for name, total in zip(names, squares, strict=True)},
        "weights": {name: array("float32", weight) for name, weight in zip(names, weights, strict=True)},
        "whitened": _by_factor(whitened, shapes),
        "magnitudes": array("float32", magnitudes),
        "scales": array("uint32", scales),
        "header": files[0].hex(),
        "rows": [row.hex() for row in rows],
        "leaves": [leaf.hex() for leaf in hashes],
        "root": index.root(hashes).hex(),
        "proof": {
            "leaf": proven,
            "count": len(hashes),
            "path": [node.hex() for node in index.proof(hashes, proven)],
        },
    }


def _score(inputs: Mapping[str, Json], built: Built, queries: list[list[int]]) -> Steps:
    """Scores and shares, and those after a record was erased."""
    gone = inputs["erased_record"]
    erased = {gone: built.hashes({})[len(built.hashes({})) - len(built.rows) + gone]}
    leaders = copies.leaders([None if i == gone else ids for i, ids in enumerate(inputs["records"])])
    blank = [bytes(len(row)) if i == gone else row for i, row in enumerate(built.rows)]
    norms = [scoring.row_norm(index.row_scales(row, built.shapes), built.shapes) for row in built.rows]
    return {
        "query_integers": array("int16", queries),
        "query_norms": [scoring.query_norm(q) for q in queries],
        "row_norms": norms,
        **_paid("", inputs, built.shapes, built.rows, built.leaders, queries),
        "erased_leaders": leaders,
        "erased_standing": index.standing(leaders, erased).hex(),
        "erased_root": index.root(built.hashes(erased)).hex(),
        **_paid("erased_", inputs, built.shapes, blank, leaders, queries),
    }


def _paid(
    prefix: str,
    inputs: Mapping[str, Json],
    shapes: Sequence[Shape],
    rows: Sequence[bytes],
    leaders: Sequence[int],
    queries: Sequence[Sequence[int]],
) -> Steps:
    owners = [bytes.fromhex(owner) for owner in inputs["owners"]]
    scales = [index.row_scales(row, shapes) for row in rows]
    signs = [index.row_signs(row, shapes) for row in rows]
    norms = [scoring.row_norm(row, shapes) for row in scales]
    scores = [[scoring.score(q, *pair) for pair in zip(scales, signs, strict=True)] for q in queries]
    cosines = [
        [scoring.cosine_squared(s, n, scoring.query_norm(q)) for s, n in zip(values, norms, strict=True)]
        for q, values in zip(queries, scores, strict=True)
    ]
    shares = [scoring.shares(squared, leaders, owners, inputs["floor_ppm"]) for squared in cosines]
    return {
        f"{prefix}scores": scores,
        f"{prefix}cosines_squared": cosines,
        f"{prefix}shares": [{owner.hex(): part for owner, part in parts.items()} for parts in shares],
    }


def _sketch(inputs: Mapping[str, Json], records: list[Gradient], queries: list[Gradient]) -> Steps:
    width = inputs["sketch_width"]
    rows = [sketch.row(sketch.sums(example, width)) for example in records]
    sums = [sketch.sums(example, width) for example in queries]
    steps: Steps = {"sketch_rows": [row.hex() for row in rows], "sketch_sums": array("int32", sums)}
    for bits in inputs["sketch_bits"]:
        found = [sketch.integers(values, bits) for values in sums]
        steps[f"sketch_queries_of_{bits}_bits"] = array("int16", found)
        steps[f"sketch_scores_of_{bits}_bits"] = [[sketch.score(p, row) for row in rows] for p in found]
    return steps
