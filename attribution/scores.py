"""Integer scores of an output against every record of an index (interface published first; bodies follow)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attribution.shares import Scores

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.index import Index
    from attribution.model import Base


def score(
    base: Base, adapter: Adapter, index: Index, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Scores:
    """Scores of ``output_ids`` as the completion of ``prompt_ids`` (ids as `generate` takes and returns them)."""
    raise NotImplementedError


def calibrate_floor(base: Base, adapter: Adapter, index: Index, texts: Sequence[Sequence[int]]) -> int:
    """Floor in parts per million of cosine: the largest cosine any of ``texts`` (never seen, teacher-forced) reaches."""
    raise NotImplementedError
