"""How cost grows: the floors count what the definition says, and a quick run prints every table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attribution.model import weight_shapes
from benchmarks import growth
from benchmarks.growth import QUICK, RANK, SMALL, TINY, counted, drawn, main, multiplications, random_rows


def test_products_of_a_text_are_those_of_its_weights_attention_and_factors() -> None:
    base, adapter = drawn(TINY, 16)
    # Tied: the embedding costs products as the head that it is, too.
    weights = sum(rows * columns for rows, columns in weight_shapes(base.config).values())
    low_rank = 3 * RANK * sum(m.a.shape[1] + m.b.shape[0] for m in adapter.modules)
    attention = 3 * TINY.layers * TINY.heads * TINY.head_dim * 10**2
    assert multiplications(base.config, 10) == (2 * weights + low_rank) * 10 + attention


def test_rows_of_a_benchmark_are_an_index_that_opens(tmp_path: Path) -> None:
    index = random_rows(tmp_path / "index", 30, 256, 4)
    assert index.record_count == 30
    assert abs(index.header.row_bytes - 256) < 8
    assert len(set(index.leaders)) == 30


def test_planes_are_counted_over_whole_rows() -> None:
    random = np.random.default_rng(1)
    rows = random.integers(0, 1 << 63, (9, 4), np.uint64)
    planes = random.integers(0, 1 << 63, (3, 4), np.uint64)
    expected = [
        sum(
            (int(w) & int(p)).bit_count() << k
            for k, plane in enumerate(planes)
            for w, p in zip(row, plane, strict=True)
        )
        for row in rows
    ]
    assert counted(rows, planes).tolist() == expected


def test_the_smallest_model_is_the_shipped_one() -> None:
    from attribution.checkpoint import load_base
    from attribution.models import BASE_PATH

    config = load_base(BASE_PATH).config
    shape = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size)
    assert shape == (SMALL.hidden, SMALL.layers, SMALL.feed_forward, SMALL.vocabulary)


@pytest.mark.slow
def test_a_quick_run_prints_every_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--quick", "--json", "--folder", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [len(document[part]) for part in growth.PARTS] == [1, 2, 4, 8]
    assert [row["records"] for row in document["records"]] == [*QUICK.records, *QUICK.records]
    assert list(tmp_path.iterdir()) == []
    assert main(["--quick", "--only", "rows"]) == 0
    assert "within_25_ms" in capsys.readouterr().out
