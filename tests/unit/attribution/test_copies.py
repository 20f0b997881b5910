"""Copying a record changes nobody's payout: scores of an adapter that was trained, indexed and asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from attribution.adapter import Adapter
from attribution.duplicates import leaders
from attribution.index import Index, build_index
from attribution.index_standing import StandingInvalid
from attribution.recipe import Recipe
from attribution.scores import score
from attribution.shares import Scores, Shares, attribute
from attribution.training import train
from tests.unit.attribution.index_cases import tiny_base

TEXTS = (
    b"ann writes of bridges that cross the river",
    b"ann also counts the boats below the bridge",
    b"bob has nineteen recipes for barley soup",
    b"bob never peels the carrots for his soup",
    b"carol measured every mountain twice over",
    b"carol drew the maps of the mountain paths",
)
OWNERS = (b"ann", b"ann", b"bob", b"bob", b"carol", b"carol")
FLOOR_PPM = 20_000
COPIED = 2


@cache
def trained() -> Adapter:
    recipe = Recipe(rank=4, alpha=8, epochs=15, batch_size=3, warmup_steps=3)
    return train(tiny_base(), [tuple(text) for text in TEXTS], recipe)


def variants(text: bytes, count: int) -> list[bytes]:
    """Near copies, each with one letter changed near the end, so that at least seven shingles of ten stay."""
    return [text[: -1 - k % 4] + bytes([33 + k]) + text[len(text) - k % 4 :] for k in range(count)]


def queries() -> list[tuple[bytes, bytes]]:
    """Whole records, halves of them, and what copies say."""
    halves = [(text[:20], text[20:]) for text in TEXTS[::2]]
    return [*halves, (b"", TEXTS[COPIED]), (TEXTS[COPIED][:20], variants(TEXTS[COPIED], 1)[0][20:])]


def payouts(index: Index, owners: Sequence[bytes]) -> list[Shares]:
    found = [score(tiny_base(), trained(), index, list(p), list(o)) for p, o in queries()]
    return [attribute(scores, owners, FLOOR_PPM) for scores in found]


@cache
def clean() -> tuple[Index, list[Shares]]:
    """The index without copies, and what it pays."""
    index = build_index(tiny_base(), trained(), TEXTS, clusters=leaders(TEXTS))
    assert index.leaders == (0, 1, 2, 3, 4, 5)
    return index, payouts(index, OWNERS)


def test_the_scores_pay_more_than_one_contributor() -> None:
    paid = [dict(shares.by_owner) for shares in clean()[1]]
    assert all(paid)
    assert any(len(row) > 1 for row in paid)


@pytest.mark.parametrize(
    ("copier", "count"), [(b"mallory", 1), (b"mallory", 12), (b"carol", 4), (b"bob", 12)]
)
def test_copies_raise_nobodys_payout_and_lower_nobodys(copier: bytes, count: int, tmp_path: Path) -> None:
    """A stranger's copies, another contributor's, and those of the record's own author: exact ones and near ones."""
    index, expected = clean()
    copies = [TEXTS[COPIED], *variants(TEXTS[COPIED], count)]
    records, owners = [*TEXTS, *copies], [*OWNERS, *[copier] * len(copies)]
    clusters = leaders(records)
    assert clusters == (*range(len(TEXTS)), *[COPIED] * len(copies))
    copied = build_index(tiny_base(), trained(), records, clusters=clusters)
    assert payouts(copied, owners) == expected
    copied.save(tmp_path)
    assert payouts(Index.open(tmp_path, copied.root), owners) == expected
    # Bit for bit: bases, weights and rows are those that the leaders have alone.
    assert copied.bases.tobytes() == index.bases.tobytes()
    assert copied.weights.tobytes() == index.weights.tobytes()
    assert np.array_equal(copied.rows[: len(TEXTS)], index.rows)


def test_without_clusters_near_copies_pay_their_copier() -> None:
    copies = variants(TEXTS[COPIED], 4)
    copied = build_index(tiny_base(), trained(), [*TEXTS, *copies])
    shares = payouts(copied, [*OWNERS, *[b"mallory"] * 4])
    assert max(row.of(b"mallory") for row in shares) > 500_000_000


def test_counting_the_best_of_a_cluster_would_pay_an_author_for_variants() -> None:
    """Why the leader counts and not the best member: on these very scores the best of twelve variants is worth more."""
    records = [*TEXTS, *variants(TEXTS[COPIED], 12)]
    index = build_index(tiny_base(), trained(), records, clusters=leaders(records))
    gained = []
    for (prompt, output), alone in zip(queries(), clean()[1], strict=True):
        scores = score(tiny_base(), trained(), index, list(prompt), list(output))
        best = attribute(best_member(scores), [*OWNERS, *[b"bob"] * 12], FLOOR_PPM)
        gained.append(best.of(b"bob") - alone.of(b"bob"))
    assert min(gained) >= 0
    assert max(gained) > 0


def best_member(scores: Scores) -> Scores:
    """Scores by which each leader has the largest cosine of its cluster."""
    values, norms, found = list(scores.values), list(scores.rows.norms), scores
    for own, leader in enumerate(scores.rows.leaders):
        if scores.cosine_squared(own) > found.cosine_squared(leader):
            values[leader], norms[leader] = scores.values[own], scores.rows.norms[own]
            rows = replace(scores.rows, norms=tuple(norms))
            found = replace(scores, values=tuple(values), rows=rows)
    return found


def test_copies_that_were_committed_later_are_led_wherever_they_stand_in_the_index() -> None:
    """Whoever publishes the adapter puts contributions in any order; the earlier commitment leads all the same."""
    records = [*variants(TEXTS[COPIED], 2), *TEXTS]
    clusters = leaders(records, commits=[9, 9, 1, 1, 1, 1, 1, 1])
    assert clusters == (2 + COPIED, 2 + COPIED, 2, 3, 4, 5, 6, 7)
    copied = build_index(tiny_base(), trained(), records, clusters=clusters)
    assert payouts(copied, [b"mallory", b"mallory", *OWNERS]) == clean()[1]


def test_exact_copies_without_clusters_earn_nothing_as_before() -> None:
    copied = build_index(tiny_base(), trained(), [*TEXTS, TEXTS[COPIED]])
    assert copied.leaders == (*range(6), COPIED)
    assert all(row.of(b"mallory") == 0 for row in payouts(copied, [*OWNERS, b"mallory"]))


@pytest.mark.parametrize("clusters", [(0,), (0, 0, 1, 3, 4, 5), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4, -1)])
def test_leaders_that_contradict_themselves_are_refused(clusters: tuple[int, ...]) -> None:
    with pytest.raises(StandingInvalid):
        build_index(tiny_base(), trained(), TEXTS, clusters=clusters)
