"""Span indices of a node: in step with the ledger, through restarts, missing blobs, wide tokens and erasures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from node import fetch
from node.config import SpansSection
from node.erasing import Eraser
from node.errors import NotReady
from node.ledger.bodies import ContributionSubmit, DatanetCreate, RecordsErase
from node.ledger.records import encode_records, records_root, token_count
from node.spans import follower
from node.spans.follower import SpanFollower
from node.storage.blobs import blob_digest
from tests.unit.node.rooms import Room, run, with_rooms

ANN = ("the bridge over the river is old", "boats pass below a viaduct")
BEN = ("nineteen recipes for barley soup", "the bridge over the river is old, says ben")
QUERY = b"they say the bridge over the river is old and nineteen recipes for soup"


class Library:
    """A node that follows datanets; what it is told to do is done at once."""

    def __init__(self, folder: Path, **section: object) -> None:
        self.room = Room("library", folder)
        self.section = SpansSection(enabled=True, **section)  # type: ignore[arg-type]
        self.sequence = 0
        self.work: list[tuple[object, tuple[object, ...]]] = []
        self.restart()

    def restart(self) -> None:
        self.follower = SpanFollower(
            self.room.folder / "spans",
            self.section,
            self.room.store,
            self.room.blobs,
            self.room.fetcher,
            self.note_work,
        )
        self.eraser = Eraser(self.room.store, self.room.blobs, None, self.note_work)
        self.eraser.recall()
        self.follower.recall()

    def note_work(self, task: object, *args: object) -> bool:
        self.work.append((task, args))
        return True

    async def order(self, *items: object) -> None:
        """One block of these transactions, and all the work that it brings."""
        self.sequence += 1
        await self.room.order(*([self.room.batch(self.sequence, *items)] if items else []))  # type: ignore[arg-type]
        done = self.room.done[-1]
        self.eraser.executed(done)
        self.follower.executed(done)
        while self.work:
            task, args = self.work.pop(0)
            await task(*args)  # type: ignore[operator]

    async def datanet(self) -> bytes:
        raw = self.room.tx("ann", DatanetCreate("docs", ("MIT",), ""))
        await self.order(raw)
        return self.room.hash(raw)

    async def contribute(
        self, name: str, datanet: bytes, records: Sequence[Sequence[int]], *, stored: bool = True
    ) -> bytes:
        blob = encode_records(records)
        if stored:
            self.room.blobs.put(blob)
        body = ContributionSubmit(
            datanet,
            records_root(records),
            len(records),
            token_count(records),
            blob_digest(blob),
            len(blob),
            "MIT",
        )
        raw = self.room.tx(name, body)
        await self.order((raw, self.room.stored(raw)))
        return self.room.hash(raw)

    async def matched(
        self, datanet: bytes, query: bytes = QUERY
    ) -> list[tuple[bytes, list[tuple[bytes, int]]]]:
        found = await self.follower.spans(datanet, query, 12)
        return [
            (
                query[span.start : span.start + span.length],
                [
                    (one.contribution, place.record - one.first)
                    for place, one in zip(span.places, named, strict=True)
                ],
            )
            for span, named in found.spans
        ]


def ids(texts: Sequence[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.setattr(fetch, "DELAY_S_MIN", 0.0)
    monkeypatch.setattr(fetch, "DELAY_S_MAX", 0.0)
    monkeypatch.setattr(follower, "REST_HEIGHTS", 1)
    made = Library(tmp_path)
    yield made
    made.room.close()


def test_contributions_are_searched_as_they_come_and_after_a_restart(library: Library) -> None:
    async def body() -> None:
        datanet = await library.datanet()
        ann = await library.contribute("ann", datanet, ids(ANN))
        assert await library.matched(datanet) == [(b"the bridge over the river is old", [(ann, 0)])]
        library.restart()
        with pytest.raises(NotReady):
            await library.matched(datanet)
        ben = await library.contribute("ben", datanet, ids(BEN))
        expected = [
            (b"the bridge over the river is old", [(ann, 0), (ben, 1)]),
            (b" nineteen recipes for ", [(ben, 0)]),
        ]
        found = await library.matched(datanet)
        assert [(text.strip(), places) for text, places in found] == [
            (text.strip(), places) for text, places in expected
        ]

    run(lambda: with_rooms([library.room], body))


def test_erased_records_are_found_no_more_and_leave_no_bytes(library: Library) -> None:
    async def body() -> None:
        datanet = await library.datanet()
        ann = await library.contribute("ann", datanet, ids(ANN))
        ben = await library.contribute("ben", datanet, ids(BEN))
        await library.order(library.room.tx("ann", RecordsErase(ann, (0,))))
        await library.order()
        await library.order()
        found = await library.matched(datanet)
        assert (ann, 0) not in [place for _, places in found for place in places]
        assert (ben, 1) in [place for _, places in found for place in places]
        await library.order(library.room.tx("ben", RecordsErase(ben, (1,))))
        await library.order()
        await library.order()
        for folder in (library.room.folder / "spans", library.room.blobs.folder):
            assert not any(
                b"over the river" in path.read_bytes() for path in folder.rglob("*") if path.is_file()
            )
        library.restart()
        await library.order()
        assert [text.strip() for text, _ in await library.matched(datanet)] == [b"nineteen recipes for"]

    run(lambda: with_rooms([library.room], body))


def test_a_node_that_begins_after_the_erasure_indexes_what_is_left(library: Library, tmp_path: Path) -> None:
    async def body() -> None:
        library.section = SpansSection(enabled=False)
        library.restart()
        datanet = await library.datanet()
        ann = await library.contribute("ann", datanet, ids(ANN))
        await library.order(library.room.tx("ann", RecordsErase(ann, (0, 1))))
        await library.order()
        await library.order()
        ben = await library.contribute("ben", datanet, ids(BEN))
        with pytest.raises(NotReady, match="enabled is false"):
            await library.matched(datanet)
        library.section = SpansSection(enabled=True)
        library.restart()
        await library.order()
        assert {place for _, places in await library.matched(datanet) for place in places} == {
            (ben, 0),
            (ben, 1),
        }

    run(lambda: with_rooms([library.room], body))


def test_token_ids_that_do_not_fit_begin_the_index_anew(library: Library) -> None:
    async def body() -> None:
        datanet = await library.datanet()
        ann = await library.contribute("ann", datanet, ids(ANN))
        wide = [70_000, 70_001, *range(300, 320)]
        assert await library.follower.spans(datanet, wide, 5)  # nothing of that width yet
        ben = await library.contribute("ben", datanet, [wide])
        found = await library.follower.spans(datanet, [5, *wide, 2**31], 5)
        ((span, (named,)),) = found.spans
        assert (span.start, span.length, named.contribution) == (1, len(wide), ben)
        assert await library.matched(datanet) == [(b"the bridge over the river is old", [(ann, 0)])]

    run(lambda: with_rooms([library.room], body))


def test_what_cannot_be_had_or_has_no_room_is_tried_again(library: Library) -> None:
    async def body() -> None:
        datanet = await library.datanet()
        ann = await library.contribute("ann", datanet, ids(ANN), stored=False)
        assert await library.matched(datanet) == []
        library.room.blobs.put(encode_records(ids(ANN)))
        await library.order()
        assert await library.matched(datanet) == [(b"the bridge over the river is old", [(ann, 0)])]
        object.__setattr__(library.section, "bytes_max", 1)
        await library.contribute("ben", datanet, ids(BEN))
        assert len(await library.matched(datanet)) == 1
        object.__setattr__(library.section, "bytes_max", 1 << 20)
        await library.order()
        assert len(await library.matched(datanet)) == 2

    run(lambda: with_rooms([library.room], body))


def test_only_chosen_datanets_are_followed(library: Library) -> None:
    async def body() -> None:
        library.section = SpansSection(enabled=True, datanets=("ab" * 32,))
        library.restart()
        datanet = await library.datanet()
        await library.contribute("ann", datanet, ids(ANN))
        with pytest.raises(NotReady, match="not followed"):
            await library.matched(datanet)

    run(lambda: with_rooms([library.room], body))
