"""Vectors of attribution, step by step: what a tiny model's records, and two answers, become on their way to shares.

Weights are given as the integers that they are, so whoever checks another implementation needs neither torch nor these packages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.adapter import Adapter, LoraModule
from attribution.duplicates import _bands, _signatures, _Windows, leaders
from attribution.exact import quantise
from attribution.exact.random import uniform_floats
from attribution.gradients import Example, factors
from attribution.index import Index, build_index, split_factors
from attribution.index_files import erase_rows
from attribution.index_standing import STANDING_FILE
from attribution.model import PROJECTIONS as ALL_PROJECTIONS
from attribution.model import (
    Base,
    ModelConfig,
    module_name,
    norm_names,
    projection_shape,
    quantise_checkpoint,
    weight_shapes,
)
from attribution.scores import score
from attribution.shares import Scores, attribute
from attribution.signs import integer_query, mean_magnitudes
from attribution.sketch import sketch_query, sketch_rows, sketched
from attribution.spans import SpanIndex
from attribution.whitening import example_gradients, moments, normalised, split_bases, squares
from attribution.whitening.gradients import GRID_BITS, STRENGTH
from tests.vectors import attribution_cases
from tests.vectors.attribution_cases import Step, array
from tests.vectors.notation import Json, VectorMismatch

# Sizes that are no powers of two, so that a quotient that should be rounded is.
CONFIG: dict[str, Any] = {
    "vocab_size": 123,
    "hidden_size": 7,
    "head_dim": 6,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
RANK, ALPHA = 3, 7
PROJECTIONS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
"""That the adapter is beside: not all of a group, and one whose gradients are left out."""
TEXTS = (
    "the cat sat on the mat",
    "a dog ran in the fog",
    "the cat sat on the mat",  # a copy
    "the cat sat on the mats...",  # a near copy of it
    " cat sat on the mats...",  # one of the near copy, not of the first
    "",
    "hats",  # shorter than a shingle
)
QUERIES = (("the cat", " sat on the mat"), ("a dog", ""))
OWNERS = tuple(bytes([number]) * 32 for number in (1, 2, 3, 3, 2, 1, 2))
FLOOR_PPM = 60_000
FACTORS_OF_RECORD, FACTORS_OF_QUERY = 6, 1
"""Whose factors are written out: short ones."""
PROVEN, ERASED = 3, 0
SKETCH_WIDTH, SKETCH_BITS = 512, (14, 4)
SPAN_TOKENS_MIN = 3

RECORDS = tuple(tuple(text.encode()) for text in TEXTS)
OUTPUTS = tuple((tuple(prompt.encode()), tuple(output.encode())) for prompt, output in QUERIES)


def base(config: dict[str, Any] = CONFIG, seed: int = 0, size: float = 1.7) -> Base:
    """Drawn weights of a usual size times ``size``; norms of about one."""
    model = ModelConfig.from_mapping(config)
    state = {name: 1 + drawn(seed, name, (model.hidden_size,), 0.25) for name in norm_names(model)}
    for name, shape in weight_shapes(model).items():
        state[f"{name}.weight"] = drawn(seed, name, shape, size * shape[1] ** -0.5)
    return quantise_checkpoint(state, config)


def adapter(
    beside: Base | None = None, projections: Sequence[str] = PROJECTIONS, rank: int = RANK, seed: int = 0
) -> Adapter:
    """An adapter on some projections of a base, neither factor zero."""
    config, modules = base().config if beside is None else beside.config, []
    for layer in range(config.num_hidden_layers):
        for projection in (p for p in ALL_PROJECTIONS if p in projections):
            name, (out, inputs) = module_name(layer, projection), projection_shape(config, projection)
            a = drawn(seed, f"{name} A", (rank, inputs), inputs**-0.5)
            modules.append(LoraModule(name, a, drawn(seed, f"{name} B", (out, rank), 0.25)))
    return Adapter(rank, ALPHA, tuple(modules))


def drawn(seed: int, label: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Numbers of the stream of (seed, label), each times ``size``, one rounding."""
    count = int(np.prod(shape))
    return torch.from_numpy(uniform_floats(seed, label, count) * np.float32(size)).view(shape)


def document() -> Json:
    """The whole file: inputs, and every step with what it is."""
    return {
        "format": 1,
        "inputs": inputs(),
        "steps": [{"step": name, "about": about, "value": value} for name, about, value in steps()],
    }


def models(some: Base, beside: Adapter) -> Json:
    """A base and an adapter: weights as integers and exponents, all else as binary32."""
    return {
        "config": json.loads(some.config.canonical_json()),
        "base_hash": some.hash.hex(),
        "base": {name: array(tensor) for name, tensor in some.tensors.items()},
        "adapter_hash": beside.hash.hex(),
        "rank": beside.rank,
        "alpha": beside.alpha,
        "adapter": {name: array(tensor) for name, tensor in beside.tensors().items()},
    }


def inputs() -> Json:
    """All that the steps are computed from."""
    return models(base(), adapter()) | {
        "records": [list(record) for record in RECORDS],
        "owners": [owner.hex() for owner in OWNERS],
        "queries": [{"prompt": list(prompt), "output": list(output)} for prompt, output in OUTPUTS],
        "floor_ppm": FLOOR_PPM,
        "factors_of_record": FACTORS_OF_RECORD,
        "factors_of_query": FACTORS_OF_QUERY,
        "proven_record": PROVEN,
        "erased_record": ERASED,
        "sketch_width": SKETCH_WIDTH,
        "sketch_bits": list(SKETCH_BITS),
        "span_tokens_min": SPAN_TOKENS_MIN,
        "cases": attribution_cases.inputs(),
    }


def steps() -> list[Step]:
    """Every step in its order, as the code under test computes it."""
    return [
        *_copies(),
        *_gradients(),
        *_whitening(),
        *_index(),
        *_scoring(),
        *_erasing(),
        *_sketching(),
        *_spans(),
        *attribution_cases.steps(),
    ]


def _copies() -> list[Step]:
    windows = _Windows.of(RECORDS)
    minima = _signatures(windows)
    return [
        ("minima", "records x 128: least hashes over a record's shingles", array(minima)),
        ("bands", "records x 32", array(_bands(minima))),
        ("leaders", "of each record; leaders alone count below", list(leaders(RECORDS))),
    ]


def _examples() -> tuple[list[Example], list[Example]]:
    """Records, and answers as queries."""
    asked = [Example(prompt, output, ends=not output) for prompt, output in OUTPUTS]
    return [Example((), record) for record in RECORDS], asked


def _gradients() -> list[Step]:
    records, asked = _examples()
    some, weak = base(), adapter().weakened(STRENGTH)
    found = [
        factors(some, weak, [example]) for example in (records[FACTORS_OF_RECORD], asked[FACTORS_OF_QUERY])
    ]
    parts = [
        {m.name: {part: array(getattr(m, part)) for part in ("x", "u", "dz", "dh")} for m in batch.modules}
        for batch in found
    ]
    return [
        (
            "losses",
            "of records, then queries, at three quarters of B, in nats times 2^30",
            list(factors(some, weak, [*records, *asked]).losses),
        ),
        ("record_factors", "x, u, dz, dh of one record, tokens x width, by module", parts[0]),
        ("query_factors", "the same of one query", parts[1]),
        ("gradients", "records x wide x rank, by factor", _by_factor(_found(records))),
        ("query_gradients", "queries x wide x rank, by factor", _by_factor(_found(asked))),
    ]


def _found(examples: Sequence[Example]) -> list[Tensor]:
    return example_gradients(base(), adapter(), examples)[1]


def _by_factor(tensors: Sequence[Tensor]) -> Json:
    return {
        shape.name: array(tensor) for shape, tensor in zip(_index_of().header.shapes, tensors, strict=True)
    }


@cache
def _index_of() -> Index:
    """The index with near-duplicates led."""
    return build_index(base(), adapter(), RECORDS, clusters=leaders(RECORDS))


def _exponents(gradients: Sequence[Tensor]) -> list[int]:
    """E of each example: its largest entry over all factors is below 2^E."""
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in gradients], 1)
    return [int(e) + GRID_BITS for e in quantise(largest)[1]]


def _whitened(gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Turned and whitened coordinates by the index's bases and weights."""
    index, cpu = _index_of(), torch.device("cpu")
    found = index.turning(cpu).turned(normalised(gradients))
    return found, [x * w for x, w in zip(found, index.factor_weights(cpu), strict=True)]


def _whitening() -> list[Step]:
    index, gradients = _index_of(), _found(_examples()[0])
    shapes, bases = index.header.shapes, split_bases(index.bases, index.header.shapes, torch.device("cpu"))
    led = torch.tensor([i for i, leader in enumerate(index.leaders) if leader == i])
    sums = [
        torch.split(moments(g[led]), [s.rank**2, s.wide**2]) for s, g in zip(shapes, gradients, strict=True)
    ]
    coordinates, whitened = _whitened(gradients)
    sizes = [(s.wide, s.rank) for s in shapes]
    return [
        (
            "exponents",
            "E of each record: its largest entry over all factors is below 2^E",
            _exponents(gradients),
        ),
        (
            "moments",
            "of both sides over leaders, by factor",
            {
                s.name: {"narrow": array(n.view(s.rank, s.rank)), "wide": array(w.view(s.wide, s.wide))}
                for s, (n, w) in zip(shapes, sums, strict=True)
            },
        ),
        (
            "bases",
            "narrow: eigenvectors as columns; wide: directions as rows; by factor",
            {
                s.name: {"narrow": array(b.narrow), "wide": array(b.wide)}
                for s, b in zip(shapes, bases, strict=True)
                if b.wide is not None
            },
        ),
        ("turned", "records x wide x rank, normalised and turned, by factor", _by_factor(coordinates)),
        (
            "squares",
            "wide x rank, sums over leaders, by factor",
            _by_factor([squares(c[led]) for c in coordinates]),
        ),
        (
            "weights",
            "wide x rank, by factor",
            _by_factor(split_factors(index.weights, sizes, torch.device("cpu"))),
        ),
        ("whitened", "records x wide x rank, by factor", _by_factor(whitened)),
        ("magnitudes", "a_f, records x factors", array(mean_magnitudes(whitened))),
        ("scales", "S_f, records x factors", array(index.scales)),
    ]


def _index() -> list[Step]:
    index = _index_of()
    row, leaf, count, path = index.row_proof(PROVEN)
    if row != index.rows[PROVEN].tobytes():
        raise VectorMismatch("a row is proven that is not the record's")
    return [
        ("header", "header.bin", index.header.encode().hex()),
        ("rows", "of rows.bin, one by one", [row.tobytes().hex() for row in index.rows]),
        (
            "leaves",
            "hashes: header, bases.bin, weights.bin, rows",
            [leaf.hex() for leaf in index.leaf_hashes()],
        ),
        ("root", "what the ledger holds", index.root.hex()),
        (
            "proof",
            "of one record's row: which leaf of how many, and the hashes beside its path",
            {"leaf": leaf, "count": count, "path": [node.hex() for node in path]},
        ),
    ]


def _scoring() -> list[Step]:
    index = _index_of()
    coordinates, whitened = _whitened(_found(_examples()[1]))
    asked = [integer_query([w[i : i + 1] for w in whitened]) for i in range(len(OUTPUTS))]
    scores = [score(base(), adapter(), index, *output) for output in OUTPUTS]
    if [s.query_norm for s in scores] != [norm for _, norm in asked]:
        raise VectorMismatch("a query is not the one that is scored")
    places = _places(index)
    return [
        ("query_turned", "queries x wide x rank, by factor", _by_factor(coordinates)),
        ("query_whitened", "queries x wide x rank, by factor", _by_factor(whitened)),
        ("query_integers", "queries x coordinates", array(np.stack([q[places] for q, _ in asked]), "int16")),
        ("query_norms", "m of each query", [norm for _, norm in asked]),
        ("row_norms", "n of each row", list(scores[0].rows.norms)),
        *_paid("", scores),
    ]


def _places(index: Index) -> np.ndarray[Any, Any]:
    """Where coordinates are in an integer query, whose factors are padded to whole bytes."""
    at, found = 0, []
    for shape in index.header.shapes:
        found.append(np.arange(at, at + shape.coordinates))
        at += -(-shape.coordinates // 8) * 8
    return np.concatenate(found)


def _paid(prefix: str, scores: Sequence[Scores]) -> list[Step]:
    shares = [attribute(s, OWNERS, FLOOR_PPM) for s in scores]
    return [
        (f"{prefix}scores", "of each query with each row", [list(s.values) for s in scores]),
        (
            f"{prefix}cosines_squared",
            "in parts per 10^12",
            [[s.cosine_squared(i) for i in range(len(RECORDS))] for s in scores],
        ),
        (
            f"{prefix}shares",
            "of each query, parts of 10^9 by owner; nobody's under the empty id",
            [{"": s.unattributed} | {owner.hex(): part for owner, part in s.by_owner} for s in shares],
        ),
    ]


def _erasing() -> list[Step]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        _index_of().save(folder)
        clusters = leaders([None if i == ERASED else record for i, record in enumerate(RECORDS)])
        index = erase_rows(folder, [ERASED], clusters)
        standing = (folder / STANDING_FILE).read_bytes()
        scores = [score(base(), adapter(), index, *output) for output in OUTPUTS]
    return [
        ("erased_leaders", "without the erased record", list(clusters)),
        ("erased_standing", "standing.bin", standing.hex()),
        ("erased_root", "the same root", index.root.hex()),
        *_paid("erased_", scores),
    ]


def _sketching() -> list[Step]:
    records, asked = _examples()
    rows = sketch_rows(sketched(_whitened(_found(records))[1], SKETCH_WIDTH))
    sums = sketched(_whitened(_found(asked))[1], SKETCH_WIDTH)
    found = {bits: [sketch_query(y, bits) for y in sums] for bits in SKETCH_BITS}
    signs = np.where(np.unpackbits(rows, axis=1, bitorder="little"), 1, -1)
    return [
        ("sketch_rows", "of each record", [row.tobytes().hex() for row in rows]),
        ("sketch_sums", "queries x width", array(sums, "int32")),
        *(
            (
                f"sketch_queries_of_{bits}_bits",
                "queries x width",
                array(np.stack([p for p, _ in queries]), "int16"),
            )
            for bits, queries in found.items()
        ),
        *(
            (
                f"sketch_scores_of_{bits}_bits",
                "of each query with each row",
                [[int(s) for s in signs @ p] for p, _ in queries],
            )
            for bits, queries in found.items()
        ),
    ]


def _spans() -> list[Step]:
    with TemporaryDirectory() as name:
        index = SpanIndex.create(Path(name))
        index.add(RECORDS)
        found = [[asdict(span) for span in index.spans(output, SPAN_TOKENS_MIN)] for _, output in OUTPUTS]
    for span in (span for spans in found for span in spans):
        span["places"] = [[place["record"], place["offset"]] for place in span["places"]]
    return [("spans", "of each query's output; places are record and offset", found)]
