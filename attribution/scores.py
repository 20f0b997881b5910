"""Integer scores of an output against every record of an index, and the floor below which a score says nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from attribution.adapter import Adapter
from attribution.first_look import looked_scores
from attribution.gradients import Example
from attribution.index import Index
from attribution.model import Base
from attribution.rows import row_query
from attribution.shares import COSINE_ONE_PPM, Scores
from attribution.whitening import example_gradients, normalised

FLOOR_TEXTS_MIN = 8


class WrongIndex(ValueError):
    """The index was built for another base or adapter than the one asked to score with it."""


def score(
    base: Base, adapter: Adapter, index: Index, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Scores:
    """Scores of ``output_ids`` as the completion of ``prompt_ids``, one integer per record of ``index``.

    The query is the gradient of the summed negative log-likelihood of the output tokens alone; the prompt is only
    context. An empty output is scored as the end token the model gave at once. The formula and its bounds are in
    `attribution.signs`. Raises `WrongIndex`, and what `attribution.gradients.factors` raises on bad ids or lengths.
    """
    if index.header.base_hash != base.hash or index.header.adapter_hash != adapter.hash:
        raise WrongIndex("the index belongs to another base or adapter")
    example = Example(tuple(prompt_ids), tuple(output_ids), ends=not output_ids)
    return score_example(base, adapter, index, example)


def score_example(base: Base, adapter: Adapter, index: Index, example: Example) -> Scores:
    """`score` of an example as the gradients see it, without the check of the hashes."""
    query, norm = example_query(base, adapter, index, example)
    shapes = index.header.row_shapes
    values = looked_scores(query, index.signs, index.scales, shapes, index.leading, index.short)
    return Scores(array("q", values.tobytes()), index.scored, norm)


def example_query(
    base: Base, adapter: Adapter, index: Index, example: Example
) -> tuple[npt.NDArray[np.int32], int]:
    """What the rows of ``index`` are held against for an example: int32 (8 * sign bytes of a row), and its squared norm."""
    shapes, found = example_gradients(base, adapter, [example])
    if shapes != index.header.shapes:
        raise WrongIndex("the index has factors of other names or shapes")
    gradients = index.turning(base.device).turned(normalised(found))
    weights = index.factor_weights(base.device)
    whitened = [g * w for g, w in zip(gradients, weights, strict=True)]
    return row_query(whitened, shapes)


def calibrate_floor(base: Base, adapter: Adapter, index: Index, texts: Sequence[Sequence[int]]) -> int:
    """Cosine in parts per million that no text the model never saw exceeds: the largest over ``texts``, plus one.

    Every text (token ids) is scored teacher-forced as a whole, not generated. The ledger's floor should leave room
    above it (docs/attribution.md, "Floor"). Raises ``ValueError`` on fewer than `FLOOR_TEXTS_MIN` texts.
    """
    if len(texts) < FLOOR_TEXTS_MIN:
        raise ValueError(f"{len(texts)} texts are too few to calibrate a floor; at least {FLOOR_TEXTS_MIN}")
    highest = 0
    for text in texts:
        scores = score_example(base, adapter, index, Example((), tuple(text)))
        best = scores.best()
        highest = max(highest, 0 if best is None else scores.cosine_ppm(best))
    return min(highest + 1, COSINE_ONE_PPM)
