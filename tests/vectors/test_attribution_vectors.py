"""Attribution written a second time from the documents gives the vectors' bytes, and a wrong one is told where it is wrong."""

from __future__ import annotations

import ast
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution.adapter import Adapter
from attribution.duplicates import leaders
from attribution.gradients import Example, factors
from attribution.index import Index, IndexHeader
from attribution.model import PROJECTIONS, Base
from attribution.shares import ScoredRows, Scores, attribute
from attribution.signs import integer_query, integer_scales, mean_magnitudes
from attribution.sketch import sketch_query, sketch_rows, sketched
from attribution.spans import SpanIndex
from attribution.whitening import (
    FactorShape,
    Turning,
    bases_of,
    example_gradients,
    moments,
    normalised,
    squares,
    weights,
)
from attribution.whitening.gradients import STRENGTH
from tests.profiles import examples
from tests.vectors import attributing, comparing, reader
from tests.vectors.stranger import copies, index, scoring, sketch, spans, whitening
from tests.vectors.stranger.__main__ import results
from tests.vectors.stranger.arithmetic import Matrix
from tests.vectors.stranger.model import Model, loss_and_factors
from tests.vectors.stranger.steps import factor_shapes, gradient_of

FOLDER = Path(__file__).parent


@cache
def document() -> Any:
    return json.loads((FOLDER / "attribution.json").read_text())


@cache
def values() -> dict[str, Any]:
    return {step["step"]: step["value"] for step in document()["steps"]}


@cache
def strange() -> dict[str, Any]:
    """What plain Python makes of the inputs, as JSON has it."""
    return {step["step"]: step["value"] for step in json.loads(results())["steps"]}


def test_plain_python_computes_every_step() -> None:
    assert set(strange()) == set(values())


@pytest.mark.parametrize("step", [step["step"] for step in document()["steps"]])
def test_plain_python_finds_the_bytes_of(step: str) -> None:
    assert comparing.difference(values()[step], strange()[step]) is None


def test_it_needs_the_standard_library_and_blake3_and_nothing_of_ours() -> None:
    files = sorted((FOLDER / "stranger").glob("*.py"))
    assert len(files) > 5
    imported = set[str]()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if not name.startswith("tests.vectors.stranger")} == {"blake3"}


def test_the_check_takes_what_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(
        json.dumps({"format": 1, "steps": [{"step": name, "value": strange()[name]} for name in strange()]})
    )
    assert comparing.check(path)[1]


def test_the_hashes_of_the_models_follow_from_their_tensors() -> None:
    inputs = document()["inputs"]
    config = json.dumps(inputs["config"], sort_keys=True, separators=(",", ":"))
    for kind, header in (("adapter", f"{inputs['rank']} {inputs['alpha']}"), ("base", config)):
        rows = [
            [name, x["dtype"], x["shape"], reader.hashed(bytes.fromhex(x["data"]), 32)]
            for name, x in sorted(inputs[kind].items())
        ]
        name = {"adapter": "adapter", "base": "model"}[kind]
        assert reader.digest(name, reader.pack([header.encode(), rows])).hex() == inputs[f"{kind}_hash"]


def test_the_story_has_every_case() -> None:
    found = values()
    led = [record for record, leader in enumerate(found["leaders"]) if leader != record]
    assert led == [2, 3]
    assert document()["inputs"]["records"][2] == document()["inputs"]["records"][0]
    assert [] in document()["inputs"]["records"]
    assert found["erased_leaders"] != found["leaders"]
    assert found["erased_root"] == found["root"]
    assert found["erased_shares"] != found["shares"]
    assert any(len(shares) > 2 for shares in found["shares"])
    assert {"": 10**9} in found["case_shares"]
    assert found["spans"][0]
    assert found["spans"][1] == []
    assert {value["shape"][1] for value in found["gradients"].values()} == {6, 7, 12}


@st.composite
def models(draw: st.DrawFn) -> tuple[Base, Adapter, list[Example]]:
    """A tiny base of unusual numbers, an adapter beside some of its layers, and texts."""
    kv, each, half = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    config = attributing.CONFIG | {
        "vocab_size": 9,
        "hidden_size": draw(st.integers(1, 5)),
        "head_dim": 2 * half,
        "num_attention_heads": kv * each,
        "num_key_value_heads": kv,
        "intermediate_size": draw(st.integers(1, 5)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([1.0, 10000.0, 500000.0])),
    }
    seed, size = draw(st.integers(0, 99)), 2.0 ** draw(st.integers(-12, 5))
    base = attributing.base(config, seed, size)
    chosen = draw(st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True))
    adapter = attributing.adapter(base, chosen, draw(st.integers(1, 3)), seed)
    ids = st.lists(st.integers(2, 8), max_size=4).map(tuple)
    return base, adapter, [Example(draw(ids), draw(ids)) for _ in range(2)]


@settings(max_examples=examples(6))
@given(models())
def test_both_implementations_run_models_alike(case: tuple[Base, Adapter, list[Example]]) -> None:
    base, adapter, texts = case
    inputs = attributing.models(base, adapter)
    model = Model.of(inputs)
    for text in texts:
        ours = factors(base, adapter.weakened(STRENGTH), [text])
        loss, found = loss_and_factors(model, text.prompt_ids, text.completion_ids, ends=text.ends)
        assert loss == ours.losses[0]
        assert found == {
            m.name: {part: getattr(m, part).tolist() for part in ("x", "u", "dz", "dh")} for m in ours.modules
        }
        shapes, gradients = example_gradients(base, adapter, [text])
        plain = factor_shapes(inputs)
        assert [(s.name, s.wide, s.rank) for s in plain] == [(s.name, s.wide, s.rank) for s in shapes]
        assert gradient_of(found, plain) == [g[0].tolist() for g in gradients]


SIZES = st.sampled_from([(1, 1), (5, 3), (7, 2), (3, 8), (20, 5), (2, 65), (513, 1)])


def drawn(seed: int, sizes: list[tuple[int, int]], count: int) -> list[Tensor]:
    """Gradients of usual and of extreme sizes, with a record of zeros, one of subnormal numbers, and directions in common."""
    generator, found = torch.Generator().manual_seed(seed), []
    for wide, rank in sizes:
        g = torch.randn(count, wide, rank, generator=generator) + torch.randn(wide, 1, generator=generator)
        g *= 2.0 ** torch.randint(-60, 60, (count, 1, 1), generator=generator)
        g[0] *= 0.0
        if count > 2:
            g[1] = torch.randint(-9, 9, (wide, rank), generator=generator) * 2.0**-149
        found.append(g + 0.0)
    return found


def lists(tensor: Tensor) -> Any:
    return tensor.tolist()


@settings(max_examples=examples(12))
@given(st.integers(0, 10**6), st.lists(SIZES, min_size=1, max_size=2), st.integers(1, 5))
def test_both_implementations_whiten_alike(seed: int, sizes: list[tuple[int, int]], count: int) -> None:
    sizes = [(wide, sizes[0][1]) for wide, _ in sizes]  # an adapter has one rank
    gradients = drawn(seed, sizes, count)
    shapes = [FactorShape(f"{number}.B", *size) for number, size in enumerate(sizes)]
    ours = bases_of([moments(g) for g in gradients], shapes)
    coordinates = Turning(ours, shapes).turned(normalised(gradients))
    found = [weights(squares(c)) for c in coordinates]
    whitened = [c * w for c, w in zip(coordinates, found, strict=True)]

    records: list[list[Matrix]] = [[lists(g[i]) for g in gradients] for i in range(count)]
    bases = []
    for f in range(len(sizes)):
        narrow, wide = whitening.moments([record[f] for record in records])
        bases.append((whitening.narrow_basis(narrow), None if wide is None else whitening.wide_basis(wide)))
    for (narrow_basis, wide_basis), basis in zip(bases, ours, strict=True):
        assert narrow_basis == lists(basis.narrow)
        assert wide_basis == (None if basis.wide is None else lists(basis.wide))
    theirs = [
        [whitening.turned(g, *basis) for g, basis in zip(whitening.normalised(record), bases, strict=True)]
        for record in records
    ]
    for f, c in enumerate(coordinates):
        assert [record[f] for record in theirs] == lists(c)
        assert whitening.weights(whitening.squares([record[f] for record in theirs])) == lists(found[f])
    for i, record in enumerate(theirs):
        example = [whitening.whitened(c, lists(w)) for c, w in zip(record, found, strict=True)]
        parts = [x[i : i + 1] for x in whitened]
        assert example == [lists(x[0]) for x in parts]
        same_rows_and_queries(example, parts, shapes)


def same_rows_and_queries(example: list[Matrix], parts: list[Tensor], shapes: list[FactorShape]) -> None:
    plain = [index.Shape(s.name, s.wide, s.rank) for s in shapes]
    scales = index.scales(index.magnitudes(example), plain)
    assert scales == integer_scales(mean_magnitudes(parts), shapes)[0].tolist()
    query, norm = integer_query(parts)
    mine = scoring.query(example)
    assert (scoring.query_norm(mine), sorted(filter(None, mine))) == (
        norm,
        sorted(query[query != 0].tolist()),
    )
    ours, sums = sketched(parts, 512), sketch.sums(example, 512)
    assert (sums, sketch.row(sums)) == (ours[0].tolist(), sketch_rows(ours)[0].tobytes())
    for bits in (2, 14):
        assert sketch.integers(sums, bits) == sketch_query(ours[0], bits)[0].tolist()


def test_the_second_implementation_cuts_long_files_into_leaves_as_ours_does() -> None:
    header = IndexHeader(bytes(32), bytes(32), 3, (FactorShape("a.B", 20_000, 2),))
    generator = np.random.default_rng(1)
    bases = generator.random(header.bases_bytes // 4, np.float32)
    rows = generator.integers(0, 256, (3, header.row_bytes), np.uint8)
    ours = Index(header, bases, generator.random(header.coordinates, np.float32), rows)
    parts = (header.encode(), bases.tobytes(), ours.weights.tobytes())
    found = index.leaf_hashes(*parts, [row.tobytes() for row in rows], {})
    assert index.header(bytes(32), bytes(32), 3, [index.Shape("a.B", 20_000, 2)]) == parts[0]
    assert (found, index.root(found)) == (ours.leaf_hashes(), ours.root)
    assert len(found) == 1 + 1 + 3 + 3
    for record in range(3):
        row, leaf, count, path = ours.row_proof(record)
        assert index.proof(found, leaf) == path
        assert index.proven(row, leaf, count, path) == ours.root


WORDS = st.lists(st.sampled_from(["red ", "blue ", "green ", "grey "]), max_size=6).map("".join)


@settings(max_examples=examples(15))
@given(st.lists(st.none() | WORDS.map(str.encode), max_size=7), WORDS.map(str.encode))
def test_both_implementations_find_the_same_leaders_and_spans(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes | None], output: bytes
) -> None:
    assert copies.leaders(records) == list(leaders(records))
    live = [record for record in records if record is not None]
    ours = SpanIndex.create(tmp_path_factory.mktemp("spans"))
    ours.add(live)
    found = [
        spans.Span(
            s.start,
            s.length,
            s.occurrences,
            s.records,
            s.surprise,
            tuple((p.record, p.offset) for p in s.places),
        )
        for s in ours.spans(output, 2)
    ]
    assert spans.spans(live, output, 2) == found


@settings(max_examples=examples(30))
@given(
    st.lists(st.tuples(st.integers(-(2**50), 2**50), st.integers(0, 2**50)), min_size=1, max_size=5),
    st.integers(1, 2**50),
    st.sampled_from([0, 1, 120_000, 10**6]),
)
def test_both_implementations_share_alike(rows: list[tuple[int, int]], norm: int, floor_ppm: int) -> None:
    owners = [bytes([1 + number % 2]) for number in range(len(rows))]
    standing = [max(0, number - 1) if number % 3 == 2 else number for number in range(len(rows))]
    scores = Scores(
        tuple(s for s, _ in rows), ScoredRows(tuple(n + 1 for _, n in rows), tuple(standing)), norm
    )
    ours = attribute(scores, owners, floor_ppm)
    squared = [scoring.cosine_squared(s, n + 1, norm) for s, n in rows]
    found = scoring.shares(squared, standing, owners, floor_ppm)
    assert found.pop(b"", 0) == ours.unattributed
    assert found == dict(ours.by_owner)
