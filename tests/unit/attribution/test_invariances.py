"""The five invariances of docs/exact-arithmetic.md: what is tested here, and where the rest is.

1. Batch: alone, batched, padded (`test_model_forward`, `test_training_gradients`), beside other adapters' rows (here).
2. Prefix: decoding with a cache is the whole text at once (`test_generation`; here on the shipped base, cut anywhere).
3. Device, threads and instruction sets: `tests/machines`.
4. Shards: an index in parts is the whole (`test_index`; here with parts, batches and passes of other sizes).
5. Agreement with `transformers` within the quantisation error: `test_model_forward`.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from attribution.adapter import Adapter, bind
from attribution.attention import CausalMask, attend
from attribution.checkpoint import load_base
from attribution.decoder import no_adapter
from attribution.exact.quantisation import Block
from attribution.exact.random import permutation, uniform_integers
from attribution.generation import Session, generate, logits
from attribution.golden import Materials
from attribution.index import build_index
from attribution.linear import group_forward
from attribution.model import Base
from attribution.models import BASE_PATH
from attribution.scores import score
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_index
from tests.unit.attribution.index_cases import tiny_base as index_base
from tests.unit.attribution.model_cases import draw, records, tiny_adapter, tiny_base


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal((a + 0.0).contiguous().view(torch.int32), (b + 0.0).contiguous().view(torch.int32))


@cache
def shipped() -> Base:
    return load_base(BASE_PATH)


def two_adapters(base: Base) -> tuple[Adapter, Adapter]:
    return tiny_adapter(base), tiny_adapter(base, rank=3, alpha=5, targets=("q_proj", "v_proj", "down_proj"))


def test_rows_of_several_adapters_share_the_frozen_product_and_keep_their_bits() -> None:
    base = tiny_base()
    bounds = [bind(a, base) for a in two_adapters(base)]
    for layer, group in ((0, 0), (1, 3), (0, 2)):
        frozen = base.layers[layer].groups[group]
        width = frozen.q.shape[1]
        # Rows of very different sizes: a shared exponent would show.
        parts = [draw(f"rows {layer} {i}", 5 + 4 * i, width, scale=2.0 ** (20 * i - 9)) for i in range(2)]
        alone = [
            group_forward(frozen, bound[layer][group], Block.of(x))[0]
            for bound, x in zip(bounds, parts, strict=True)
        ]
        together, at = frozen.forward(Block.of(torch.cat(parts))), 0
        for bound, x, expected in zip(bounds, parts, alone, strict=True):
            rows, lora = together[at : at + len(x)], bound[layer][group]
            if lora is not None:
                lora.up(lora.down(Block.of(x))[2], rows)
            assert same(rows, expected)
            at += len(x)


def test_answers_of_several_adapters_taken_in_turn_are_those_given_alone() -> None:
    base = tiny_base()
    bounds = [*(bind(a, base) for a in two_adapters(base)), no_adapter(base)]
    texts = [[0, *records()[i]] for i in range(3)]
    alone = [Session(base, bound, 64).extend(text) for bound, text in zip(bounds, texts, strict=True)]
    sessions = [Session(base, bound, 64) for bound in bounds]
    last: list[Tensor] = [torch.empty(0)] * 3
    for step in range(max(map(len, texts))):
        for i, text in enumerate(texts):
            if step < len(text):
                last[i] = sessions[i].extend([text[step]])
    assert all(same(a, b) for a, b in zip(last, alone, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_decoding_on_the_shipped_base_is_the_whole_text_wherever_it_is_cut(seed: int) -> None:
    m = Materials("cpu")
    ids = [0, *b"Return the index of the first item that matches, or -1."]
    whole = logits(shipped(), m.adapter, ids)
    cuts = sorted({0, len(ids), *(1 + int(n) for n in uniform_integers(seed, "cuts", 6, len(ids) - 1))})
    session = Session(shipped(), bind(m.adapter, shipped()), len(ids))
    for start, stop in itertools.pairwise(cuts):
        assert same(session.extend(ids[start:stop]), whole[stop - 1])


def test_what_is_generated_does_not_depend_on_the_room_left_for_it() -> None:
    base = shipped()
    prompt = list(b"Return the ")
    long = generate(base, None, prompt, 24)
    assert generate(base, None, prompt, 9) == long[:9]


@pytest.mark.parametrize(("at_once", "rows_max", "shards"), [(2, 768, 1), (3, 40, 2), (16, 20, 3), (1, 1, 1)])
def test_an_index_does_not_depend_on_how_its_records_are_grouped(
    monkeypatch: pytest.MonkeyPatch, at_once: int, rows_max: int, shards: int
) -> None:
    monkeypatch.setattr("attribution.index._RECORDS_AT_ONCE", at_once)
    monkeypatch.setattr("attribution.gradients.ROWS_MAX", rows_max)
    built = build_index(index_base(), adapter(), RECORDS, shards=shards)
    assert built.leaf_hashes() == tiny_index().leaf_hashes()
    assert built.root == tiny_index().root


def test_scores_do_not_depend_on_how_many_rows_are_scanned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (index_base(), adapter(), tiny_index(), tuple(b"the quick "), tuple(b"brown fox"))
    expected = score(*args)
    assert len(set(expected.values)) > 1
    for rows in (1, 2, 7):
        monkeypatch.setattr("attribution.signs._ROWS_AT_ONCE", rows)
        assert score(*args) == expected


def test_the_order_of_records_moves_rows_and_changes_no_score() -> None:
    """The bases and weights are sums over records, so the rows only change places."""
    order = permutation(1, "records", len(RECORDS))
    moved = build_index(index_base(), adapter(), [RECORDS[i] for i in order])
    assert [row.tobytes() for row in moved.rows] == [tiny_index().rows[i].tobytes() for i in order]
    query = (tuple(b"records may "), tuple(b"repeat"))
    before = score(index_base(), adapter(), tiny_index(), *query).values
    after = score(index_base(), adapter(), moved, *query).values
    assert list(after) == [before[i] for i in order]


def test_a_later_token_of_any_size_does_not_reach_an_earlier_one() -> None:
    """A masked probability is an exact zero: e^-80 of a huge value would be more than all of a tiny one."""
    rows = draw("attention", 3, 3, 8)
    rows[0, 2] *= 2.0**-20
    rows[1:, 2] *= 2.0**90
    found = []
    for length in (1, 3):
        out, den = torch.empty(length, 1, 8), torch.empty(length, 1, 1)
        block = Block.of(rows[:length])
        attend(block, 1, 1, CausalMask.of(length, rows.device), out, den, save=False)
        found.append(out[0])
    assert same(found[0], found[1])
    assert bool(found[0].abs().max() < 2.0**-19)
